"""Checks that a served model computes what its checkpoint says, against a plain run with transformers."""
