"""From a replica's queue to its device: `fair_queue` picks the pairs of a batch, `admission` refuses work and sets the
batch's size (`batch_budget`), and `loop` scores."""

from rerank_service.replica.scheduler.fair_queue import FairQueue
from rerank_service.replica.scheduler.loop import FinishedBatch, Scheduler, ScoredPairs, Watch

__all__ = ["FairQueue", "FinishedBatch", "Scheduler", "ScoredPairs", "Watch"]
