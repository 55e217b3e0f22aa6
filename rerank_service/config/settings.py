"""Every setting of the service, in one tree, with its default and its meaning.

Attribute docstrings are the documentation and the JSON schema. This module must not import Ray, torch or
HTTP: the command line, the engine and a cluster's head node all read it.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from rerank_service.errors import ConfigError

__all__ = [
    "MODEL_IMPORT_PATH",
    "AuthConfig",
    "AutoscalingConfig",
    "BatchingConfig",
    "CheckpointConfig",
    "Device",
    "DialectName",
    "Dtype",
    "EngineConfig",
    "EngineKind",
    "IngressConfig",
    "LateInteractionHead",
    "LimitsConfig",
    "LogConfig",
    "ModelConfig",
    "PoolConfig",
    "Pooling",
    "RateLimitConfig",
    "ReplicaConfig",
    "RerankConfig",
    "ServiceConfig",
    "SpecialTokens",
    "TracingConfig",
    "YesNoPrompt",
    "load_config",
    "parse_config",
    "parse_model",
    "parse_serve_config",
    "readable_problems",
    "without_echoes",
]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_STORE_PATH = re.compile(r"[a-z][a-z0-9+.-]*://[^@:\s]+")  # credentials belong in the environment
_CONTENT = re.compile(r"[0-9a-f]{64}")

MODEL_IMPORT_PATH = "rerank_service.app:build_model"
"""Of a Serve application that has one model's replicas and nothing else."""


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


_ConfigT = TypeVar("_ConfigT", bound=_Config)


class EngineKind(StrEnum):
    """How a checkpoint turns a pair into a logit."""

    AUTO = "auto"
    BIDIRECTIONAL_DECODER = "bidirectional_decoder"
    SEQUENCE_CLASSIFIER = "sequence_classifier"
    LATE_INTERACTION = "late_interaction"
    YES_NO_DECODER = "yes_no_decoder"


class Pooling(StrEnum):
    """How a bidirectional decoder's token states become one vector; the names of the published checkpoints."""

    AVG = "avg"
    WEIGHTED_AVG = "weighted_avg"
    CLS = "cls"
    LAST = "last"


class Dtype(StrEnum):
    """Precision of the forward pass; pooling and the head are float32 always."""

    AUTO = "auto"
    FASTEST = "fastest"
    """`int8` where the processor has it, else `auto`."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    """Linear layers in 8-bit integers, on a CPU with AVX512-VNNI. Encoders are calibrated at load, on text that
    comes with the service; decoders measure every row instead."""
    FLOAT8 = "float8"
    """Linear layers in 8-bit floats (e4m3), on an Ada, Hopper or newer GPU."""


SpecialTokens = Literal["text", "parse"]

Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class CheckpointConfig(_Config):
    """Where a model's files are. Resolved when a replica starts, never during a request."""

    source: Annotated[str, Field(min_length=1)]
    """`package:NAME` (weights shipped in a Python package), a folder (starts with `/`, `.` or `~`), a hub id
    `organisation/name`, or a folder of an object store, like `s3://bucket/folder` (extra `objectstore`)."""

    revision: str | None = None
    """Commit of a hub id, 40 hex digits; for an object store the 64 that `rerank-service pull` prints. Required
    there: the weights would else change under a running cluster."""

    download: bool = True
    """Whether a replica that starts may fetch what its machine's cache does not have. False refuses, and says
    what to `rerank-service pull`."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Expected digest of `model.safetensors`, verified on load. Null checks only packages known to us."""

    @model_validator(mode="after")
    def _what_is_fetched_is_pinned(self) -> Self:
        if self.is_store_path:
            self._check_store_path()
        if not self.is_hub_id:
            return self
        if not _HUB_ID.fullmatch(self.source):
            raise ValueError(
                f"source {self.source!r} is neither 'package:NAME', a folder starting with '/', '.' or '~', "
                "a hub id 'organisation/name', nor a folder of an object store like 's3://bucket/folder'"
            )
        if self.revision is None or not _COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"hub checkpoint {self.source!r} needs revision: its 40-digit commit "
                f"(printed by `rerank-service pull {self.source}`)"
            )
        return self

    def _check_store_path(self) -> None:
        if not _STORE_PATH.fullmatch(self.source):
            raise ValueError(f"{self.source.partition('://')[0]}:// is to be followed by a path, without credentials")
        if self.revision is None or not _CONTENT.fullmatch(self.revision):
            raise ValueError(
                f"checkpoint {self.source!r} needs revision: the 64 digits that "
                f"`rerank-service pull {self.source}` prints"
            )

    @property
    def is_package(self) -> bool:
        return self.source.startswith("package:")

    @property
    def is_folder(self) -> bool:
        return self.source.startswith(("/", ".", "~"))

    @property
    def is_store_path(self) -> bool:
        return "://" in self.source

    @property
    def is_hub_id(self) -> bool:
        return not (self.is_package or self.is_folder or self.is_store_path)

    @property
    def is_fetched(self) -> bool:
        return self.is_hub_id or self.is_store_path


class LateInteractionHead(_Config):
    """`logit = cosine_weight * cosine + maxsim_weight * maxsim + bias`.

    The defaults were fitted for all-MiniLM-L6-v2, pointwise, on public question-passage groups.
    """

    cosine_weight: float = 6.42
    """Weight of the cosine of the mean-pooled query and passage vectors."""

    maxsim_weight: float = 9.83
    """Weight of MaxSim: the mean over query tokens of the best cosine with a passage token."""

    bias: float = -11.00
    """Added to the weighted sum."""


_PROMPT_SLOT = re.compile(r"\{[^{}]*\}")


class YesNoPrompt(_Config):
    """What a yes/no decoder is asked about a pair, and the words it answers with."""

    parts: Annotated[tuple[str, ...], Field(min_length=1)]
    """The prompt in parts that are tokenised each by itself, with `{query}`, `{passage}` and perhaps `{instruction}`
    in them. The part with the passage ends with it: a pair that is too long loses tokens there, and the parts that
    come after stay whole."""

    yes_word: Annotated[str, Field(min_length=1)]
    """The word for a relevant passage: one token of the model's. In YAML quoted: a bare yes is a boolean."""

    no_word: str | None = None
    """The word for an irrelevant one. Null: the logit is that of `yes_word` alone, not the difference of the two."""

    instruction: str | None = None
    """What stands for `{instruction}` unless the configuration says something else."""

    @model_validator(mode="after")
    def _slots_are_in_their_places(self) -> Self:
        slots = [slot for part in self.parts for slot in _PROMPT_SLOT.findall(part)]
        if unknown := set(slots) - {"{query}", "{passage}", "{instruction}"}:
            raise ValueError(f"parts have {', '.join(sorted(unknown))}; known: {{query}}, {{passage}}, {{instruction}}")
        if slots.count("{query}") != 1 or slots.count("{passage}") != 1:
            raise ValueError("parts need {query} once and {passage} once")
        if not any(part.endswith("{passage}") for part in self.parts):
            raise ValueError("the part with {passage} must end with it; what follows is a part of its own")
        if "{instruction}" in slots and self.instruction is None:
            raise ValueError("parts have {instruction}, so instruction must say what stands there by default")
        return self


class EngineConfig(_Config):
    """How the checkpoint is run. What is null is read from the checkpoint's own files."""

    kind: EngineKind = EngineKind.AUTO
    """Which engine; `auto` decides by the checkpoint's config.json."""

    device: Device = "auto"
    """`auto` takes CUDA if there is a GPU, else the CPU."""

    dtype: Dtype = Dtype.AUTO
    """`auto` takes bfloat16 where the hardware computes in it (a GPU; a CPU with AVX512-BF16 or AMX), else
    float32 on a CPU and float16 on a GPU. `fastest` may also quantise: measure what that does to your ranking."""

    num_threads: PositiveInt | None = None
    """Threads of a CPU forward. Null takes the replica's num_cpus; outside Ray, this process's CPUs."""

    cuda_graphs: bool = True
    """GPU, in bfloat16 and float16: replay batches of at most 2,048 tokens as captured CUDA graphs. A graph that fails
    or whose answers differ turns them off by itself, with a warning."""

    compile: bool = False
    """GPU: let torch.compile fuse each layer's elementwise work. Needs Triton; the first start takes about a
    minute longer."""

    special_tokens: SpecialTokens = "text"
    """What becomes of special tokens that a query or a passage spells out, such as `[SEP]` or `<|im_end|>`. `text`
    reads them as the characters they are, so that no passage can write a part of the prompt; `parse` reads them as
    special tokens, as transformers does by default. Templates and prompts are always parsed."""

    prompt_template: str | None = None
    """Bidirectional decoder: the text of a pair, with `{query}` and `{passage}`."""

    pooling: Pooling | None = None
    """Bidirectional decoder: pooling over the tokens of a pair."""

    temperature: PositiveFloat | None = None
    """Bidirectional decoder: the score is divided by it."""

    yes_no: YesNoPrompt | None = None
    """Yes/no decoder: its prompt and its two words. Null takes those its family was published with."""

    instruction: str | None = None
    """Yes/no decoder: what passages are judged by, if its prompt has a place for that. Null takes the published one."""

    head: LateInteractionHead = LateInteractionHead()
    """Late interaction: the linear head."""

    passage_cache_bytes: PositiveInt | None = None
    """Late interaction: memory of a replica for encodings of passages it has seen, for corpora whose passages
    come again; the least recently used go first. A passage of 128 tokens takes about 100 KB (384 dimensions,
    bfloat16). On a GPU it comes out of what batches may take. Null keeps none."""

    @model_validator(mode="after")
    def _template_has_both_slots(self) -> Self:
        template = self.prompt_template
        if template is not None and not ("{query}" in template and "{passage}" in template):
            raise ValueError("prompt_template needs both {query} and {passage}")
        return self


class BatchingConfig(_Config):
    """Live knobs of a replica (Serve's `user_config`): changed without a restart."""

    max_batch_tokens: PositiveInt | None = None
    """Most tokens of one forward pass; a pair longer than this is scored alone. Null takes 16,384 on a GPU and
    4,096 on a CPU, where larger batches are no faster."""

    min_batch_tokens: PositiveInt | None = None
    """While little waits, batches shrink to this, so that a small request does not wait long behind a large one.
    Null takes a quarter of max_batch_tokens."""

    collect_wait_ms: NonNegativeFloat = 0.0
    """Longest a call waits for company before it is tokenised, in milliseconds. Pairs meet in the scheduler
    anyway while the device is busy; raise it only to merge very many tiny requests."""

    collect_max_calls: PositiveInt = 32
    """Most calls that are collected together."""

    max_queued_tokens: PositiveInt = 4_194_304
    """Tokens that may wait for a replica's device; beyond, a call is refused with 503, and a request that is larger
    by itself with 413. The default holds 512 pairs of 8192 tokens."""


class ReplicaConfig(_Config):
    """What Ray gives each replica of a model."""

    num_cpus: NonNegativeFloat = 1
    """CPUs that Ray sets aside for a replica."""

    num_gpus: NonNegativeFloat = 0
    """GPUs of a replica; a fraction shares one GPU between replicas."""

    resources: dict[str, PositiveFloat] = {}
    """Custom Ray resources a replica takes, for instance `{"accelerator_type:H100": 0.01}`."""

    max_ongoing_requests: PositiveInt = 1_024
    """Shards one replica holds at a time; further ones wait at the ingress. What keeps their deadlines is the
    replica's own admission, by tokens: keep this above what it ever admits."""

    tokeniser_threads: PositiveInt = 2
    """Threads that tokenise, beside the one that runs the forward pass."""

    health_check_period_s: PositiveFloat = 1.0
    """How often Serve asks a replica whether it is well."""

    health_check_timeout_s: PositiveFloat = 3.0
    """Time it has to answer; after three failures in a row it is replaced, and what it had is scored elsewhere."""

    graceful_shutdown_timeout_s: PositiveFloat | None = None
    """Time a replica has to finish its work when it is scaled down or replaced. Null takes 15 s more than
    `limits.request_timeout_s`, or 75 s for a model with an application of its own, which does not see the limits."""


class AutoscalingConfig(_Config):
    """Serve's autoscaling of one model's replicas."""

    min_replicas: NonNegativeInt = 1
    """Fewest replicas; 0 lets an unused model go, at the price of a cold start."""

    max_replicas: PositiveInt = 1
    """Most replicas."""

    initial_replicas: NonNegativeInt | None = None
    """Replicas of a new deployment, kept for downscale_delay_s; null takes min_replicas. Deploying a change keeps the
    replicas there are."""

    target_utilisation: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the time a replica should be busy; the rest is room for bursts."""

    max_wait_s: PositiveFloat = 2.0
    """So many replicas are wanted that what waits is scored this long after new ones have started."""

    target_ongoing_requests: PositiveFloat = 4.0
    """Shards in flight per replica that are aimed at until a replica's speed is known."""

    upscale_delay_s: NonNegativeFloat = 1.0
    """Time for which more replicas must have been needed before they are added."""

    downscale_delay_s: NonNegativeFloat = 300.0
    """Time for which fewer must have done before replicas are removed; a GPU model is slow to bring back."""

    metrics_interval_s: PositiveFloat = 1.0
    """How often replicas and ingresses report their load."""

    look_back_period_s: PositiveFloat = 3.0
    """Tokens count as load if they arrive in most of this time, so that one large request adds no replica; keep it
    above metrics_interval_s."""

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        if self.look_back_period_s <= self.metrics_interval_s:
            raise ValueError("look_back_period_s must be above metrics_interval_s, or the scaling oscillates")
        return self


class ModelConfig(_Config):
    """One model variant: a name that clients send, and everything its replicas need."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    """Name clients send, for instance `nvidia/llama-3.2-nv-rerankqa-1b-v2`."""

    aliases: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Other names of the same model. Names are matched without regard to case."""

    checkpoint: CheckpointConfig
    """Its files."""

    window_tokens: Annotated[int, Field(ge=16)] | None = None
    """Longest pair in tokens. Null takes the tokenizer's model_max_length, or the model's positions."""

    engine: EngineConfig = EngineConfig()
    """How it runs."""

    batching: BatchingConfig = BatchingConfig()
    """Live knobs; sent to the replicas as `user_config`."""

    replica: ReplicaConfig = ReplicaConfig()
    """What Ray gives a replica."""

    autoscaling: AutoscalingConfig = AutoscalingConfig()
    """How many replicas there are."""

    application: str | None = None
    """Serve application that has its replicas (import path `rerank_service.app:build_model`), so that adding or
    changing a model restarts no other model's. Null puts them into the ingress's own application."""

    pool: str | None = None
    """Name of a pool whose replicas load it when it is asked for. It then has no replicas of its own."""

    @model_validator(mode="after")
    def _a_pool_has_the_replicas(self) -> Self:
        defaults = {"replica": ReplicaConfig(), "autoscaling": AutoscalingConfig(), "application": None}
        own = [name for name, default in defaults.items() if getattr(self, name) != default]
        if self.pool is not None and own:
            raise ValueError(f"a model in a pool has no {' or '.join(own)} of its own: set them on the pool")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The id, then the aliases."""
        return (self.id, *self.aliases)

    @property
    def deployment_name(self) -> str:
        """Name of its Serve deployment: a function of the id alone, so that YAML can address it."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", self.id)


class PoolConfig(_Config):
    """Replicas for many small models that are asked for now and then: each loads the models it needs."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=100)]
    """What models call it in `pool`."""

    models_per_replica: PositiveInt = 4
    """Models one replica has loaded at a time; the least recently used goes first. All of them must fit in its memory
    at once, with the one being loaded."""

    spread_above_tokens: PositiveInt = 65_536
    """A model is loaded on a further replica only while those that have it have more tokens outstanding than this:
    otherwise every replica would come to load every model, again and again."""

    replica: ReplicaConfig = ReplicaConfig()
    """What Ray gives a replica."""

    autoscaling: AutoscalingConfig = AutoscalingConfig()
    """How many replicas there are."""

    @property
    def deployment_name(self) -> str:
        """Name of its Serve deployment."""
        return f"pool_{self.name}"


class IngressConfig(_Config):
    """The HTTP replicas."""

    min_replicas: PositiveInt = 1
    """Fewest HTTP replicas."""

    max_replicas: PositiveInt = 1
    """Most HTTP replicas."""

    num_cpus: NonNegativeFloat = 0
    """CPUs that Ray sets aside for each. It parses JSON and waits, so 0 suits a laptop and 1 a cluster."""

    max_ongoing_requests: PositiveInt = 1_000
    """HTTP requests in flight in one ingress; further ones wait in the proxy."""

    max_queued_requests: PositiveInt = 1_000
    """Requests that wait in one proxy for an ingress; further ones are refused with 503."""

    shard_tokens: PositiveInt | None = None
    """Most estimated tokens of one shard: what a request is cut into and one replica scores in one call. Null takes
    16,384 for a model with GPUs and 4,096 for one without: a larger request goes to several replicas."""


class ServiceConfig(_Config):
    """The service as a whole."""

    default_model: str | None = None
    """Model of a request that names none. Null takes the first."""

    playground: bool = True
    """Whether `/` is a page to try the models on. It speaks the API like any client, with the caller's own key."""

    ingress: IngressConfig = IngressConfig()
    """The HTTP side."""


_REPLICA_MARGIN_S = 15.0
"""For the batch that runs at the deadline, and for Serve, which looks every two seconds whether a replica is done."""
_INGRESS_MARGIN_S = 50.0
"""For Serve's RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S (30 s unless set), in which a leaving ingress behind
HAProxy still accepts, the 15 s that http_options.request_timeout_s is above the limit, and 5 s."""


class LimitsConfig(_Config):
    """What a request may be; each is named in the error that refuses it."""

    max_passages: PositiveInt = 512
    """Passages of one request."""

    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    """Bytes of a request's body."""

    max_windows_per_passage: PositiveInt = 16
    """Windows that a request may have one long passage ranked in (`passage_windows`, Cohere's `max_chunks_per_doc`). 1
    turns windows off."""

    request_timeout_s: PositiveFloat = 60.0
    """Longest a request may take; then 504 and its work is dropped. LangChain and Haystack wait 60 s. A client can
    ask for less with the header `x-request-timeout-seconds`."""

    unknown_fields: Literal["reject", "ignore"] = "reject"
    """What happens to request fields that the API does not have: `reject` answers 400, as NIM 2.x does."""

    @property
    def replica_grace_s(self) -> float:
        """Time in which a replica that goes can finish everything it has accepted."""
        return self.request_timeout_s + _REPLICA_MARGIN_S

    @property
    def ingress_grace_s(self) -> float:
        """Time in which an ingress that goes can finish everything it has accepted."""
        return self.request_timeout_s + _INGRESS_MARGIN_S


class RateLimitConfig(_Config):
    """What one key may send in a minute; where no key is required, one address. Over it a client gets 429."""

    requests_per_minute: PositiveInt | None = None
    """Null: no limit."""

    passages_per_minute: PositiveInt | None = None
    """Null: no limit. What costs is passages, so this is the limit that protects a GPU."""

    storage: Annotated[str, Field(pattern=r"^(memory|redis|rediss|redis\+cluster|redis\+sentinel)://")] = "memory://"
    """Where the counts are kept: in each ingress by itself, or in Redis for all of them
    (`redis://host:6379/0`; needs the extra `redis`)."""


class AuthConfig(_Config):
    """Bearer keys. With neither source set the service is open."""

    keys_env: str = "RERANK_SERVICE_API_KEYS"
    """Environment variable with the accepted keys, comma-separated. Unset or empty means none there."""

    key_hashes_file: Path | None = None
    """File with the SHA-256 of one accepted key a line, in hex; `#` starts a comment. Re-read when it
    changes. Once set, a key is required, even while the file is empty."""


class DialectName(StrEnum):
    """A vendor's reranking API that is spoken besides NVIDIA's own; routes and fields are in docs/dialects.md."""

    JINA = "jina"
    COHERE = "cohere"
    VLLM = "vllm"
    INFINITY = "infinity"
    TEI = "tei"
    """Hugging Face's text-embeddings-inference."""
    VOYAGE = "voyage"


class LogConfig(_Config):
    """What is written down of requests: sizes, times and codes, never text."""

    access_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the answered rankings that leave a line in the ingress's log; refusals and failures always do."""


class TracingConfig(_Config):
    """OpenTelemetry traces; needs the extra `tracing`."""

    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Where a collector takes OTLP over HTTP, for instance `http://127.0.0.1:4318/v1/traces`. Null: no traces. Its
    headers, such as a key, come from the environment variable OTEL_EXPORTER_OTLP_HEADERS."""

    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of requests that are traced; one that comes with a W3C `traceparent` follows its flag instead."""

    service_name: Annotated[str, Field(min_length=1)] = "rerank-service"
    """What traces call this service."""


class RerankConfig(_Config):
    """The whole configuration: the `args` of the Serve application."""

    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    """The models served."""

    pools: tuple[PoolConfig, ...] = ()
    """Replicas that models share; see `models[].pool`."""

    service: ServiceConfig = ServiceConfig()
    """The service as a whole."""

    limits: LimitsConfig = LimitsConfig()
    """What a request may be."""

    auth: AuthConfig = AuthConfig()
    """Who may send one."""

    rate_limits: RateLimitConfig = RateLimitConfig()
    """How many a caller may send."""

    dialects: tuple[DialectName, ...] = tuple(DialectName)
    """Other vendors' APIs that are spoken. On a path that several share, a request that could be of any of them is
    answered in the one listed first."""

    logs: LogConfig = LogConfig()
    """What is written down of them."""

    tracing: TracingConfig = TracingConfig()
    """Where traces go."""

    @model_validator(mode="after")
    def _names_are_unambiguous(self) -> Self:
        owners: dict[str, str] = {}
        for model in self.models:
            for name in model.names:
                owner = owners.setdefault(name.casefold(), model.id)
                if owner != model.id:
                    raise ValueError(f"name {name!r} belongs to both {owner!r} and {model.id!r}")
        if len({model.id for model in self.models}) < len(self.models):
            raise ValueError("two models have the same id")
        hosts: tuple[ModelConfig | PoolConfig, ...] = (*self.models, *self.pools)
        deployments = [host.deployment_name for host in hosts]
        if len(set(deployments)) < len(deployments):
            raise ValueError("two models or pools have names that give the same deployment name; rename one")
        default = self.service.default_model
        if default is not None and default.casefold() not in owners:
            raise ValueError(f"service.default_model {default!r} is not among models: {sorted(owners)}")
        return self

    @model_validator(mode="after")
    def _dialects_are_listed_once(self) -> Self:
        if len(set(self.dialects)) < len(self.dialects):
            raise ValueError("dialects lists one twice")
        return self

    @model_validator(mode="after")
    def _pools_exist_and_are_used(self) -> Self:
        known, used = {pool.name for pool in self.pools}, {model.pool for model in self.models if model.pool}
        if missing := used - known:
            raise ValueError(f"models name a pool that is not among pools: {', '.join(sorted(missing))}")
        if unused := known - used:
            raise ValueError(f"pools has one that no model names: {', '.join(sorted(unused))}")
        return self

    @model_validator(mode="after")
    def _largest_request_can_pass(self) -> Self:
        per_minute, largest = self.rate_limits.passages_per_minute, self.limits.max_passages
        if per_minute is not None and per_minute < largest:
            raise ValueError(
                f"rate_limits.passages_per_minute {per_minute} is below limits.max_passages {largest}: "
                "the largest request could never pass"
            )
        return self

    @model_validator(mode="after")
    def _models_apart_have_time_to_finish(self) -> Self:
        limit_s, default_s = self.limits.request_timeout_s, LimitsConfig().replica_grace_s
        for model in self.models:
            is_default = model.replica.graceful_shutdown_timeout_s is None
            if model.application is not None and is_default and limit_s >= default_s:
                raise ValueError(
                    f"model {model.id!r} has an application of its own and needs "
                    f"replica.graceful_shutdown_timeout_s above limits.request_timeout_s {limit_s:g}: a replica that "
                    f"is replaced would be stopped after {default_s:g} s, and its requests scored again"
                )
        return self

    def models_of(self, pool: PoolConfig) -> tuple[ModelConfig, ...]:
        """Those that the pool's replicas load."""
        return tuple(model for model in self.models if model.pool == pool.name)

    @property
    def probed_models(self) -> tuple[ModelConfig, ...]:
        """Those that must have scored a pair before the service is ready: all that always have replicas, and one of
        each pool that has. The others are started or loaded when they are asked for.
        """
        own = [model for model in self.models if model.pool is None and model.autoscaling.min_replicas]
        pooled = [self.models_of(pool)[0] for pool in self.pools if pool.autoscaling.min_replicas]
        return (*own, *pooled)

    def replica_of(self, model: ModelConfig) -> ReplicaConfig:
        """What the replicas have that score a model: its own or its pool's."""
        return next((pool.replica for pool in self.pools if pool.name == model.pool), model.replica)

    def shard_tokens_of(self, model: ModelConfig) -> int:
        """`service.ingress.shard_tokens`, or what suits the model's hardware."""
        return self.service.ingress.shard_tokens or (16_384 if self.replica_of(model).num_gpus else 4_096)

    @property
    def default_model_id(self) -> str:
        """Name of the model that serves a request without one."""
        return self.service.default_model or self.models[0].id


def parse_config(args: dict[str, Any]) -> RerankConfig:
    """Validates the `args` of a Serve application; raises `ConfigError` with one line a problem."""
    return _parse(RerankConfig, args)


def parse_model(args: dict[str, Any]) -> ModelConfig:
    """Validates the `args` of a model's own application; raises `ConfigError` with one line a problem."""
    return _parse(ModelConfig, args)


def _parse(kind: type[_ConfigT], args: dict[str, Any]) -> _ConfigT:
    try:
        return kind.model_validate(args)
    except ValidationError as error:
        raise ConfigError(readable_problems(error)) from None


def load_config(path: Path) -> RerankConfig:
    """Reads the settings out of a Serve configuration file, as `parse_serve_config` does.

    Raises `ConfigError`, also if the file is missing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    return parse_serve_config(text, str(path))


def parse_serve_config(text: str, source: str) -> RerankConfig:
    """The settings in a Serve configuration, held against those of models' own applications.

    Raises `ConfigError`, which calls it `source`, if it is no such configuration or its settings are wrong.
    """
    try:
        applications = yaml.safe_load(text)["applications"]
        apart = {one["name"]: one["args"] for one in applications if one.get("import_path") == MODEL_IMPORT_PATH}
        args = next(one["args"] for one in applications if one.get("import_path") != MODEL_IMPORT_PATH)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read {source}: {error}") from None
    except (AttributeError, KeyError, StopIteration, TypeError):
        raise ConfigError(f"{source} is no Serve configuration: it has no application with args") from None
    config = parse_config(args)
    _check_applications(config, {name: parse_model(model) for name, model in apart.items()})
    return config


def _check_applications(config: RerankConfig, apart: Mapping[str, ModelConfig]) -> None:
    """Raises `ConfigError` unless each model is told the same in both places."""
    for model in config.models:
        if model.application is not None:
            other = apart.get(model.application)
            if other is None or other != model.model_copy(update={"application": None}):
                raise ConfigError(
                    f"model {model.id!r}: application {model.application!r} must be in this file, with the import path "
                    f"{MODEL_IMPORT_PATH}, and its args must be the model's own (a YAML anchor keeps them equal)"
                )
    if unused := apart.keys() - {model.application for model in config.models}:
        raise ConfigError(f"no model names the application {', '.join(sorted(unused))}: set models[].application")


def readable_problems(error: ValidationError) -> str:
    """One line a problem: where, what, and what was given."""
    lines = []
    for problem in without_echoes(error.errors(include_url=False)):
        where = ".".join(str(part) for part in problem["loc"]) or "configuration"
        given = "" if isinstance(problem["input"], dict | list | tuple | BaseModel) else f", not {problem['input']!r}"
        lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}{given}")
    return "\n".join(lines)


def without_echoes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leaves out that a list is too short where that only follows from its entries being wrong."""
    owners = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    return [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in owners]
