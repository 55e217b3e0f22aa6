"""What the stack around the devices costs, as measured; `benchmarks/results` has the measurements, and a test compares.

Measured on two cores of an AMD EPYC: on other machines it is the order of magnitude that counts.
"""

from dataclasses import dataclass

__all__ = ["HAPROXY", "NO_COSTS", "SERVE_PROXY", "StackCosts"]


@dataclass(frozen=True)
class StackCosts:
    """Seconds."""

    ingress_s: float
    """CPU of the ingress process for a request."""
    ingress_s_per_kb: float
    """And for each KB of its body."""
    ingress_s_per_shard: float
    """And for each shard."""
    other_cpu_s: float
    """CPU elsewhere for a request: proxy, replica's event loop, Ray."""
    hop_s: float
    """From an ingress to a replica, or back."""
    front_s: float
    """From a client to an ingress, or back."""
    tokenised_per_s: float
    """Tokens that one tokenising thread encodes a second."""
    num_tokeniser_threads: int = 2

    def ingress_cpu_s(self, request_kb: float, num_shards: float) -> float:
        """Of one request."""
        return self.ingress_s + self.ingress_s_per_kb * request_kb + self.ingress_s_per_shard * num_shards


NO_COSTS = StackCosts(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, float("inf"))
"""A stack that takes no time: what is left are the devices."""

HAPROXY = StackCosts(0.0015, 0.00002, 0.0005, 0.0015, 0.002, 0.001, 300_000.0)
SERVE_PROXY = StackCosts(0.004, 0.00002, 0.002, 0.005, 0.004, 0.003, 300_000.0)
