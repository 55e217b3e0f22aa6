"""Compares this service with other rerankers: one checkpoint, one machine, one load, alternating.

python -m benchmarks.peers [--only NAME,NAME] [--rounds N] [--json benchmarks/results/peers-cpu.json]

`contenders.py` defines how each contender is started, `environments.py` installs it, `processes.py` runs it,
`shared_model.py` makes the shared checkpoint and requests, and `rounds.py` measures.
"""
