"""Compares this service with other rerankers, one after another, with the same checkpoint, machine and load.

python -m benchmarks.peers [--only NAME,NAME] [--rounds N] [--json benchmarks/results/peers-cpu.json]

`contenders.py` defines how each contender starts, `environments.py` installs it, and `processes.py` runs it.
`shared_model.py` makes the shared checkpoint and requests, and `rounds.py` measures.
"""
