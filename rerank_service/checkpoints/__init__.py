"""Fetching checkpoints: from a model hub or an object store into a folder of this machine, every file verified."""
