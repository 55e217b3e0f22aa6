"""The replica's pending pairs: `fair_queue` decides who is next (pure), `loop` feeds the device."""

from rerank_service.replica.scheduler.fair_queue import FairQueue
from rerank_service.replica.scheduler.loop import FinishedBatch, Scheduler, ScoredPairs
from rerank_service.replica.scheduler.watch import Watch

__all__ = ["FairQueue", "FinishedBatch", "Scheduler", "ScoredPairs", "Watch"]
