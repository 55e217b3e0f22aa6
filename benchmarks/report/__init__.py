"""Tables and plots of `docs/`, made from the measurements in `benchmarks/results`.

    python -m benchmarks.report [--results benchmarks/results] [--docs docs]

`performance.py`, `capacity.py`, `quality.py` and `models.py` each make the sections of one subject, `pages.py` puts
them into the pages.
"""
