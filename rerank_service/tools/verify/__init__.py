"""Checks a served model against a plain run of its checkpoint with transformers."""
