"""Settings of the service around its models: HTTP, limits, keys, rate limits, compatible APIs, logs and traces."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rerank_service.config.section import Section

__all__ = [
    "AuthConfig",
    "DialectName",
    "IngressConfig",
    "LimitsConfig",
    "LogConfig",
    "PathConfig",
    "PrivateRoute",
    "RankingPath",
    "RateLimitConfig",
    "ServiceConfig",
    "TracingConfig",
]


class IngressConfig(Section):
    """The ingress: replicas that answer HTTP requests and send the requests' pairs to the models' replicas."""

    min_replicas: PositiveInt = 1
    """Minimum number of ingress replicas. With two or more, requests do not wait while one replica restarts."""

    max_replicas: PositiveInt = 1
    """Maximum number of ingress replicas. Raise it if the CPU time of one replica, spent mostly on JSON, limits
    throughput."""

    num_cpus: NonNegativeFloat = 0
    """CPUs reserved for each ingress replica. An ingress parses JSON and otherwise waits: 0 suits a laptop, and 1 a
    cluster."""

    max_ongoing_requests: PositiveInt = 1_000
    """Maximum number of HTTP requests in flight in one ingress replica; further requests wait in the proxy."""

    max_queued_requests: PositiveInt = 1_000
    """Maximum number of requests that wait in one proxy for an ingress replica; further requests are refused with
    503."""

    shard_tokens: PositiveInt | None = None
    """Maximum estimated tokens in one shard, the part of a request that a replica scores in one call. A larger request
    is split over several replicas. Null: 16,384 for a model with GPUs and 4,096 for a model without GPUs, a full batch
    in each case."""


class ServiceConfig(Section):
    """General settings of the service."""

    default_model: str | None = None
    """Model that answers requests without a `model`: an id or an alias. Null: the first model in `models`."""

    playground: bool = True
    """Whether `/` serves a web page for trying the models. The page uses the API like any client, with the caller's own
    key."""

    cors_allow_origins: tuple[Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s]+)$")], ...] = ()
    """Origins of web pages on other hosts that may call the API from a browser, for instance `https://app.example.com`,
    or `*` for all. An origin has no path. Cookies are never used. Empty: only the playground may call the API."""

    ingress: IngressConfig = IngressConfig()
    """The replicas that answer HTTP requests."""


_REPLICA_MARGIN_S = 15.0
"""Time for the batch that runs at the deadline, and for Serve's next check whether the replica is idle. Serve checks
every two seconds."""
_INGRESS_MARGIN_S = 50.0
"""The sum of 30 s, 15 s and 5 s. Behind HAProxy, a stopping ingress still accepts requests for 30 s (the default of
RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S); http_options.request_timeout_s is 15 s longer than the service's time
limit; 5 s are a reserve."""


class LimitsConfig(Section):
    """Limits of a single request. The error that refuses a request names the limit."""

    max_passages: PositiveInt = 512
    """Maximum number of passages in a request of NVIDIA's API."""

    max_documents: PositiveInt | None = None
    """Maximum number of documents in a request of another vendor's API. Null: `max_passages`, or 1,000 if
    `max_passages` has its default, because clients of Cohere, Jina and Voyage send up to 1,000; never more than
    `rate_limits.passages_per_minute`."""

    truncate: Literal["NONE", "END"] | None = None
    """What happens to a query and passage that together exceed the model's window, if the request does not say it.
    `END`: they are truncated. `NONE`: the request is refused. Null: what the API specifies; vLLM's APIs refuse, and all
    others truncate."""

    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    """Largest request body, in bytes."""

    max_windows_per_passage: PositiveInt = 16
    """Maximum number of windows into which a request may split a long passage (`passage_windows`, or
    `max_chunks_per_doc` in Cohere's API). 1 turns windows off."""

    max_explained_passages: NonNegativeInt = 10
    """Maximum number of passages that a request may have explained (`explain.top_n`). An explanation scores the passage
    once more, or up to 16 times, once without each sentence. 0 turns explanations off."""

    request_timeout_s: PositiveFloat = 60.0
    """Maximum time in seconds for a request; after that the service answers 504 and drops the remaining work. A client
    can set a shorter limit with the header `x-request-timeout-seconds`. The default is the timeout of LangChain's and
    Haystack's clients."""

    unknown_fields: Literal["reject", "ignore"] = "ignore"
    """What happens to a request with fields that the API does not have. `ignore`: the fields are dropped, and the
    response header `x-ignored-fields` names them. `reject`: the request is refused, as in NIM 2.x; the APIs of vLLM,
    Infinity and text-embeddings-inference still ignore the fields, as their own servers do."""

    @property
    def replica_grace_s(self) -> float:
        """Longest time in seconds that a stopping replica needs to finish its accepted work."""
        return self.request_timeout_s + _REPLICA_MARGIN_S

    @property
    def ingress_grace_s(self) -> float:
        """Longest time in seconds that a stopping ingress needs to finish its accepted work."""
        return self.request_timeout_s + _INGRESS_MARGIN_S


class RateLimitConfig(Section):
    """Per-minute quotas of each API key, or of each client address where no key is required. Requests over a quota are
    refused with 429."""

    requests_per_minute: PositiveInt | None = None
    """Maximum requests per minute. Null: unlimited."""

    passages_per_minute: PositiveInt | None = None
    """Maximum passages per minute. Cost grows with the number of passages, so this quota protects a GPU. It must be at
    least `limits.max_passages`. Null: unlimited."""

    storage: Annotated[str, Field(pattern=r"^(memory|redis|rediss|redis\+cluster|redis\+sentinel)://")] = "memory://"
    """Where the counts are kept. `memory://`: separately in each ingress replica. `redis://host:6379/0`: in Redis,
    shared by all ingress replicas; needs the extra `redis`."""

    storage_password_env: str = "RERANK_SERVICE_REDIS_PASSWORD"  # noqa: S105, a name
    """Environment variable of the ingresses that holds the password of `storage`, so that the configuration contains no
    secret; read at start. Unset or empty: no password, or the one in `storage`."""


class PrivateRoute(StrEnum):
    """Routes of `auth.private_routes`."""

    METRICS = "metrics"
    METADATA = "metadata"


class AuthConfig(Section):
    """API keys that clients send as bearer tokens or in other headers. Without keys, the service answers everyone."""

    keys_env: str = "RERANK_SERVICE_API_KEYS"
    """Environment variable that holds the accepted keys, separated by commas; read at start. An unset or empty variable
    adds no keys."""

    key_hashes_file: Path | None = None
    """File with the accepted keys' SHA-256 digests in hex, one per line; `#` starts a comment. The file is read again
    whenever it changes. While this setting names a file, every request needs a key, even if the file is empty. Null: no
    file."""

    key_hashes: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    """SHA-256 digests of accepted keys, in hex. A new key takes effect when the configuration is deployed again."""

    private_routes: tuple[PrivateRoute, ...] = ()
    """Routes that need a key too: `metrics` (`/metrics`, `/v1/metrics`) and `metadata` (`/v1/metadata`, `/v1/manifest`,
    which name the sources of the models). By default they need none, because scrapers and platforms have none."""

    key_headers: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")], ...] = ("x-api-key", "api-key")
    """Headers that may contain a key, in addition to `Authorization: Bearer KEY`. A request needs a valid key in only
    one of the headers, and its quotas are those of this key."""


class DialectName(StrEnum):
    """A compatible reranking API that is served in addition to NVIDIA's; docs/dialects.md lists the routes and
    fields."""

    JINA = "jina"
    COHERE = "cohere"
    VLLM = "vllm"
    INFINITY = "infinity"
    TEI = "tei"
    VOYAGE = "voyage"


class RankingPath(StrEnum):
    """A path of ranking requests; `/v1/ranking` also stands for NVIDIA's hosted URLs."""

    RANKING = "/v1/ranking"
    RERANK = "/rerank"
    V1_RERANK = "/v1/rerank"
    V2_RERANK = "/v2/rerank"
    SCORE = "/score"
    V1_SCORE = "/v1/score"


class PathConfig(Section):
    """What one path does differently. Where two vendors' APIs share a path and contradict each other, these settings
    decide."""

    prefer: DialectName | None = None
    """The API that answers requests that are valid in several APIs. Null: the first of `dialects` that has the path."""

    documents: Literal["object", "string"] = "object"
    """Form of `results[].document` in Jina's and Cohere's APIs. `object`: the object that was sent, or `{"text": ...}`
    for a string. `string`: the text, as in Jina's API since October 2025."""

    truncate: Literal["NONE", "END"] | None = None
    """As `limits.truncate`, for this path. Null: `limits.truncate` applies."""


class LogConfig(Section):
    """Access log of the ingress. It records sizes, times and codes, never text."""

    access_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of successful rankings that are logged, from 0 to 1. Refused and failed requests are always logged."""


class TracingConfig(Section):
    """OpenTelemetry traces; needs the extra `tracing`."""

    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """URL at which a collector accepts OTLP over HTTP, for instance `http://127.0.0.1:4318/v1/traces`. Headers, such as
    a key, come from the environment variable OTEL_EXPORTER_OTLP_HEADERS. Null: no traces."""

    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of requests that are traced, from 0 to 1. A request with a W3C `traceparent` header follows the header's
    sampling flag instead."""

    service_name: Annotated[str, Field(min_length=1)] = "rerank-service"
    """Service name in the traces."""
