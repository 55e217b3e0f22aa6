"""Measures the real stack, from HTTP to the replicas, around simulated devices that take time but no CPU.

See `python -m benchmarks.stack --help`.
"""
