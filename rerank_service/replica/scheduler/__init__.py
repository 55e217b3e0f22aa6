"""Moves pairs from a replica's queue to its device: `admission` refuses work and sets the size of a batch
(`batch_budget`), `fair_queue` picks the batch's pairs, and `loop` scores them."""

from rerank_service.replica.scheduler.fair_queue import FairQueue
from rerank_service.replica.scheduler.loop import FinishedBatch, Scheduler, ScoredPairs, Watch

__all__ = ["FairQueue", "FinishedBatch", "Scheduler", "ScoredPairs", "Watch"]
