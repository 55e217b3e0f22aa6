"""Tests both clients over HTTP, against the real application and against a scripted server."""

import asyncio
import dataclasses
import math
import pickle
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest

from rerank_service import client as client_package
from rerank_service.client import (
    ApiError,
    AsyncClient,
    AuthenticationError,
    Client,
    ConnectionFailed,
    DeadlineExceededError,
    ErrorDetail,
    Explanation,
    InvalidRequestError,
    ModelNotFoundError,
    PassageWindows,
    RankedPassage,
    Ranking,
    RateLimitedError,
    RerankClientError,
    ServiceUnavailableError,
    Span,
    TokenMatch,
    Usage,
)
from rerank_service.client.retries import Deadline
from rerank_service.engine import Truncate, load_engine
from tests.http_servers import BREAK_OFF, HANG, Reply, error, ranking, running, scripted
from tests.local_service import LocalReplica, local_api
from tests.models import NASTY_PASSAGES, local_model

KEY = "nvapi-of-this-test"
PASSAGES = ["one", "two and more", "three"]

Rank = Callable[..., Ranking]


def _rank(url: str | None, *arguments: Any, settings: dict[str, Any] | None = None, **options: Any) -> Ranking:
    with Client(url, **settings or {}) as client:
        return client.rank(*arguments, **options)


def _rank_async(url: str | None, *arguments: Any, settings: dict[str, Any] | None = None, **options: Any) -> Ranking:
    async def ranked() -> Ranking:
        async with AsyncClient(url, **settings or {}) as client:
            return await client.rank(*arguments, **options)

    return asyncio.run(ranked())


@pytest.fixture(params=[_rank, _rank_async], ids=["Client", "AsyncClient"])
def rank(request: pytest.FixtureRequest) -> Rank:
    """Calls `rank` once with a new client, synchronous or asynchronous."""
    ranked: Rank = request.param
    return ranked


@pytest.fixture(scope="module")
def replica(checkpoints: dict[str, Path]) -> LocalReplica:
    return LocalReplica(local_model(checkpoints["llama_bidirec"], window_tokens=64))


@pytest.fixture(scope="module")
def url(checkpoints: dict[str, Path], replica: LocalReplica) -> Iterator[str]:
    """The application with one small model and a limit of 8 passages per request."""
    model = local_model(checkpoints["llama_bidirec"], window_tokens=64)
    with running(local_api([model], {model.id: replica}, limits={"max_passages": 8})) as url:
        yield url


@pytest.fixture(scope="module")
def logits(checkpoints: dict[str, Path]) -> Callable[[list[str]], list[float]]:
    """Logits of passages for the query `q`, with each pair scored alone."""
    engine = load_engine(local_model(checkpoints["llama_bidirec"], window_tokens=64))

    def scored(passages: list[str]) -> list[float]:
        return [engine.score([pair])[0] for pair in engine.tokenise("q", passages, Truncate.END)]

    return scored


def test_the_ranking_has_every_passage_with_its_logit(
    rank: Rank, url: str, logits: Callable[[list[str]], list[float]]
) -> None:
    passages = NASTY_PASSAGES[:8]

    ranked = rank(url, "q", passages)

    expected = logits(passages)
    assert [passage.index for passage in ranked] == sorted(range(8), key=lambda index: (-expected[index], index))
    assert all(passage.text == passages[passage.index] for passage in ranked)
    assert [passage.logit for passage in ranked] == pytest.approx([expected[p.index] for p in ranked], abs=1e-5)
    assert ranked.usage.total_tokens == ranked.usage.prompt_tokens > 0
    assert set(ranked.timings_ms) == {"parse", "tokenise", "queue", "forward", "total"}


def test_requests_can_be_compressed(rank: Rank, url: str) -> None:
    passages = NASTY_PASSAGES[:8]

    compressed = rank(url, "q", passages, settings={"compress_requests": True})

    assert [passage.logit for passage in compressed] == [passage.logit for passage in rank(url, "q", passages)]
    with scripted(ranking([1.0])) as server:
        rank(server.url, "q", ["one " * 1000], settings={"compress_requests": True})
    assert server.seen[0].headers["content-encoding"] == "gzip"
    assert int(server.seen[0].headers["content-length"]) < 1000


def test_the_best_passages_are_explained_by_their_sentences(rank: Rank, url: str) -> None:
    passages = ["One.", "First here. Then there.", "Third! And more. And more still."]

    ranked = rank(url, "q", passages, explain=2)

    best, second, third = ranked
    assert third.explanation is None
    for passage in (best, second):
        assert passage.explanation is not None
        assert (passage.explanation.method, passage.explanation.is_approximate) == ("leave_one_sentence_out", True)
        assert passage.explanation.matches == ()
        texts = [part.span.of(passage.text) for part in passage.explanation.sentences]
        assert " ".join(texts) == passage.text
        assert all((part.contribution is None) == (len(texts) == 1) for part in passage.explanation.sentences)


def test_token_matches_are_read(rank: Rank) -> None:
    answer = ranking([1.0, 2.0])
    match = {"query": {"start": 0, "end": 1}, "passage": {"start": 2, "end": 5}, "similarity": 0.5}
    explanation = {"index": 1, "method": "token_alignment", "is_approximate": False}
    answer.body["explanations"] = [explanation | {"matches": [match, match | {"passage": None}]}]
    with scripted(answer) as server:
        best, other = rank(server.url, "q", ["one", "two"], explain=1)

    assert server.seen[0].body["explain"] == {"top_n": 1}
    assert other.explanation is None
    expected = (TokenMatch(Span(0, 1), Span(2, 5), 0.5), TokenMatch(Span(0, 1), None, 0.5))
    assert best.explanation == Explanation("token_alignment", False, matches=expected)


def test_a_call_of_several_requests_cannot_be_explained(rank: Rank) -> None:
    with scripted() as server:
        with pytest.raises(ValueError, match=r"5 passages are more than max_passages \(4\)"):
            rank(server.url, "q", list("abcde"), explain=1, settings={"max_passages": 4})
        with pytest.raises(ValueError, match="explain must be at least 1"):
            rank(server.url, "q", ["a"], explain=0)
    assert not server.seen


def test_passages_of_several_requests_are_ranked_together(
    rank: Rank, url: str, logits: Callable[[list[str]], list[float]]
) -> None:
    passages = [f"passage {number % 21} of many" for number in range(43)]  # repeated passages have equal logits

    ranked = rank(url, "q", passages, settings={"max_passages": 8, "max_concurrent_requests": 3})

    expected = logits(passages)
    assert sorted(passage.index for passage in ranked) == list(range(43))
    by_index = {passage.index: passage.logit for passage in ranked}
    assert [by_index[index] for index in range(43)] == pytest.approx(expected, abs=1e-5)
    keys = [(-passage.logit, passage.index) for passage in ranked]
    assert keys == sorted(keys)
    assert all(passage.text == passages[passage.index] for passage in ranked)


def test_a_ranking_shows_the_stages_of_a_cascade(rank: Rank) -> None:
    header = "org/small=2, a%2C%20b=0;skipped=queue_full"
    with scripted(ranking([1.0, 2.0], **{"x-rerank-stages": header})) as server:
        cascade = rank(server.url, "q", ["a", "b"])
    with scripted() as server:
        single = rank(server.url, "q", ["a"])

    assert cascade.stages == {"org/small": 2, "a, b": 0}
    assert single.stages == {}


def test_a_cascade_does_not_rank_a_call_of_several_requests(rank: Rank) -> None:
    """Each request would keep its own best passages."""
    part = ranking([1.0], **{"x-rerank-stages": "small=1, large=1", "x-model": "both"})
    with scripted(part, part, part) as server, pytest.raises(InvalidRequestError) as refused:
        rank(server.url, "q", list("abc"), settings={"max_passages": 1, "max_concurrent_requests": 1})

    assert refused.value.message == (
        "both is a cascade, which ranks all passages in one request: send at most 1 passages, "
        "or name one of its stages as model"
    )


def test_truncated_and_unscored_passages_are_counted_over_all_requests(rank: Rank) -> None:
    counts = [("2", "1"), ("3", "0")]
    script = [
        ranking([1.0], **{"x-rerank-truncated-passages": cut, "x-rerank-unscored-passages": unscored})
        for cut, unscored in counts
    ]
    with scripted(*script) as server:
        ranked = rank(server.url, "q", ["a", "b"], settings={"max_passages": 1}, top_n=1)
    with scripted() as server:  # sends no such headers
        untold = rank(server.url, "q", ["a"])

    assert (ranked.num_truncated, ranked.num_unscored) == (5, 1)
    assert (untold.num_truncated, untold.num_unscored) == (None, None)


def test_the_service_counts_truncated_passages(rank: Rank, url: str) -> None:
    ranked = rank(url, "q", ["short", "long " * 200, "long " * 200])
    assert (ranked.num_truncated, ranked.num_unscored) == (2, 0)


def test_top_n_returns_the_best(rank: Rank, url: str) -> None:
    every = rank(url, "q", PASSAGES)
    assert list(rank(url, "q", PASSAGES, top_n=2)) == list(every[:2])
    assert list(rank(url, "q", PASSAGES, top_n=9, settings={"max_passages": 1})) == list(every)


def test_an_empty_list_of_passages_sends_no_request(rank: Rank) -> None:
    ranked = rank("http://127.0.0.1:9", "q", [])
    assert (len(ranked), ranked.usage) == (0, Usage(0, 0))


def test_the_error_for_an_unknown_model_lists_the_served_models(rank: Rank, url: str) -> None:
    with pytest.raises(ModelNotFoundError, match="this service has: llama_bidirec") as caught:
        rank(url, "q", PASSAGES, model="nobody")
    assert caught.value.status == 404
    assert caught.value.details[0].loc == ("body", "model")
    with pytest.raises(ModelNotFoundError):
        rank(url, "q", PASSAGES, settings={"model": "nobody"})
    assert len(rank(url, "q", PASSAGES, model="llama_bidirec", settings={"model": "nobody"})) == 3


def test_the_error_for_a_malformed_request_names_the_field(rank: Rank, url: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"query\.text is blank") as caught:
        rank(url, " ", PASSAGES)
    assert caught.value.details[0].loc == ("body", "query", "text")


def test_the_error_for_a_long_passage_has_the_callers_index(rank: Rank, url: str) -> None:
    passages = ["short"] * 20 + ["word " * 200]
    with pytest.raises(InvalidRequestError, match=r"counts from passages\[16\]") as caught:
        rank(url, "q", passages, truncate="NONE", settings={"max_passages": 8})
    assert caught.value.details[0].loc == ("body", "passages", 20, "text")
    assert "word word" not in str(caught.value)


def test_the_key_comes_from_the_argument_or_the_environment(
    rank: Rank, replica: LocalReplica, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = local_model(checkpoints["llama_bidirec"], window_tokens=64)
    monkeypatch.setenv("RERANK_SERVICE_API_KEYS", KEY)
    for name in ("RERANK_SERVICE_API_KEY", "NVIDIA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with running(local_api([model], {model.id: replica})) as url:
        with pytest.raises(AuthenticationError, match="Missing API key"):
            rank(url, "q", PASSAGES)
        with pytest.raises(AuthenticationError, match="Invalid API key"):
            rank(url, "q", PASSAGES, settings={"api_key": "wrong"})
        assert len(rank(url, "q", PASSAGES, settings={"api_key": KEY})) == 3
        monkeypatch.setenv("NVIDIA_API_KEY", KEY)
        assert len(rank(url, "q", PASSAGES)) == 3
        monkeypatch.setenv("RERANK_SERVICE_API_KEY", "wrong")
        with pytest.raises(AuthenticationError, match="Invalid API key"):
            rank(url, "q", PASSAGES)
        monkeypatch.setenv("RERANK_SERVICE_API_KEY", KEY)
        assert len(rank(url, "q", PASSAGES)) == 3


def test_without_an_address_the_environment_names_the_service(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted() as server:
        monkeypatch.setenv("RERANK_SERVICE_URL", server.url)
        assert len(rank(None, "q", PASSAGES)) == 3
        with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9"):
            rank("http://127.0.0.1:9", "q", PASSAGES)
        assert len(server.seen) == 1


@pytest.mark.parametrize(("status", "kind"), [(429, RateLimitedError), (503, ServiceUnavailableError)])
def test_a_refusal_is_retried_until_the_request_succeeds(rank: Rank, status: int, kind: type[ApiError]) -> None:
    refusal = error(status, "no room", **{"Retry-After": "0"})
    with scripted(refusal, refusal) as server:
        assert [passage.index for passage in rank(server.url, "q", PASSAGES)] == [1, 2, 0]
        assert len(server.seen) == 3
    with scripted(*[refusal] * 9) as server:
        with pytest.raises(kind, match="no room") as caught:
            rank(server.url, "q", PASSAGES, settings={"max_retries": 2})
        assert len(server.seen) == 3
    assert (caught.value.status, caught.value.retry_after_s) == (status, 0)
    assert caught.value.request_id == server.seen[0].headers["x-request-id"]


def test_a_refusal_without_retry_after_is_retried(rank: Rank) -> None:
    with scripted(Reply(503, b"an intermediary's page")) as server:
        assert len(rank(server.url, "q", PASSAGES)) == 3


def test_no_retry_waits_beyond_the_deadline(rank: Rank) -> None:
    with scripted(error(503, "come back later", **{"Retry-After": "3600"})) as server:
        with pytest.raises(ServiceUnavailableError, match="come back later") as caught:
            rank(server.url, "q", PASSAGES)
        assert len(server.seen) == 1
    assert caught.value.retry_after_s == 3600


def test_retry_after_may_be_a_date(rank: Rank) -> None:
    in_the_past, far_away = formatdate(0, usegmt=True), formatdate(32503680000, usegmt=True)
    with scripted(error(503, "then", **{"Retry-After": in_the_past})) as server:
        assert len(rank(server.url, "q", PASSAGES)) == 3
    with scripted(error(503, "then", **{"Retry-After": far_away})) as server:
        with pytest.raises(ServiceUnavailableError):
            rank(server.url, "q", PASSAGES)
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidRequestError), (404, ApiError), (413, InvalidRequestError), (418, ApiError), (500, ApiError)],
)
def test_permanent_errors_are_not_retried(rank: Rank, status: int, kind: type[ApiError]) -> None:
    with scripted(error(status, "no use", **{"Retry-After": "0"})) as server:
        with pytest.raises(kind, match=f"{status}: no use") as caught:
            rank(server.url, "q", PASSAGES)
        assert type(caught.value) is kind
        assert len(server.seen) == 1


def test_a_timeout_of_the_service_is_not_retried(rank: Rank) -> None:
    with scripted(error(504, "not ready within 60 s")) as server:
        with pytest.raises(DeadlineExceededError, match="not ready within 60 s") as caught:
            rank(server.url, "q", PASSAGES)
        assert len(server.seen) == 1
    assert caught.value.status == 504


def test_one_broken_connection_is_retried_and_a_second_is_an_error(rank: Rank) -> None:
    with scripted(BREAK_OFF) as server:
        assert len(rank(server.url, "q", PASSAGES)) == 3
        assert len(server.seen) == 2
    with scripted(BREAK_OFF, error(503, "full", **{"Retry-After": "0"}), BREAK_OFF) as server:
        with pytest.raises(ConnectionFailed, match="cannot reach http"):
            rank(server.url, "q", PASSAGES)
        assert len(server.seen) == 3


def test_a_refused_connection_raises_connection_failed(rank: Rank) -> None:
    with pytest.raises(ConnectionFailed, match=r"cannot reach http://127\.0\.0\.1:9 ") as caught:
        rank("http://127.0.0.1:9", "q", PASSAGES)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


def test_a_call_ends_at_its_timeout(rank: Rank) -> None:
    with scripted(HANG) as server:
        with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.2 s") as caught:
            rank(server.url, "q", PASSAGES, settings={"timeout_s": 0.2})
        assert len(server.seen) <= 1  # 0 if the machine is so busy that the time is up first
    assert caught.value.status is None


def test_requests_contain_the_remaining_time(rank: Rank) -> None:
    with scripted(error(503, "soon", **{"Retry-After": "0"})) as server:
        rank(server.url, "q", PASSAGES, settings={"timeout_s": 30})
    first, second = (float(request.headers["x-request-timeout-seconds"]) for request in server.seen)
    assert 0 < second < first <= 30


def test_all_requests_of_a_call_have_the_same_id(rank: Rank) -> None:
    with scripted() as server:
        ranked = rank(server.url, "q", PASSAGES, settings={"max_passages": 1})
        again = rank(server.url, "q", PASSAGES)
    assert [request.headers["x-request-id"] for request in server.seen] == [ranked.request_id] * 3 + [again.request_id]
    assert ranked.request_id != again.request_id


def test_one_failed_request_fails_the_call(rank: Rank) -> None:
    with scripted(error(400, "no")) as server, pytest.raises(InvalidRequestError, match="no"):
        rank(server.url, "q", PASSAGES, settings={"max_passages": 1, "max_concurrent_requests": 1})
    assert len(server.seen) < 3


def test_usage_is_summed_and_timings_are_maxima(rank: Rank) -> None:
    timings = ("queue;dur=1.5, total;dur=20", "cache;desc=hit, total;dur=7.25", "nonsense")
    with scripted(*(ranking([1.0], **{"Server-Timing": timing}) for timing in timings)) as server:
        ranked = rank(server.url, "q", PASSAGES, settings={"max_passages": 1})
    assert ranked.usage == Usage(30, 30)
    assert ranked.timings_ms == {"queue": 1.5, "total": 20.0}


@pytest.mark.parametrize(
    "body",
    [
        b"<html>a login page</html>",
        [],
        {"rankings": []},
        {"rankings": [{"index": 0, "logit": 1.0}], "usage": {"prompt_tokens": 1, "total_tokens": 1}},
        {"rankings": [{"index": 0, "logit": 1.0}] * 3, "usage": {"prompt_tokens": 1, "total_tokens": 1}},
        ranking([1.0, math.nan, 2.0]).body,
        ranking([1.0, 2.0, 3.0, 4.0]).body,
    ],
)
def test_a_body_that_is_not_a_ranking_is_an_error(rank: Rank, body: Any) -> None:
    with scripted(Reply(200, body)) as server, pytest.raises(ApiError, match="the answer"):
        rank(server.url, "q", PASSAGES)


def test_the_html_page_of_a_proxy_is_not_in_the_error(rank: Rank) -> None:
    with scripted(Reply(502, b"<html>secrets</html>")) as server, pytest.raises(ApiError) as caught:
        rank(server.url, "q", PASSAGES)
    assert str(caught.value) == "502: the service gave no reason"


@pytest.mark.parametrize("detail", [None, "text", [None, {"loc": None}, {"loc": ["body", "passages"], "msg": "m"}]])
def test_an_error_in_another_format_keeps_its_message(rank: Rank, detail: Any) -> None:
    body = {"message": "not like this", "detail": detail}
    with scripted(Reply(422, body)) as server, pytest.raises(InvalidRequestError, match="not like this"):
        rank(server.url, "q", PASSAGES)


def test_the_request_has_all_fields_and_headers(rank: Rank) -> None:
    with scripted() as server:
        rank(f"{server.url}/prefix/v1/", "où?", ["là", "東京"], settings={"model": "m", "api_key": "k"})
    (request,) = server.seen
    assert request.path == "/prefix/v1/ranking"
    assert request.headers["authorization"] == "Bearer k"
    assert request.headers["content-type"] == "application/json"
    passages = [{"text": "là"}, {"text": "東京"}]
    assert request.body == {"model": "m", "query": {"text": "où?"}, "passages": passages, "truncate": "END"}


def test_windows_are_sent(rank: Rank) -> None:
    with scripted() as server:
        rank(server.url, "q", PASSAGES, windows=PassageWindows(8, overlap_tokens=4))
    assert server.seen[0].body["passage_windows"] == {"max_per_passage": 8, "tokens": None, "overlap_tokens": 4}
    with scripted() as server:
        rank(server.url, "q", PASSAGES)
    assert "passage_windows" not in server.seen[0].body


def test_windows_have_the_fields_and_defaults_of_the_api(url: str) -> None:
    schemas = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"].values()
    (properties,) = [schema["properties"] for schema in schemas if "overlap_tokens" in schema.get("properties", {})]
    fields = dataclasses.fields(PassageWindows)

    assert {one.name for one in fields} == set(properties)
    assert {one.name: one.default for one in fields if one.default is not dataclasses.MISSING} == {
        "tokens": properties["tokens"].get("default"),
        "overlap_tokens": properties["overlap_tokens"]["default"],
    }


def test_connections_are_reused() -> None:
    with scripted() as server, Client(server.url) as client:
        for _ in range(3):
            client.rank("q", PASSAGES)
    assert (len(server.seen), server.num_connections) == (3, 1)


async def test_connections_are_reused_by_tasks() -> None:
    with scripted() as server:
        async with AsyncClient(server.url) as client:
            for _ in range(3):
                await client.rank("q", PASSAGES)
    assert (len(server.seen), server.num_connections) == (3, 1)


async def test_cancelling_a_call_cancels_its_requests() -> None:
    with scripted(HANG, HANG) as server:
        async with AsyncClient(server.url, max_passages=1) as client:
            task = asyncio.create_task(client.rank("q", ["a", "b"]))
            while len(server.seen) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"base_url": "not a url"}, {}, "must be an http or https URL"),
        ({"base_url": "http://host:port"}, {}, "is not a URL"),
        ({"max_passages": 0}, {}, "must be at least 1"),
        ({"timeout_s": 0}, {}, "above 0"),
        ({}, {"top_n": 0}, "top_n must be at least 1"),
    ],
)
def test_invalid_arguments_are_rejected_before_a_request_is_sent(
    settings: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message), Client(**settings) as client:
        client.rank("q", PASSAGES, **options)


def test_a_single_string_is_rejected() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(TypeError, match="single string"):
        client.rank("q", "a passage")


def test_a_logit_as_a_probability() -> None:
    def probability(logit: float) -> float:
        return RankedPassage(0, "", logit).probability

    assert probability(0) == 0.5
    assert probability(2) + probability(-2) == pytest.approx(1)
    assert probability(-40) == pytest.approx(math.exp(-40))
    assert (probability(1e4), probability(-1e4)) == (1, 0)


def test_errors_survive_pickling() -> None:
    refused = RateLimitedError(429, "slow down", (ErrorDetail(("body",), "m", "c"),), "id", 2.0)
    for failure in (refused, ConnectionFailed("http://x", "refused")):
        copy = pickle.loads(pickle.dumps(failure))  # noqa: S301 - our own bytes
        assert (type(copy), vars(copy), str(copy)) == (type(failure), vars(failure), str(failure))


def test_no_time_remains_after_the_deadline() -> None:
    assert Deadline(-1).left_s() == 0


def test_all_lists_every_public_name() -> None:
    names = {name for name, value in vars(client_package).items() if isinstance(value, type)}
    assert set(client_package.__all__) == names | {"__version__"}
    errors = [getattr(client_package, name) for name in names if name.endswith(("Error", "Failed"))]
    assert all(issubclass(value, RerankClientError) for value in errors)
