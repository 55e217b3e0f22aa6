"""Measures the ranking quality of models on judged queries, compared with BM25 and with published figures."""
