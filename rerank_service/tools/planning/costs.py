"""Measured costs of the stack around the devices; a test compares them with `benchmarks/results`.

The costs were measured on two cores of an AMD EPYC; on other machines, only the order of magnitude applies.
"""

from dataclasses import dataclass

__all__ = ["HAPROXY", "NO_COSTS", "SERVE_PROXY", "CpuCost", "StackCosts"]


@dataclass(frozen=True)
class CpuCost:
    """CPU-seconds of a request: a constant, a part per KB of its body, and a part per shard."""

    request_s: float
    kb_s: float
    """CPU-seconds per KB of the body."""
    shard_s: float

    def of(self, kb: float, num_shards: float) -> float:
        """CPU-seconds of a request with a body of `kb` KB and `num_shards` shards."""
        return self.request_s + self.kb_s * kb + self.shard_s * num_shards


@dataclass(frozen=True)
class StackCosts:
    """Costs of the stack around the devices."""

    ingress: CpuCost
    """CPU time of the ingress process."""
    other: CpuCost
    """CPU time of everything else: proxy, event loops of replicas, and Ray."""
    hop_s: float
    """Time from an ingress to a replica, or back."""
    front_s: float
    """Time from a client to an ingress, or back."""
    tokenised_per_s: float
    """Tokens per second of one tokenising thread."""
    num_tokeniser_threads: int = 2


_FREE = CpuCost(0.0, 0.0, 0.0)
NO_COSTS = StackCosts(_FREE, _FREE, 0.0, 0.0, float("inf"))
"""A stack without costs, for simulating the devices alone."""

_TOKENISED_PER_S = 300_000.0
"""Speed of the embedded model's tokenizer on random words; an unrecorded measurement gave 318,000."""

HAPROXY = StackCosts(
    ingress=CpuCost(0.000835, 0.0000059, 0.000768),
    other=CpuCost(0.000684, 0.000017, 0.000894),
    hop_s=0.00065,
    front_s=0.00065,
    tokenised_per_s=_TOKENISED_PER_S,
)
"""Costs behind HAProxy, from stack-costs.json.

The latency of a single request, without the ingress's own time, is divided equally among four hops.
"""
SERVE_PROXY = StackCosts(
    ingress=CpuCost(0.00537, 0.0000106, 0.00165),
    other=CpuCost(0.00664, 0.0000177, 0.00159),
    hop_s=0.00207,
    front_s=0.00207,
    tokenised_per_s=_TOKENISED_PER_S,
)
"""Costs behind Serve's own proxy, from stack-costs-serve-proxy.json."""
