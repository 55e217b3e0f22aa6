"""Measures the real stack, from HTTP to the replicas. The devices are simulated: they take time but no CPU.

See `python -m benchmarks.stack --help`.
"""
