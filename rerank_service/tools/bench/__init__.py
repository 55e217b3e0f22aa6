"""Measures the speed of engines on this machine, and of running services under load."""
