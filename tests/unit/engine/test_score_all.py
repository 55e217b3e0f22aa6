"""Every caller refuses a logit that is not finite. In the checkpoints used here, only one text has such a logit."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rerank_service.config import ModelConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.engine.protocol import EncodedPair
from rerank_service.engine.score_all import encode_all, score_all, score_passages, token_budget_batches
from rerank_service.engine.text.tokenise import load_tokenizer
from rerank_service.engine.text.yes_no_prompts import YES_NO_PROMPTS
from rerank_service.errors import CheckpointError, NonFiniteLogit, PairTooLong, QueryTooLong
from rerank_service.messages import Fitting, PassageWindows, Truncate, checked_logits, rank_by_logit
from rerank_service.tools.cli.main import app
from rerank_service.tools.verify.served import EnginePath
from rerank_service.tools.verify.texts import VerificationQuery
from tests.local_service import LocalReplica, local_api
from tests.models import local_model

QUERY, POISON = "capital of France", "Ω≈ç√∫"
PASSAGES = ["Paris is the capital of France.", "A croissant is a pastry.", f"a {POISON} b", "Berlin is in Germany."]
WARM_UP = "What is reranking? Sorting passages by relevance to a query. query: passage: "
PROMPTS = [str(part) for prompt in YES_NO_PROMPTS.values() for part in prompt.model_dump().values()]
EMBEDDINGS = ("embed_tokens.weight", "tok_embeddings.weight", "word_embeddings.weight")
LATE, LLAMA = "late_interaction", "llama_bidirec"
runner = CliRunner()


@pytest.fixture(scope="module")
def poisoned(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes checkpoints of each engine in which tokens that occur only in `POISON` have NaN embeddings."""

    @cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp("poisoned") / name
        shutil.copytree(checkpoints["bert" if name == LATE else name], folder)
        tensors = load_file(folder / "model.safetensors")
        if name == LATE:
            kept = [key for key in tensors if key.startswith("bert.")]
            tensors = {key.removeprefix("bert."): tensors[key] for key in kept}
            config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertModel"]}
            (folder / "config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer(folder)
        clean = " ".join([QUERY, WARM_UP, *PROMPTS, *(text for text in PASSAGES if POISON not in text)])
        ids = set(tokenizer.encode(POISON, add_special_tokens=False).ids) - set(tokenizer.encode(clean).ids)
        assert ids
        (embeddings,) = [key for key in tensors if key.endswith(EMBEDDINGS)]
        tensors[embeddings][sorted(ids)] = torch.nan
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


@pytest.fixture
def config(tmp_path: Path, poisoned: Callable[[str], Path]) -> str:
    engine = {"dtype": "float32", "device": "cpu", "num_threads": 1}
    models = [{"id": "m", "checkpoint": {"source": str(poisoned(LLAMA))}, "engine": engine}]
    path = tmp_path / "serve.yaml"
    path.write_text(json.dumps({"applications": [{"args": {"models": models}}]}))
    return str(path)


@pytest.mark.parametrize("name", [LLAMA, "bert", "modernbert", "qwen3", LATE])
def test_every_engine_raises_an_error_with_the_passages_index(poisoned: Callable[[str], Path], name: str) -> None:
    engine: Engine[Any] = load_engine(local_model(poisoned(name)))
    questions = [(QUERY, PASSAGES[:2]), (QUERY, PASSAGES)]

    with pytest.raises(NonFiniteLogit) as caught:
        score_passages(engine, questions, Fitting(), batch_tokens=64)
    assert (caught.value.num_pairs, caught.value.first) == (1, 4)

    with pytest.raises(NonFiniteLogit):
        score_all(engine, engine.tokenise(QUERY, PASSAGES, Truncate.END))
    _, logits = score_passages(engine, [(QUERY, PASSAGES[:2]), (QUERY, PASSAGES[3:])], Fitting())
    assert len(logits) == 3


def test_a_better_window_does_not_hide_a_nan(poisoned: Callable[[str], Path]) -> None:
    """Given a logit and NaN, `max` returns whichever comes first."""
    engine: Engine[Any] = load_engine(local_model(poisoned(LLAMA), window_tokens=64))
    long = "Paris is the capital of France. " * 20
    windows = Fitting(windows=PassageWindows(99))
    for passage in (f"{long}{POISON}", f"{POISON} {long}"):
        with pytest.raises(NonFiniteLogit) as caught:
            score_passages(engine, [(QUERY, [long, passage])], windows)
        assert caught.value.first == 1


def test_the_index_of_a_pair_too_long_counts_the_passages_of_all_queries(poisoned: Callable[[str], Path]) -> None:
    engine: Engine[Any] = load_engine(local_model(poisoned(LLAMA), window_tokens=64))
    with pytest.raises(PairTooLong) as caught:
        encode_all(engine, [(QUERY, PASSAGES), (QUERY, ["short", "word " * 100])], Fitting(Truncate.NONE))
    assert caught.value.index == len(PASSAGES) + 1
    with pytest.raises(QueryTooLong) as query:
        encode_all(engine, [(QUERY, PASSAGES), ("word " * 100, PASSAGES)], Fitting(Truncate.NONE))
    assert query.value.index == len(PASSAGES)


def test_batches_stay_within_the_available_memory(poisoned: Callable[[str], Path]) -> None:
    engine: Any = load_engine(local_model(poisoned(LLAMA)))
    pairs = engine.tokenise(QUERY, PASSAGES[:2] * 20, Truncate.END)
    engine.memory_tokens = 100
    scored: list[int] = []

    score_all(engine, pairs, 4096, lambda done, total: scored.append(done))

    assert len(scored) >= sum(pair.num_tokens for pair in pairs) / 100
    assert scored[-1] == len(pairs)


def test_a_ranking_refuses_logits_that_are_not_finite() -> None:
    for logits in ([1.0, float("nan"), 5.0, 2.0], [1.0, float("inf")], [-float("inf")]):
        with pytest.raises(NonFiniteLogit):
            rank_by_logit(logits)
    with pytest.raises(RuntimeError, match="2 logits for 3 pairs"):
        checked_logits([1.0, 2.0], 3)


def test_rank_in_process(config: str) -> None:
    command = ["rank", QUERY, "--in-process", "--config", config]

    result = runner.invoke(app, command, input="\n\n".join(PASSAGES))
    clean = runner.invoke(app, command, input="\n".join(PASSAGES[:2]))

    assert (result.exit_code, clean.exit_code) == (2, 0)
    assert result.stdout == ""
    assert "the logit of passage 2 (from 0, blank lines not counted) is not a finite number" in result.stderr
    assert f"set engine.dtype: float32 for m in {config}" in result.stderr


def test_batch(tmp_path: Path, config: str) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"query": QUERY, "passage": passage}) + "\n" for passage in PASSAGES))

    result = runner.invoke(app, ["batch", str(pairs), str(tmp_path / "out.jsonl"), "--config", config, "--in-process"])

    assert result.exit_code == 2
    assert f"{pairs}, line 3: the model's logit is not a finite number; try --dtype float32" in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_eval(tmp_path: Path, config: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"_id": f"p{number}", "text": text} for number, text in enumerate(PASSAGES)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": QUERY}) + "\n")
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp0\t1\n")

    result = runner.invoke(app, ["eval", str(folder), "--config", config, "--json"])

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "query 'q', passage 'p2' of set: the model's logit is not a finite number" in result.stderr


async def test_a_service_fails_only_the_affected_request(poisoned: Callable[[str], Path]) -> None:
    model: ModelConfig = local_model(poisoned(LLAMA))
    transport = httpx.ASGITransport(local_api([model], {model.id: LocalReplica(model)}))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        responses = [
            await client.post("/v1/ranking", json={"query": {"text": QUERY}, "passages": [{"text": t} for t in texts]})
            for texts in (PASSAGES, PASSAGES[:2])
        ]

    assert [response.status_code for response in responses] == [500, 200]
    assert "NaN or infinity for 1 pair(s)" in responses[0].text


def test_verify_refuses_logits_that_are_not_finite(poisoned: Callable[[str], Path]) -> None:
    path = EnginePath(local_model(poisoned(LLAMA)))
    try:
        with pytest.raises(NonFiniteLogit):
            path.answer([VerificationQuery(QUERY, tuple(PASSAGES))], True, lambda _: None)
    finally:
        path.close()


def test_a_model_with_only_nan_logits_is_not_loaded(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(checkpoints[LLAMA], folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"][:] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"not a finite number .*; try dtype: float32"):
        load_engine(local_model(folder))


@given(st.lists(st.integers(1, 600), max_size=80))
def test_batches_contain_every_pair_once_within_the_budget(lengths: list[int]) -> None:
    pairs = [
        EncodedPair(np.ones(length, np.int32), length, False) for length in lengths
    ]  # pairs of equal length are equal

    batches = list(token_budget_batches(pairs, 500))

    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in batch) <= 500 or len(batch) == 1 for batch in batches)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 90)), max_size=80), st.integers(1, 3))
def test_a_passage_shared_by_queries_counts_once_per_batch(drawn: list[tuple[int, int]], scale: int) -> None:
    """Pairs as in a late-interaction engine: `token_ids` holds only the passage; `num_tokens` includes the query."""
    passages = [np.full(40 * scale + number, number, np.int32) for number in range(6)]
    pairs = [EncodedPair(passages[number], len(passages[number]) + extra, False) for number, extra in drawn]

    batches = list(token_budget_batches(pairs, 500))

    assert sorted(index for batch in batches for index in batch) == list(range(len(drawn)))
    for batch in batches:
        encoded = sum(len(passages[number]) for number in {drawn[index][0] for index in batch})
        assert encoded + sum(drawn[index][1] for index in batch) <= 500 or len(batch) == 1
    held = [{drawn[index][0] for index in batch} for batch in batches]
    assert sum(map(len, held)) <= len({number for number, _ in drawn}) + len(batches)  # once each, except at batch ends
