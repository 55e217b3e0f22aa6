"""Scoring of files without a service: split into chunks, resumable, on Ray Data or in one process."""
