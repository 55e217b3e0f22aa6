"""A simulated cluster whose autoscaler adds and removes replicas while it runs. Knows nothing of what arrives."""

from rerank_service.tools.planning.autoscaler import TICK_S, Autoscaler
from rerank_service.tools.planning.clock import Clock
from rerank_service.tools.planning.cluster import SimulatedCluster

__all__ = ["ScaledCluster"]


class ScaledCluster:
    """Ten times a second, what Serve's controller does."""

    def __init__(
        self, cluster: SimulatedCluster, autoscaler: Autoscaler, clock: Clock, replica_start_s: float, until_s: float
    ) -> None:
        self.replicas: list[int] = []
        """Running ones, second by second."""
        self.targets: list[int] = []
        """What the autoscaler wants, at each tick."""
        self._cluster = cluster
        self._autoscaler = autoscaler
        self._clock = clock
        self._replica_start_s = replica_start_s
        self._until_s = until_s
        self._num_starting = 0

    def start(self) -> None:
        """From now on, until `until_s`."""
        self._clock.at(self._clock.now_s, self._tick, 0)

    def _tick(self, number: int) -> None:
        cluster = self._cluster
        now_s = number * TICK_S
        target = self._autoscaler.decide(
            now_s, cluster.offered_tokens, cluster.outstanding_tokens, cluster.num_replicas
        )
        self.targets.append(target)
        for _ in range(target - cluster.num_replicas - self._num_starting):
            self._num_starting += 1
            self._clock.at(now_s + self._replica_start_s, self._add)
        for _ in range(cluster.num_replicas - target):
            cluster.remove_replica()
        if number % round(1 / TICK_S) == 0:
            self.replicas.append(cluster.num_replicas)
        if now_s < self._until_s:
            self._clock.at((number + 1) * TICK_S, self._tick, number + 1)

    def _add(self) -> None:
        self._num_starting -= 1
        self._cluster.add_replica()
