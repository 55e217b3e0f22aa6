"""Soak test: moderate mixed traffic for an hour, after which no process of the service may have grown.

    python -m benchmarks.soak [--minutes 60] [--sample-s 60] [--json benchmarks/results/soak.json]

`traffic.py` sends requests of every size and dialect over HTTP, from many keys; some are invalid, with a new name each
time (models, fields, paths, keys), and some clients disconnect. `__main__.py` samples resident memory, open descriptors
and metric series of the proxy, the controller, the ingresses and the replicas. `growth.py` decides: a process is flat
if a line through the last two thirds of its samples rises by no more than `LIMITS`. The exit code is 1 if one is not.
"""
