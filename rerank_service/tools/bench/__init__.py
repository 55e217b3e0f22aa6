"""Measurements of speed that a user can repeat: engines in this process, and services over HTTP."""
