"""This service and others like it, side by side: one checkpoint, one machine, one load, in turn.

python -m benchmarks.peers [--only NAME,NAME] [--rounds N] [--json benchmarks/results/peers-cpu.json]

`contenders.py` says how each is started, `environments.py` installs it, `processes.py` keeps it running,
`shared_model.py` makes what all of them load and are sent, `rounds.py` measures.
"""
