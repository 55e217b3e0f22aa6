"""Measurements of speed that a user can repeat. Engine only: no Ray, no HTTP."""
