"""Ranking quality of models on judged queries, beside BM25 and beside what is published."""
