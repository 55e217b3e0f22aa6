"""Settings of a model's replicas: their batching, their resources in Ray, and their number."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rerank_service.config.section import Section

__all__ = ["AutoscalingConfig", "BatchingConfig", "ReplicaConfig", "default_batch_tokens", "default_min_batch_tokens"]


def default_batch_tokens(*, on_gpu: bool) -> int:
    """Default number of tokens in a full batch and in a shard. Larger batches are no faster on this kind of device."""
    return 16_384 if on_gpu else 4_096


def default_min_batch_tokens(max_batch_tokens: int) -> int:
    """The default of `batching.min_batch_tokens`."""
    return max(1, max_batch_tokens // 4)


class BatchingConfig(Section):
    """How a replica forms batches. These settings are applied to running replicas without a restart (Serve's
    `user_config`)."""

    max_batch_tokens: PositiveInt | None = None
    """Maximum tokens in one forward pass. A longer pair is scored alone. Null: 16,384 on a GPU and 4,096 on a CPU;
    larger batches are no faster. Lower it if the device runs out of memory."""

    min_batch_tokens: PositiveInt | None = None
    """Maximum tokens in one forward pass while the queue is short; up to twice as many if four pairs of average length
    need them. This maximum grows with the queue, up to `max_batch_tokens`. Short batches let a small request start soon
    behind a large one; large batches raise the throughput under load. Null: a quarter of `max_batch_tokens`."""

    collect_wait_ms: NonNegativeFloat = 0.0
    """Longest time in milliseconds that a call waits before tokenisation for other calls to join it. At the default of
    0, only calls that arrive together are collected. The queue then forms batches from the pairs of all calls. Raise it
    only for a very large number of tiny requests."""

    collect_max_calls: PositiveInt = 32
    """Maximum number of calls tokenised together. The default suits nearly all loads."""

    max_queued_tokens: PositiveInt = 4_194_304
    """Maximum tokens in a replica's queue. Calls beyond this limit are refused with 503, and a request that exceeds it
    on its own is refused with 413. The default holds 512 pairs of 8,192 tokens."""


class ReplicaConfig(Section):
    """Resources that Ray reserves for each replica of a model, and how Serve supervises it."""

    num_cpus: NonNegativeFloat = 1
    """CPUs reserved for each replica. A CPU forward pass also uses this number of threads, unless `engine.num_threads`
    is set."""

    num_gpus: NonNegativeFloat = 0
    """GPUs reserved for each replica. A fraction such as 0.5 lets several replicas share a GPU; each replica uses only
    its fraction of the memory."""

    resources: dict[str, PositiveFloat] = {}  # noqa: RUF012 - pydantic copies the default
    """Custom Ray resources reserved for each replica, for instance `{"accelerator_type:H100": 0.01}` to place it on a
    node with that GPU."""

    max_ongoing_requests: PositiveInt = 1_024
    """Maximum number of shards sent to one replica at a time; further shards wait at the ingress. Replicas already
    limit their queues by tokens and deadlines, so keep this number above the number of shards that a queue can hold."""

    tokeniser_threads: PositiveInt = 2
    """Number of tokenising threads, in addition to the thread that runs the forward pass. Raise it if the device is
    idle while texts wait for tokenisation."""

    health_check_period_s: PositiveFloat = 1.0
    """Seconds between two health checks of a replica. Lower it to replace failed replicas sooner."""

    health_check_timeout_s: PositiveFloat = 3.0
    """Seconds a replica has to answer a health check. After three failures in a row, Serve replaces the replica, and
    another replica scores the failed replica's shards."""

    graceful_shutdown_timeout_s: PositiveFloat | None = None
    """Seconds a replica has to finish its work before it is stopped, when it is scaled down or replaced. Null: 15 s
    more than `limits.request_timeout_s`, or 75 s for a model with its own application, where `limits` are unknown."""


class AutoscalingConfig(Section):
    """How Serve scales the number of a model's replicas."""

    min_replicas: NonNegativeInt = 1
    """Minimum number of replicas. With 0, an idle model has no replicas, and its next request waits for a cold
    start."""

    max_replicas: PositiveInt = 1
    """Maximum number of replicas. Raise it to let the model scale out under load."""

    initial_replicas: NonNegativeInt | None = None
    """Replicas that a new deployment starts with and keeps for at least `downscale_delay_s`. Null: `min_replicas`. A
    changed deployment keeps its current number of replicas."""

    target_utilisation: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the time that a replica should be busy. The rest is headroom for bursts. Lower this share for lower
    latency; raise it for fewer replicas."""

    max_wait_s: PositiveFloat = 2.0
    """Target time in seconds to clear the backlog once new replicas are up. Raise it for fewer replicas in a burst."""

    target_ongoing_requests: PositiveFloat = 4.0
    """Target number of shards in flight per replica, used until the autoscaler knows a replica's speed."""

    upscale_delay_s: NonNegativeFloat = 1.0
    """Seconds for which more replicas must be needed before they are added. Raise it if short peaks start replicas that
    are soon idle."""

    downscale_delay_s: NonNegativeFloat = 300.0
    """Seconds for which fewer replicas must suffice before some are removed. Keep it long for a GPU model, which starts
    slowly."""

    metrics_interval_s: PositiveFloat = 1.0
    """Seconds between two load reports of a replica or an ingress."""

    look_back_period_s: PositiveFloat = 3.0
    """Seconds over which the arrival rate is measured. Tokens count as load only if they arrive during most of this
    period, so that a single large request adds no replica. Must be greater than `metrics_interval_s`."""

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is greater than max_replicas {self.max_replicas}")
        if self.look_back_period_s <= self.metrics_interval_s:
            raise ValueError(
                f"look_back_period_s {self.look_back_period_s:g} must be greater than metrics_interval_s "
                f"{self.metrics_interval_s:g}, or the number of replicas oscillates"
            )
        return self
