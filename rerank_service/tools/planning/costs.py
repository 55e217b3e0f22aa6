"""What the stack around the devices costs, as measured; `benchmarks/results` has the measurements, and a test compares.

Measured on two cores of an AMD EPYC: on other machines it is the order of magnitude that counts.
"""

from dataclasses import dataclass

__all__ = ["HAPROXY", "NO_COSTS", "SERVE_PROXY", "CpuCost", "StackCosts"]


@dataclass(frozen=True)
class CpuCost:
    """CPU-seconds of a request."""

    request_s: float
    kb_s: float
    """For each KB of its body."""
    shard_s: float

    def of(self, kb: float, num_shards: float) -> float:
        """One request."""
        return self.request_s + self.kb_s * kb + self.shard_s * num_shards


@dataclass(frozen=True)
class StackCosts:
    """Seconds."""

    ingress: CpuCost
    """Of the ingress process."""
    other: CpuCost
    """Everywhere else: proxy, replicas' event loops, Ray."""
    hop_s: float
    """From an ingress to a replica, or back."""
    front_s: float
    """From a client to an ingress, or back."""
    tokenised_per_s: float
    """Tokens that one tokenising thread encodes a second."""
    num_tokeniser_threads: int = 2


_FREE = CpuCost(0.0, 0.0, 0.0)
NO_COSTS = StackCosts(_FREE, _FREE, 0.0, 0.0, float("inf"))
"""A stack that takes no time: what is left are the devices."""

_TOKENISED_PER_S = 300_000.0
"""Of the embedded model's tokenizer on random words (318,000 in a throwaway measurement)."""

HAPROXY = StackCosts(
    ingress=CpuCost(0.00098, 0.0000079, 0.00071),
    other=CpuCost(0.00057, 0.0000114, 0.00106),
    hop_s=0.0013,
    front_s=0.0013,
    tokenised_per_s=_TOKENISED_PER_S,
)
"""benchmarks/results/stack-costs.json; the way of a lone request, less the ingress, in four equal parts."""
SERVE_PROXY = StackCosts(
    ingress=CpuCost(0.00502, 0.0000035, 0.00164),
    other=CpuCost(0.0062, 0.00000135, 0.00189),
    hop_s=0.0017,
    front_s=0.0017,
    tokenised_per_s=_TOKENISED_PER_S,
)
"""stack-costs-serve-proxy.json"""
