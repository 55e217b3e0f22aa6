"""Weights that others have quantised: which formats can be read, and the numbers that they stand for."""
