"""Scores files without a service, in resumable chunks, on Ray Data or in one process."""
