"""Makes the tables and plots in `docs/` from the measurements in `benchmarks/results`.

    python -m benchmarks.report [--results benchmarks/results] [--docs docs]

`peers.py`, `performance.py`, `capacity.py`, `cascade.py`, `quality.py` and `models.py` each make the sections on one
subject, and `pages.py` inserts the sections into the pages.
"""
