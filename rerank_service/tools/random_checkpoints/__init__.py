"""Checkpoint folders: how one is found, and how a randomly initialised one is made."""
