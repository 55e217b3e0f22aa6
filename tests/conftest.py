"""Settings that must be in the environment before torch is imported, by this process or by one that a test starts."""

import os

# OpenMP's threads spin while they wait for each other. `make test` runs two halves at once, so on two cores a thread
# would spin in the place of the one that it waits for: the engines' tests took ten times as many CPU-seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
