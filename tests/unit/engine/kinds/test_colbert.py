"""ColBERT checkpoints in the published formats, against what pylate computes for the same files (tests/colbert.py)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rerank_service.engine import Engine, Truncate, load_engine
from tests.colbert import CASES, PASSAGES, QUERIES, RECORDED, digest, make_all
from tests.models import local_model

PYLATE: dict[str, Any] = json.loads(RECORDED.read_text())["cases"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_all(tmp_path_factory.mktemp("colbert"))


@pytest.fixture(scope="module")
def engine_of(folders: dict[str, Path]) -> Callable[[str], Any]:
    engines: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in engines:
            # pylate parses the tokens that texts spell; the service does so only if asked.
            engines[name] = load_engine(local_model(folders[name], engine={"special_tokens": "parse"}))
        return engines[name]

    return get


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def scores(engine: Engine[Any]) -> list[list[float]]:
    return [engine.score(engine.tokenise(query, PASSAGES, Truncate.END)) for query in QUERIES]


def test_the_record_is_of_these_checkpoints(folders: dict[str, Path]) -> None:
    assert {case: digest(folder) for case, folder in folders.items()} == {
        case: recorded["digest"] for case, recorded in PYLATE.items()
    }, "make the checkpoints and the record anew: make pylate"


def test_token_ids_equal_those_of_pylate(engine_of: Callable[[str], Any], name: str) -> None:
    recorded = PYLATE[name]
    for query, ids in zip(QUERIES, recorded["query"]["ids"], strict=True):
        pairs = engine_of(name).tokenise(query, PASSAGES, Truncate.END)
        assert pairs[0].query_ids.tolist() == ids
        assert [pair.token_ids.tolist() for pair in pairs] == recorded["document"]["ids"]


def test_vectors_equal_those_of_pylate(engine_of: Callable[[str], Any], name: str) -> None:
    engine, recorded = engine_of(name), PYLATE[name]
    with torch.inference_mode():
        for query, expected in zip(QUERIES, recorded["query"]["vectors"], strict=True):
            pairs = engine.tokenise(query, PASSAGES, Truncate.END)
            with engine.caches_off():
                states = states_of(engine, pairs)
            for vectors, first in zip(states, [expected, *recorded["document"]["vectors"]], strict=True):
                assert torch.nn.functional.normalize(vectors, dim=-1)[:, 0].tolist() == pytest.approx(first, abs=1e-5)


def states_of(engine: Any, pairs: list[Any]) -> list[torch.Tensor]:
    from rerank_service.engine.device.encoding_cache import DistinctTexts

    texts = DistinctTexts()
    texts.add(pairs[0].query_ids, pairs[0].query_seen)
    texts.forget()
    places = [texts.add(pair.token_ids, len(pair.token_ids)) for pair in pairs]
    states = engine._encode(texts, 1)
    return [states[0], *(states[place] for place in places)]


@pytest.mark.parametrize("in_chunks", [False, True], ids=["pair by pair", "in chunks, as on a GPU"])
def test_scores_equal_those_of_pylate(engine_of: Callable[[str], Any], name: str, in_chunks: bool) -> None:
    engine = engine_of(name)
    engine.compares_in_chunks = in_chunks

    for found, expected in zip(scores(engine), PYLATE[name]["scores"], strict=True):
        assert found == pytest.approx(expected, abs=TOLERANCE)
