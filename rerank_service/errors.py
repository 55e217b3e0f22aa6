"""Every error of the service, with the HTTP status and the code that a client receives.

The path of a request, and the errors that each step raises:

    client
      |  body      BodyTooLarge, UnsupportedMediaType, InvalidApiKey, RateLimited, InvalidRequest, UnknownModel
      v
    http           the ingress
      |  request   RequestTimedOut
      v
    routing        the ranker and the model router
      |  shards    ReplicaUnavailable, RequestTimedOut
      v
    replica        RequestTooLarge
      |  pairs     PairTooLong, QueryTooLong (tokenisation), QueueFull and WaitTooLong (admission)
      v
    scheduler
      |  batches   NonFiniteLogit, DeviceMemoryExhausted, EngineFailed, DeviceFailed
      v
    engine

    at start       ConfigError, CheckpointError
    batch jobs     BatchError

Errors are pickled between processes. Each `__init__` therefore passes all its arguments to `Exception.__init__`:
unpickling rebuilds the error from these arguments. Of HTTP, this module uses only the status.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self

__all__ = [
    "BatchError",
    "BodyTooLarge",
    "CheckpointError",
    "ConfigError",
    "DeviceFailed",
    "DeviceMemoryExhausted",
    "EngineFailed",
    "FieldProblem",
    "InvalidApiKey",
    "InvalidRequest",
    "Loc",
    "NonFiniteLogit",
    "PairTooLong",
    "QueryTooLong",
    "QueueFull",
    "RateLimited",
    "ReplicaUnavailable",
    "RequestTimedOut",
    "RequestTooLarge",
    "RerankError",
    "UnknownModel",
    "UnsupportedMediaType",
    "WaitTooLong",
    "dotted",
]

Loc = tuple[str | int, ...]
"""Path to a place in a request or a configuration: keys and indices, outermost first."""


def dotted(loc: Loc) -> str:
    """Formats a path for people, for example `passages[1].text`."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


class FieldProblem(NamedTuple):
    """One problem with a request: the path to the field, a message for people, and a code for programs."""

    loc: Loc
    message: str
    code: str


class ConfigError(Exception):
    """The configuration is invalid. Raised at start, never during a request."""


class CheckpointError(Exception):
    """A checkpoint cannot be found, verified or loaded. Raised when a replica loads the checkpoint."""


class BatchError(Exception):
    """The files of a batch job or an evaluation are invalid. Never raised in the service."""


class RerankError(Exception):
    """Base class of all errors that clients receive."""

    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    category: ClassVar[str] = "api_error"

    loc: Loc = ()
    """Path to the part of the request that the error concerns. Empty: no particular part."""
    retry_after_s: int | None = None
    """Seconds after which a retry makes sense. Null: a retry does not help."""
    message: str = "The service failed to answer this request; the service's log has the details"
    """Explanation of the error for people."""

    @property
    def problems(self) -> tuple[FieldProblem, ...]:
        """The problems with the request; at least one."""
        return (FieldProblem(self.loc, self.message, self.code),)

    def __str__(self) -> str:
        return self.message


class _BadRequest(RerankError):
    http_status = 400
    category = "invalid_request_error"


class _Overloaded(RerankError):
    http_status = 503
    category = "overloaded_error"


class InvalidRequest(_BadRequest):
    """The request is malformed."""

    code = "invalid_request"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        super().__init__(tuple(problems))
        self.message = "; ".join(problem.message for problem in problems)

    @property
    def problems(self) -> tuple[FieldProblem, ...]:
        return tuple(self.args[0])


class PairTooLong(_BadRequest):
    """A pair exceeds the model's window, and the request forbids truncation."""

    code = "pair_too_long"

    def __init__(
        self,
        index: int,
        num_tokens: int,
        max_tokens: int,
        num_windows: int = 1,
        passage_at: Loc | None = None,
        query_at: Loc = ("query", "text"),
        remedy: str = "truncate: END",
    ) -> None:
        """`num_windows` is the number of windows that together hold `max_tokens`. `passage_at` and `query_at` are the
        paths to the passage and the query in the body. If `passage_at` is null, the error names the path to passage
        `index` in NVIDIA's API. `remedy` is the field that permits truncation or more windows; it may be empty."""
        super().__init__(index, num_tokens, max_tokens, num_windows, passage_at, query_at, remedy)
        self.index = index
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens
        self.num_windows = num_windows
        passage_at = passage_at or ("passages", index, "text")
        self.loc = ("body", *passage_at)
        # The words up to the second number are NIM's own; clients match them.
        self.message = (
            f"Input length {num_tokens} exceeds maximum allowed token size {max_tokens} "
            f"({dotted(query_at)} with {dotted(passage_at)}); shorten the input{remedy and f', or send {remedy}'}"
        )

    def at(self, index: int) -> Self:
        """The same error, with `index` as the passage's index."""
        return type(self)(index, *self.args[1:])


class QueryTooLong(PairTooLong):
    """The query exceeds the model's window even with an empty passage, and the request forbids truncation."""

    code = "query_too_long"

    def __init__(self, index: int, num_tokens: int, max_tokens: int, query_at: Loc = ("query", "text")) -> None:
        """`index` is the index of a passage. The message does not name this passage, because every passage of the query
        causes this error. `num_tokens` counts the query and the model's prompt."""
        super().__init__(index, num_tokens, max_tokens)
        self.args = (index, num_tokens, max_tokens, query_at)
        self.loc = ("body", *query_at)
        self.message = (
            f"Input length {num_tokens} exceeds maximum allowed token size {max_tokens} "
            f"({dotted(query_at)} with the model's prompt, without any passage); shorten the query"
        )


class InvalidApiKey(RerankError):
    """The API key is missing or unknown."""

    http_status = 401
    code = "invalid_api_key"
    category = "authentication_error"
    loc = ("header", "authorization")

    def __init__(self, is_missing: bool) -> None:
        super().__init__(is_missing)
        self.is_missing = is_missing
        what = "Missing API key" if is_missing else "Invalid API key"
        self.message = f"{what}: send the header 'Authorization: Bearer <key>' with a valid key"


class UnknownModel(RerankError):
    """The service has no model with the requested name."""

    http_status = 404
    code = "model_not_found"
    category = "not_found_error"

    def __init__(self, model: str, served: Sequence[str], loc: Loc = ("body", "model")) -> None:
        super().__init__(model, tuple(served), loc)
        self.loc = loc
        self.message = (
            f"Unknown model {model[:200]!r}; this service has: {', '.join(served)}. "
            "Send one of these names, or add the name to models[].aliases"
        )


class BodyTooLarge(_BadRequest):
    """The body exceeds `limits.max_body_bytes`."""

    http_status = 413
    code = "body_too_large"
    loc = ("body",)

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self.message = (
            f"The body is larger than the limit of {max_bytes} bytes (limits.max_body_bytes); "
            "split it into smaller requests"
        )


class RequestTooLarge(_BadRequest):
    """The request has more tokens than a replica's queue can hold, even an empty queue."""

    http_status = 413
    code = "request_too_large"

    def __init__(self, num_tokens: int, max_tokens: int, field: str = "passages", remedy: str = "") -> None:
        """`field` has the tokens. If `remedy` is empty, the error advises to split `field`, a list of passages."""
        super().__init__(num_tokens, max_tokens, field, remedy)
        self.num_tokens, self.max_tokens = num_tokens, max_tokens
        self.loc = ("body", *field.split("."))
        self.message = (
            f"The request has about {num_tokens} tokens, more than the limit of {max_tokens} "
            f"(batching.max_queued_tokens); {remedy or f'split {field} over several requests'}"
        )


class RateLimited(RerankError):
    """The caller's per-minute quota is exhausted."""

    http_status = 429
    code = "rate_limited"
    category = "rate_limit_error"

    def __init__(self, what: str, per_minute: int, retry_after_s: int, remedy: str = "") -> None:
        """`what` is `requests` or `passages`. `remedy` is added to the message, for example ", or send fewer"."""
        super().__init__(what, per_minute, retry_after_s, remedy)
        self.what, self.per_minute = what, per_minute
        self.retry_after_s: int = retry_after_s
        self.message = (
            f"The quota of {per_minute} {what} per minute is exhausted; retry after {retry_after_s} s{remedy}"
        )


class UnsupportedMediaType(_BadRequest):
    """A header declares the body as something other than plain JSON."""

    http_status = 415
    code = "unsupported_media_type"

    def __init__(self, header: str, value: str, expected: str) -> None:
        super().__init__(header, value, expected)
        self.loc = ("header", header.lower())
        self.message = f"{header} is {value[:100]!r}; {expected}"


class QueueFull(_Overloaded):
    """A replica's queue has reached its limit."""

    code = "queue_full"

    def __init__(self, queued_tokens: int, max_queued_tokens: int, retry_after_s: int = 1) -> None:
        """`retry_after_s` is the time until the queue has room for the request, at the measured speed."""
        super().__init__(queued_tokens, max_queued_tokens, retry_after_s)
        self.queued_tokens = queued_tokens
        self.max_queued_tokens = max_queued_tokens
        self.retry_after_s: int = retry_after_s
        self.message = (
            f"The queue is full: {queued_tokens} tokens are queued, and the limit is {max_queued_tokens} "
            f"(batching.max_queued_tokens); retry after {retry_after_s} s"
        )


class WaitTooLong(_Overloaded):
    """The backlog is so long that this request, or a request accepted earlier, would miss its deadline."""

    code = "wait_too_long"

    def __init__(
        self, expected_s: float, time_s: float, reserve_s: float, is_another: bool, retry_after_s: int
    ) -> None:
        """`expected_s` is the estimated time until the answer, and `time_s` is the time until the deadline. The request
        is refused because `expected_s` exceeds `time_s - reserve_s`. If `is_another` is true, these
        times belong to a request accepted earlier. `retry_after_s` is the time until half of the current backlog is
        done, at the measured speed."""
        super().__init__(expected_s, time_s, reserve_s, is_another, retry_after_s)
        self.expected_s, self.time_s, self.reserve_s = expected_s, time_s, reserve_s
        self.retry_after_s: int = retry_after_s
        what = "accepting this request would make an earlier request take" if is_another else "this request would take"
        self.message = (
            f"The backlog is too long: {what} an estimated {expected_s:.3g} s. The time left until "
            f"its deadline is {time_s:.3g} s, of which {reserve_s:.3g} s is reserved in case the device slows down; "
            f"retry after {retry_after_s} s"
        )


class ReplicaUnavailable(_Overloaded):
    """The model has no running replica, or the replica stopped before it answered."""

    code = "replica_unavailable"
    retry_after_s: int = 1

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.message = f"No replica of {model!r} could finish the request; retry after {self.retry_after_s} s"


class RequestTimedOut(RerankError):
    """The request exceeded its deadline."""

    http_status = 504
    code = "request_timed_out"
    category = "timeout_error"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.message = (
            f"The request did not finish within {timeout_s:g} s and was dropped; send fewer passages, "
            "or try again later"
        )


class NonFiniteLogit(RerankError):
    """The model returned NaN or infinity, which cannot be ranked."""

    code = "non_finite_logit"

    def __init__(self, num_pairs: int, first: int = 0) -> None:
        """`first` is the index of the first affected pair, or of that pair's passage, in the caller's list."""
        super().__init__(num_pairs, first)
        self.num_pairs = num_pairs
        self.first = first
        self.message = (
            f"The model returned NaN or infinity for {num_pairs} pair(s) of this request; "
            "ask the operator to set engine.dtype: float32"
        )


class EngineFailed(RerankError):
    """The forward pass raised an error. The replica's log has the traceback."""

    code = "engine_failed"

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.message = f"The model failed on this request ({cause}); the replica's log has the details"


class DeviceFailed(_Overloaded, EngineFailed):
    """The replica's device is unusable until the replica's process is replaced. The request is not the cause."""

    code = "device_failed"
    retry_after_s: int = 5  # about the time that Serve takes to notice the failure

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.message = (
            f"The device of a replica failed ({cause}), and the replica is being replaced; "
            f"retry after {self.retry_after_s} s"
        )


class DeviceMemoryExhausted(RerankError):
    """A single pair does not fit in the device's memory."""

    code = "device_memory_exhausted"

    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.message = (
            f"A pair of {num_tokens} tokens does not fit in the device's memory; "
            "shorten the pair, or ask the operator to lower window_tokens"
        )
