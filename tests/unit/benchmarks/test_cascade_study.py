"""The study of cascades: cut models, rankings of a cascade, costs."""

import gzip
import itertools
import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from benchmarks.cascade_study.curve import BM25, KEEPS, WHOLE, SetScores, cascade_scores, macro_row, measure_set
from benchmarks.cascade_study.cut_layers import cut_layers
from benchmarks.cascade_study.distil import distil, read_texts, text_batches
from benchmarks.cascade_study.plans import computed_costs
from benchmarks.report.cascade import cost_share
from rerank_service.config import EngineKind
from rerank_service.engine.build import load_engine
from rerank_service.messages import rank_by_logit
from rerank_service.tools.evaluation.collection import Collection
from rerank_service.tools.evaluation.evaluate import Task
from tests.models import local_model

FIRST, WHOLE_SCORES = [5.0, 1.0, 4.0, 3.0, 2.0], [0.1, 0.9, 0.2, 0.3, 0.8]


@pytest.fixture
def encoder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A small encoder without a classifier, with three layers."""
    folder = copytree(checkpoints["bert"], tmp_path / "encoder")
    config = BertConfig.from_pretrained(folder, num_hidden_layers=3)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("keep", "ranking"),
    [
        (0.2, [0, 2, 3, 4, 1]),
        (0.4, [2, 0, 3, 4, 1]),
        (0.5, [3, 2, 0, 4, 1]),  # three of five: rounded up
        (1.0, [1, 4, 3, 2, 0]),
    ],
)
def test_dropped_passages_stay_behind_in_the_order_of_the_first_stage(keep: float, ranking: list[int]) -> None:
    assert rank_by_logit(cascade_scores(FIRST, WHOLE_SCORES, keep)) == ranking


def test_a_cascade_that_keeps_everything_ranks_as_the_whole_model() -> None:
    generator = np.random.default_rng(0)
    first, whole = generator.normal(size=50).tolist(), generator.integers(0, 5, size=50).astype(float).tolist()

    ranked = rank_by_logit(cascade_scores(first, whole, 1.0))

    values = [whole[index] for index in ranked]
    assert values == sorted(whole, reverse=True)  # equal scores may come in any order


def test_quality_of_a_set_depends_on_the_first_stage_only_through_the_passages_it_keeps() -> None:
    passages = {f"p{number}": "text" for number in range(20)}
    collection = Collection("tiny", passages, {"q": "query"}, {"q": {"p19": 1}})
    task = Task(collection, {"q": list(passages)}, BM25, {"q": [0.0] * 20}, "all")
    whole = [float(number) for number in range(20)]  # the relevant passage is the best
    finds_late = [20.0 - number for number in range(20)]  # and the last of the first stage

    found = measure_set(SetScores(task, {WHOLE: {"q": whole}, "bad": {"q": finds_late}, "good": {"q": whole}}))

    assert found[WHOLE].tolist() == [1.0]
    assert all(found[f"good, {keep}"].tolist() == [1.0] for keep in KEEPS)
    assert all(found[f"bad, {keep}"].tolist() == [0.0] for keep in KEEPS)


def test_the_mean_gives_every_set_the_same_weight() -> None:
    large, small = np.full(100, 0.5), np.array([1.0, 0.9])

    row = macro_row([large, small], [np.full(100, 0.6), np.array([1.0, 1.0])])

    assert row["ndcg@10"] == pytest.approx((0.5 + 0.95) / 2)
    assert row["difference"] == pytest.approx(-(0.1 + 0.05) / 2)
    low, high = row["difference_interval"]
    assert low <= row["difference"] <= high
    assert (low, high) == pytest.approx((-0.1, -0.05))  # only the two queries of the small set differ from each other


def test_a_cut_model_loads_strictly_and_has_the_first_layers(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    whole = checkpoints["bert"]
    num_layers = json.loads((whole / "config.json").read_text())["num_hidden_layers"]

    cut = cut_layers(whole, 1, tmp_path / "cut")

    kept, all_tensors = load_file(cut / "model.safetensors"), load_file(whole / "model.safetensors")
    layers = {name.split("layer.")[1].split(".")[0] for name in all_tensors if "layer." in name}
    assert len(layers) == num_layers > 1
    assert {name.split("layer.")[1].split(".")[0] for name in kept if "layer." in name} == {"0"}
    assert all(kept[name].equal(all_tensors[name]) for name in kept)
    assert load_engine(local_model(cut)).kind is EngineKind.SEQUENCE_CLASSIFIER  # refuses wrong tensors
    with pytest.raises(ValueError, match="cannot be cut to"):
        cut_layers(whole, num_layers + 1, tmp_path / "longer")


def test_distilling_brings_the_cut_model_closer_to_the_whole_one(encoder: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups.jsonl.gz"
    _write_groups(groups)
    short, long = (cut_layers(encoder, 1, tmp_path / name) for name in ("short", "long"))

    first, later = (distil(encoder, [one], groups, steps, print)[one.name] for one, steps in ((short, 2), (long, 60)))

    assert later < 0.8 * first
    trained, whole = load_file(long / "model.safetensors"), load_file(encoder / "model.safetensors")
    assert set(trained) < set(whole)
    assert not trained["encoder.layer.0.output.dense.weight"].equal(whole["encoder.layer.0.output.dense.weight"])
    name = "embeddings.word_embeddings.weight"
    assert trained[name].equal(whole[name])
    engine = {"kind": EngineKind.LATE_INTERACTION}
    assert load_engine(local_model(long, engine=engine)).kind is EngineKind.LATE_INTERACTION  # a complete checkpoint


def test_texts_of_held_out_sources_are_not_read(tmp_path: Path) -> None:
    groups = tmp_path / "groups.jsonl.gz"
    _write_groups(groups)

    queries, passages = read_texts(groups, ("squad",))

    assert len(queries) == len(set(queries)) == 20
    assert not any("held out" in text for text in (*queries, *passages))
    drawn = itertools.islice(text_batches(queries, passages, 1), 3)
    assert list(drawn) == list(itertools.islice(text_batches(queries, passages, 1), 3))


def test_costs() -> None:
    result = {"cpu_ms_per_pair": {WHOLE: 10.0, "2 layers": 4.0}}

    assert cost_share(result, "2 layers", 0.1) == pytest.approx(0.5)
    assert cost_share(result, BM25, 0.1) == pytest.approx(0.1)
    computed = computed_costs()
    assert computed["flops_per_pair"]["1b"] == pytest.approx(256 * 1.98e9, rel=0.01)
    assert computed["share_of_the_4b"]["0.1"] == pytest.approx(1.98 / 7.05 + 0.1, abs=0.001)


def _write_groups(path: Path) -> None:
    rows = [
        {
            "src": "squad",
            "q": f"question {number}",
            "pos": f"answer {number}",
            "negs": [f"other {number} {n}" for n in range(5)],
        }
        for number in range(20)
    ]
    rows.append({"src": "nq", "q": "held out", "pos": "held out", "negs": ["held out too"]})
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
