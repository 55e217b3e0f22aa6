"""Splits requests into shards, chooses replicas for them, and scales the replicas."""
