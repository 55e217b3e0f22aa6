"""The service's Prometheus metrics, as one ingress process sees them.

Label values come from the configuration and from status codes, so their number is bounded.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

__all__ = ["IngressMetrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PASSAGES = (1, 2, 5, 10, 20, 50, 100, 200, 512, 1024)


class IngressMetrics:
    """Counters and histograms of the ranking routes, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rerank_requests", "Ranking requests answered.", ["model", "status"], registry=self.registry
        )
        self.passages = Counter("rerank_passages", "Passages ranked.", ["model"], registry=self.registry)
        self.tokens = Counter("rerank_tokens", "Tokens of ranked pairs.", ["model"], registry=self.registry)
        self.truncated = Counter(
            "rerank_truncated_pairs", "Pairs cut at the model's window.", ["model"], registry=self.registry
        )
        self.cache_hits = Counter(
            "rerank_passage_cache_hits",
            "Passages whose encoding a replica still had.",
            ["model"],
            registry=self.registry,
        )
        self.cache_misses = Counter(
            "rerank_passage_cache_misses",
            "Passages looked for in a replica's cache in vain.",
            ["model"],
            registry=self.registry,
        )
        self.request_passages = Histogram(
            "rerank_request_passages", "Passages a request.", ["model"], buckets=_PASSAGES, registry=self.registry
        )
        self.total_seconds = self._seconds("rerank_request_seconds", "From the parsed body to the ranking.")
        self.tokenise_seconds = self._seconds("rerank_tokenise_seconds", "Tokenising the slowest shard.")
        self.queue_seconds = self._seconds("rerank_queue_seconds", "Longest wait of a shard for the device.")
        self.forward_seconds = self._seconds(
            "rerank_forward_seconds", "From a shard's first batch to its last logit, the slowest shard's."
        )

    def _seconds(self, name: str, documentation: str) -> Histogram:
        return Histogram(name, documentation, ["model"], buckets=_SECONDS, registry=self.registry)

    def exposition(self) -> bytes:
        """Prometheus text, format 0.0.4."""
        return generate_latest(self.registry)
