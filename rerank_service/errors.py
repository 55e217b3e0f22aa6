"""Every error of the service, each with the HTTP status and the code it leaves with.

Where each is raised, along a request's path:

    ingress  -> BodyTooLarge, UnsupportedMediaType, InvalidRequest, InvalidApiKey, RateLimited, UnknownModel
    ranker   -> RequestTimedOut
    router   -> ReplicaUnavailable
    replica  -> RequestTooLarge, PairTooLong (tokenise), QueueFull, WaitTooLong (scheduler),
                NonFiniteLogit, DeviceMemoryExhausted, EngineFailed (forward), RequestTimedOut
    start-up -> ConfigError, CheckpointError
    offline  -> BatchError

An error crosses process boundaries pickled: every `__init__` hands all its arguments to
`Exception.__init__`, or it cannot be rebuilt on the other side. Nothing here knows HTTP beyond a number.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

__all__ = [
    "BatchError",
    "BodyTooLarge",
    "CheckpointError",
    "ConfigError",
    "DeviceMemoryExhausted",
    "EngineFailed",
    "FieldProblem",
    "InvalidApiKey",
    "InvalidRequest",
    "Loc",
    "NonFiniteLogit",
    "PairTooLong",
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


def dotted(loc: Loc) -> str:
    """A place in a body as people write it: `passages[1].text`."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


class FieldProblem(NamedTuple):
    """One thing that is wrong with a request: where it is, in words, and a code for programs."""

    loc: Loc
    message: str
    code: str


class ConfigError(Exception):
    """The configuration cannot be used. Raised at start, never during a request."""


class CheckpointError(Exception):
    """A checkpoint cannot be found, trusted or understood. Raised when a replica loads it."""


class BatchError(Exception):
    """Files of an offline batch or of an evaluation cannot be used. Never reaches a client of the service."""


class RerankError(Exception):
    """An error a client is told about."""

    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    category: ClassVar[str] = "api_error"

    @property
    def message(self) -> str:
        """One sentence for a person."""
        return "The service failed to answer; see its log."

    @property
    def problems(self) -> tuple[FieldProblem, ...]:
        """What is wrong and where; at least one."""
        return (FieldProblem((), self.message, self.code),)

    @property
    def retry_after_s(self) -> int | None:
        """Seconds after which a retry is sensible, or null if it is not."""
        return None

    def __str__(self) -> str:
        return self.message


class InvalidRequest(RerankError):
    """The request does not have the API's form."""

    http_status = 400
    code = "invalid_request"
    category = "invalid_request_error"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        super().__init__(tuple(problems))

    @property
    def problems(self) -> tuple[FieldProblem, ...]:
        return tuple(FieldProblem(*problem) for problem in self.args[0])

    @property
    def message(self) -> str:
        return "; ".join(problem.message for problem in self.problems)


class PairTooLong(RerankError):
    """Under `truncate: NONE`, a pair has more tokens than the model's window."""

    http_status = 400
    code = "pair_too_long"
    category = "invalid_request_error"

    def __init__(
        self,
        index: int,
        num_tokens: int,
        max_tokens: int,
        passage_at: Loc | None = None,
        query_at: Loc = ("query", "text"),
        way_out: str = "truncate: END",
    ) -> None:
        """`passage_at` and `query_at` are the texts' places in the request's body; null: passage `index` of NVIDIA's
        API. `way_out` is what to send to have the pair cut."""
        super().__init__(index, num_tokens, max_tokens, passage_at, query_at, way_out)
        self.index = index
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens
        self.passage_at = passage_at or ("passages", index, "text")
        self.query_at = query_at
        self.way_out = way_out

    @property
    def message(self) -> str:
        return (
            f"Input length {self.num_tokens} exceeds maximum allowed token size {self.max_tokens} "
            f"({dotted(self.query_at)} with {dotted(self.passage_at)}); shorten it, or send {self.way_out}"
        )

    @property
    def problems(self) -> tuple[FieldProblem, ...]:
        return (FieldProblem(("body", *self.passage_at), self.message, self.code),)


class InvalidApiKey(RerankError):
    """The bearer key is missing or not one of ours."""

    http_status = 401
    code = "invalid_api_key"
    category = "authentication_error"

    def __init__(self, is_missing: bool) -> None:
        super().__init__(is_missing)
        self.is_missing = is_missing

    @property
    def message(self) -> str:
        what = "Missing API key" if self.is_missing else "Invalid API key"
        return f"{what}: send the header 'Authorization: Bearer <key>' with a key of this service"

    @property
    def problems(self) -> tuple[FieldProblem, ...]:
        return (FieldProblem(("header", "authorization"), self.message, self.code),)


class UnknownModel(RerankError):
    """No model of that name is served."""

    http_status = 404
    code = "model_not_found"
    category = "not_found_error"

    def __init__(self, model: str, served: Sequence[str], loc: Loc = ("body", "model")) -> None:
        super().__init__(model, tuple(served), loc)
        self.model = model
        self.served = tuple(served)
        self.loc = loc

    @property
    def message(self) -> str:
        return f"Unknown model {self.model[:200]!r}; this service has: {', '.join(self.served)}"

    @property
    def problems(self) -> tuple[FieldProblem, ...]:
        return (FieldProblem(self.loc, self.message, self.code),)


class BodyTooLarge(RerankError):
    """The request's body is over the limit."""

    http_status = 413
    code = "body_too_large"
    category = "invalid_request_error"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self.max_bytes = max_bytes

    @property
    def message(self) -> str:
        return f"The body is larger than the limit of {self.max_bytes} bytes; send less text in a request"

    @property
    def problems(self) -> tuple[FieldProblem, ...]:
        return (FieldProblem(("body",), self.message, self.code),)


class RequestTooLarge(RerankError):
    """The request has more tokens than may ever wait in a replica's queue."""

    http_status = 413
    code = "request_too_large"
    category = "invalid_request_error"

    def __init__(self, num_tokens: int, max_tokens: int, field: str = "passages") -> None:
        """`field` is the body's name for its passages."""
        super().__init__(num_tokens, max_tokens, field)
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens
        self.field = field

    @property
    def message(self) -> str:
        return (
            f"The request has about {self.num_tokens} tokens, more than the {self.max_tokens} that may wait "
            "(batching.max_queued_tokens); send less text in a request"
        )

    @property
    def problems(self) -> tuple[FieldProblem, ...]:
        return (FieldProblem(("body", self.field), self.message, self.code),)


class RateLimited(RerankError):
    """The caller has used up what a minute allows."""

    http_status = 429
    code = "rate_limited"
    category = "rate_limit_error"

    def __init__(self, what: str, per_minute: int, retry_after_s: int) -> None:
        """`what` is counted: `requests` or `passages`."""
        super().__init__(what, per_minute, retry_after_s)
        self.what = what
        self.per_minute = per_minute
        self._retry_after_s = retry_after_s

    @property
    def message(self) -> str:
        return f"The limit of {self.per_minute} {self.what} a minute is reached; retry after {self._retry_after_s} s"

    @property
    def retry_after_s(self) -> int:
        """When the window has moved on far enough."""
        return self._retry_after_s


class UnsupportedMediaType(RerankError):
    """A header announces the body as something other than plain JSON."""

    http_status = 415
    code = "unsupported_media_type"
    category = "invalid_request_error"

    def __init__(self, header: str, value: str, expected: str) -> None:
        super().__init__(header, value, expected)
        self.header = header
        self.value = value
        self.expected = expected

    @property
    def message(self) -> str:
        return f"{self.header} is {self.value[:100]!r}; {self.expected}"

    @property
    def problems(self) -> tuple[FieldProblem, ...]:
        return (FieldProblem(("header", self.header.lower()), self.message, self.code),)


class QueueFull(RerankError):
    """A replica's queue is at its bound."""

    http_status = 503
    code = "queue_full"
    category = "overloaded_error"

    def __init__(self, queued_tokens: int, max_queued_tokens: int, retry_after_s: int = 1) -> None:
        super().__init__(queued_tokens, max_queued_tokens, retry_after_s)
        self.queued_tokens = queued_tokens
        self.max_queued_tokens = max_queued_tokens
        self._retry_after_s = retry_after_s

    @property
    def message(self) -> str:
        return (
            f"The queue is full ({self.queued_tokens} of {self.max_queued_tokens} tokens wait); "
            f"retry after {self.retry_after_s} s"
        )

    @property
    def retry_after_s(self) -> int:
        """When the replica will have worked off enough to take the request, at the speed measured."""
        return self._retry_after_s


class WaitTooLong(RerankError):
    """What waits at a replica already would keep the request past its deadline, or the request another past its own."""

    http_status = 503
    code = "wait_too_long"
    category = "overloaded_error"

    def __init__(
        self, expected_s: float, time_s: float, reserve_s: float, is_another: bool, retry_after_s: int
    ) -> None:
        """`expected_s` is the estimate that is too long for `time_s` less `reserve_s`: until the request would be
        answered or, if `is_another`, until one would be that was accepted before."""
        super().__init__(expected_s, time_s, reserve_s, is_another, retry_after_s)
        self.expected_s = expected_s
        self.time_s = time_s
        self.reserve_s = reserve_s
        self.is_another = is_another
        self._retry_after_s = retry_after_s

    @property
    def message(self) -> str:
        what = "The request would make an accepted one take" if self.is_another else "The request would take"
        return (
            f"{what} an estimated {self.expected_s:.3g} s with everything before it; its deadline is in "
            f"{self.time_s:.3g} s, of which {self.reserve_s:.3g} s are a reserve for a slower device; "
            f"retry after {self.retry_after_s} s"
        )

    @property
    def retry_after_s(self) -> int:
        """When half of what waits now will have been worked off, at the speed measured."""
        return self._retry_after_s


class ReplicaUnavailable(RerankError):
    """The replica that worked on the request is gone, or there is none."""

    http_status = 503
    code = "replica_unavailable"
    category = "overloaded_error"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    @property
    def message(self) -> str:
        return f"No replica of {self.model!r} could finish the request; retry after {self.retry_after_s} s"

    @property
    def retry_after_s(self) -> int:
        return 1


class RequestTimedOut(RerankError):
    """The request took longer than the service allows."""

    http_status = 504
    code = "request_timed_out"
    category = "timeout_error"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    @property
    def message(self) -> str:
        return f"The request was not ready within {self.timeout_s:g} s and was dropped; send less text in a request"


class NonFiniteLogit(RerankError):
    """The model gave NaN or infinity, which no ranking may hide."""

    code = "non_finite_logit"

    def __init__(self, num_pairs: int) -> None:
        super().__init__(num_pairs)
        self.num_pairs = num_pairs

    @property
    def message(self) -> str:
        return f"The model returned no finite logit for {self.num_pairs} pair(s) of this request"


class EngineFailed(RerankError):
    """The forward pass raised. The log of the replica has the traceback."""

    code = "engine_failed"

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    @property
    def message(self) -> str:
        return f"The model failed on this request ({self.cause}); the replica's log has the details"


class DeviceMemoryExhausted(RerankError):
    """One pair alone does not fit in the memory of the device."""

    code = "device_memory_exhausted"

    def __init__(self, num_tokens: int) -> None:
        super().__init__(num_tokens)
        self.num_tokens = num_tokens

    @property
    def message(self) -> str:
        return (
            f"A pair of {self.num_tokens} tokens does not fit in the device's memory; "
            "shorten it, or have the operator lower window_tokens"
        )
