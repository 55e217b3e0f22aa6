"""Settings that must be in the environment before torch or Ray starts, in this process or in one that a test starts."""

import os

# OpenMP's threads spin while they wait for each other. `make test` runs groups of tests at once, so on two cores a
# thread would spin in the place of the one that it waits for: the engines' tests took ten times as many CPU-seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray gives its workers the niceness 15. Beside the other groups of `make test`, which have 0, a replica then receives a
# thirtieth of a core, and a request of a tenth of a second takes ten seconds.
os.environ.setdefault("RAY_worker_niceness", "0")
