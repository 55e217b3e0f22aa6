"""The whole real stack, from HTTP to the replicas, around a device that is simulated: it costs time and no CPU.

What is left to measure is the stack itself. `python -m benchmarks.stack --help`.
"""
