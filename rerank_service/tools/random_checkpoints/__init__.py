"""Checkpoints with random weights, in the published format of each architecture."""
