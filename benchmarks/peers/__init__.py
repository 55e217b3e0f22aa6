"""Compares this service with other rerankers, one after another, with the same checkpoint, machine and load.

    python -m benchmarks.peers [--tokens 126] [--only NAME,NAME] [--json benchmarks/results/peers-zen4.json] [--resume]
    python -m benchmarks.peers --tokens 390 --json benchmarks/results/peers-zen4-390.json
    python -m benchmarks.peers --avx2 --json benchmarks/results/peers-zen4-avx2.json
    python -m benchmarks.peers --avx2 --tokens 390 --json benchmarks/results/peers-zen4-avx2-390.json

`contenders.py` defines how each contender starts, `environments.py` installs it, `masking` hides instruction sets from
it, and `processes.py` runs it. `shared_model.py` makes the shared checkpoint and requests, `bare_runs.py` and
`rounds.py` measure, and `recording.py` keeps the figures.
"""
