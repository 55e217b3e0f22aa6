"""Soak test: under moderate mixed traffic for an hour, no process of the service may grow.

    python -m benchmarks.soak [--minutes 60] [--sample-s 60] [--json benchmarks/results/soak.json]

`traffic.py` sends requests of all sizes and dialects over HTTP, with many keys. Some requests are invalid,
for example with an unknown model, field, path or key, whose name is new each time. Some clients disconnect.
`__main__.py` samples resident memory, open descriptors and metric series of the proxy, the controller, the ingresses
and the replicas. `growth.py` decides whether a process grows: the line through the last two thirds of its samples must
not rise by more than `LIMITS`. The exit code is 1 if a process grows.
"""
