"""Trains a reranker on a user's own judged queries, and judges the result on queries held out from training."""
