"""Calibrated probabilities and `min_probability`, in every API, with a real engine in this process."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rerank_service.config import CalibrationConfig, ModelConfig, RerankConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.messages import Shard
from tests.contract import assert_valid_response
from tests.local_service import LocalReplica, api_over, client_of, local_api
from tests.models import local_model
from tests.unit.http.dialects.forms import ALL_FORMS, MODEL, QUERY, TEXTS, WINDOW_TOKENS, logits_of, places, score_of
from tests.unit.http.test_cascades import BODY, FULL, PASSAGES, SECRET, Ingress

PLAIN = "plain"
WITH_THRESHOLD = [name for name in ALL_FORMS if "score" not in name]


class Counting:
    """A replica that counts the shards of requests."""

    def __init__(self, replica: LocalReplica) -> None:
        self._replica = replica
        self.shards = 0

    def remote(self, shard: Shard) -> Any:
        self.shards += shard.query == QUERY  # not readiness's test pair
        return self._replica.remote(shard)


@pytest.fixture(scope="module")
def plain(checkpoints: dict[str, Path]) -> ModelConfig:
    return local_model(checkpoints["llama_bidirec"], window_tokens=WINDOW_TOKENS).model_copy(update={"id": PLAIN})


@pytest.fixture(scope="module")
def engine(plain: ModelConfig) -> Engine[Any]:
    return load_engine(plain)


@pytest.fixture
async def calibration(plain: ModelConfig, engine: Engine[Any]) -> CalibrationConfig:
    """A map far from the logistic function, with the middle passage at 0.5."""
    async with client_of(local_api([plain], {PLAIN: LocalReplica(plain, engine)})) as client:
        low, middle, high = sorted(await logits_of(client))
    return CalibrationConfig(points=((low, 0.1), (middle, 0.5), (high, 0.7)), slope=3.0, origin="a test")


@pytest.fixture
def models(plain: ModelConfig, calibration: CalibrationConfig) -> list[ModelConfig]:
    return [plain.model_copy(update={"id": MODEL, "aliases": ("also",), "calibration": calibration}), plain]


@pytest.fixture
def replicas(models: list[ModelConfig], engine: Engine[Any]) -> dict[str, Counting]:
    return {model.id: Counting(LocalReplica(model, engine)) for model in models}


@pytest.fixture
async def client(models: list[ModelConfig], replicas: dict[str, Counting]) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(local_api(models, replicas)) as c:
        yield c


def body(**fields: Any) -> dict[str, Any]:
    return {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS], **fields}


async def ask(client: httpx.AsyncClient, name: str, **changes: Any) -> httpx.Response:
    path, form = ALL_FORMS[name]
    return await client.post(path, json=form | changes)


@pytest.mark.parametrize("name", ALL_FORMS)
async def test_every_api_answers_with_calibrated_probabilities(
    client: httpx.AsyncClient, calibration: CalibrationConfig, name: str
) -> None:
    logits = await logits_of(client)

    ranked = places((await ask(client, name)).json())

    assert sorted(score_of(place) for place in ranked) == pytest.approx([0.1, 0.5, 0.7])
    assert {place["index"]: score_of(place) for place in ranked} == pytest.approx(
        {index: calibration.probability(logit) for index, logit in enumerate(logits)}
    )


@pytest.mark.parametrize(("name", "changes"), [("tei", {"raw_scores": True}), ("vllm", {"use_activation": False})])
async def test_raw_scores_stay_logits(client: httpx.AsyncClient, name: str, changes: dict[str, Any]) -> None:
    logits = await logits_of(client)

    ranked = places((await ask(client, name, **changes)).json())

    assert {place["index"]: score_of(place) for place in ranked} == pytest.approx(dict(enumerate(logits)))


@pytest.mark.parametrize("name", WITH_THRESHOLD)
async def test_min_probability_leaves_out_the_rest_in_every_api(client: httpx.AsyncClient, name: str) -> None:
    whole = places((await ask(client, name)).json())

    for min_probability, count in ((0, 3), (0.3, 2), (score_of(whole[1]), 2), (0.6, 1), (0.71, 0), (1, 0)):
        answer = (await ask(client, name, min_probability=min_probability)).json()
        kept = answer if isinstance(answer, list) else answer.get("results", answer.get("data"))
        assert [(place["index"], score_of(place)) for place in kept] == [
            (place["index"], score_of(place)) for place in whole[:count]
        ]
    assert len(places((await ask(client, name, min_probability=None)).json())) == 3


async def test_our_own_api_keeps_raw_logits_and_counts_all_tokens(client: httpx.AsyncClient) -> None:
    whole = (await client.post("/v1/ranking", json=body())).json()

    cut = (await client.post("/v1/ranking", json=body(min_probability=0.5))).json()
    none = await client.post("/v1/ranking", json=body(min_probability=0.9))

    assert_valid_response(whole, len(TEXTS))
    assert cut["rankings"] == whole["rankings"][:2]
    assert {frozenset(ranking) for ranking in cut["rankings"]} == {frozenset(("index", "logit"))}
    assert cut["usage"] == whole["usage"]
    assert none.status_code == 200
    assert none.json()["rankings"] == []


async def test_top_n_counts_only_passages_that_are_kept(client: httpx.AsyncClient) -> None:
    for top_n, count in ((1, 1), (3, 2)):
        ranked = places((await ask(client, "jina", min_probability=0.3, top_n=top_n)).json())
        assert len(ranked) == count


async def test_only_kept_passages_are_explained(client: httpx.AsyncClient) -> None:
    explained = (await client.post("/v1/ranking", json=body(min_probability=0.5, explain={"top_n": 3}))).json()
    nothing = (await client.post("/v1/ranking", json=body(min_probability=0.9, explain={"top_n": 3}))).json()

    assert [one["index"] for one in explained["explanations"]] == [one["index"] for one in explained["rankings"]]
    assert len(explained["rankings"]) == 2
    assert nothing["rankings"] == nothing["explanations"] == []


async def test_a_model_without_a_calibration_refuses_min_probability_before_it_scores(
    client: httpx.AsyncClient, replicas: dict[str, Counting]
) -> None:
    own = await client.post("/v1/ranking", json=body(model=PLAIN, min_probability=0.5))
    others = {name: await ask(client, name, model=PLAIN, min_probability=0.5) for name in WITH_THRESHOLD}

    assert own.status_code == 400
    (detail,) = own.json()["detail"]
    assert (detail["loc"], detail["type"]) == (["body", "min_probability"], "not_calibrated")
    assert f"{PLAIN} has no models[].calibration" in detail["msg"]
    assert "rerank-service calibrate" in detail["msg"]
    assert {response.status_code for response in others.values()} <= {400, 413, 422}
    assert all("min_probability needs a calibrated model" in response.text for response in others.values())
    assert [replica.shards for replica in replicas.values()] == [0, 0]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ("1.5", "must be less than or equal to 1"),
        ("-0.1", "must be greater than or equal to 0"),
        ('"0.5"', "must be a valid number"),
        ("true", "must be a valid number"),
        ("NaN", ""),
        ("[0.5]", "must be a valid number"),
    ],
)
async def test_a_bad_min_probability_is_refused(client: httpx.AsyncClient, raw: str, problem: str) -> None:
    headers = {"Content-Type": "application/json"}
    for path, form in (("/v1/ranking", body()), ("/v2/rerank", ALL_FORMS["cohere v2"][1])):
        text = httpx.Request("POST", "http://x", json=form).content.decode().removesuffix("}")
        response = await client.post(path, content=text + f', "min_probability": {raw}}}', headers=headers)

        assert response.status_code == 400, response.text
        assert problem in response.text


async def test_scores_of_single_pairs_have_no_threshold(client: httpx.AsyncClient) -> None:
    response = await ask(client, "vllm score", min_probability=0.5)

    assert len(places(response.json())) == len(TEXTS)
    assert response.headers["x-ignored-fields"] == "min_probability"


async def test_the_list_of_models_has_the_map(client: httpx.AsyncClient, calibration: CalibrationConfig) -> None:
    entries = {one["id"]: one for one in (await client.get("/v1/models")).json()["data"]}

    assert entries[MODEL]["calibration"]["origin"] == "a test"
    assert CalibrationConfig.model_validate(entries["also"]["calibration"]) == calibration
    assert "calibration" not in entries[PLAIN]


async def test_a_canary_answers_by_its_own_map(
    models: list[ModelConfig], replicas: dict[str, Counting], engine: Engine[Any]
) -> None:
    canary = models[0].model_dump() | {
        "id": "canary",
        "aliases": (),
        "calibration": {"points": [[0, 0.25]], "slope": 1e-6},  # every passage has a probability near 0.25
        "version": {"of": MODEL, "traffic_percent": 100},
    }
    config = RerankConfig.model_validate({"models": [models[0].model_dump(), canary]})

    replicas["canary"] = Counting(LocalReplica(config.models[1], engine))

    async with client_of(api_over(config, replicas)) as client:
        while (answer := await ask(client, "jina")).headers["x-model"] != "canary":
            pass  # until the canary has been probed
        kept = (await client.post("/v1/ranking", json=body(min_probability=0.2))).json()["rankings"]
        cut = (await client.post("/v1/ranking", json=body(min_probability=0.3))).json()["rankings"]

    assert [score_of(place) for place in places(answer.json())] == pytest.approx([0.25] * 3, abs=1e-3)
    assert (len(kept), len(cut)) == (3, 0)


async def test_no_text_is_logged(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await ask(client, "jina", min_probability=0.5)
        await ask(client, "jina", model=PLAIN, min_probability=0.5)

    assert not any(text in caplog.text for text in (QUERY, *TEXTS))


def staged(**cascade: Any) -> Ingress:
    """A cascade whose first stage gives `small`'s scores of 1 to 6, and whose last stage `large`'s of -1.5 to -0.25."""
    small = {"points": [[4, 0.5]], "slope": 1.0}
    large = {"points": [[-1, 0.5]], "slope": 2.0}
    models = [
        {"id": model_id, "checkpoint": {"source": "/somewhere"}, "calibration": calibration}
        for model_id, calibration in (("small", small), ("large", large))
    ]
    return Ingress(models=models, cascade=cascade)


async def test_a_cascade_answers_by_the_map_of_its_last_stage() -> None:
    ingress = staged()
    body = {"model": "both", "query": SECRET, "documents": PASSAGES}
    async with ingress.client() as client:
        whole = (await client.post("/v1/ranking", json=BODY)).json()["rankings"]
        ranked = places((await client.post("/v1/rerank", json=body)).json())
        cut = places((await client.post("/v1/rerank", json=body | {"min_probability": 0.5})).json())
        (entry,) = [one for one in (await client.get("/v1/models")).json()["data"] if one["id"] == "both"]

    large = CalibrationConfig(points=((-1, 0.5),), slope=2.0)
    assert [score_of(place) for place in ranked] == [large.probability(one["logit"]) for one in whole]
    assert [place["index"] for place in ranked][:3] == [3, 4, 5]
    assert [place["index"] for place in cut] == [3]  # with a logit of -1: those that the first stage dropped are lower
    assert len(ingress.replicas["small"].passages) == 18
    assert CalibrationConfig.model_validate(entry["calibration"]) == large


@pytest.mark.parametrize("min_probability", [0, 0.01])
async def test_min_probability_leaves_out_the_passages_that_a_stage_dropped(min_probability: float) -> None:
    async with staged().client() as client:
        whole = (await client.post("/v1/ranking", json=BODY)).json()["rankings"]
        cut = (await client.post("/v1/ranking", json=BODY | {"min_probability": min_probability})).json()["rankings"]

    large = CalibrationConfig(points=((-1, 0.5),), slope=2.0)
    assert [one["index"] for one in whole] == [3, 4, 5, 2, 1, 0]
    assert large.probability(whole[3]["logit"]) > 0.01  # by the shifted logit, a dropped passage would be kept
    assert cut == whole[:3]


async def test_an_early_answer_is_cut_by_the_map_of_the_stage_that_has_scored() -> None:
    ingress = staged(on_overload="answer_early")
    ingress.replicas["large"].outcome = FULL
    async with ingress.client() as client:
        body = {"model": "both", "query": SECRET, "documents": PASSAGES, "min_probability": 0.7}
        response = await client.post("/v1/rerank", json=body)

    assert "large=0;skipped=queue_full" in response.headers["x-rerank-stages"]
    small = CalibrationConfig(points=((4, 0.5),), slope=1.0)
    found = {place["index"]: score_of(place) for place in places(response.json())}
    assert found == {5: small.probability(6), 4: small.probability(5)}


async def test_a_cascade_without_a_calibrated_last_stage_refuses_before_it_scores() -> None:
    ingress = Ingress()
    async with ingress.client() as client:
        response = await client.post("/v1/ranking", json=BODY | {"min_probability": 0.5})

    assert response.status_code == 400
    assert "large has no models[].calibration" in response.json()["message"]
    assert ingress.replicas["small"].passages == []
