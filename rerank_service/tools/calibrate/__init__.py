"""Measures a map from a model's logits to probabilities on judged queries, and how good the probabilities are."""
