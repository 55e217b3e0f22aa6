"""ColBERT checkpoints in the published formats, against what pylate computes for the same files (tests/colbert.py)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rerank_service.engine import Engine, Truncate, load_engine
from rerank_service.engine.device.encoding_cache import DistinctTexts
from rerank_service.errors import CheckpointError, PairTooLong
from rerank_service.tools.random_checkpoints.make import Architecture, make_checkpoint
from tests.attention import recorded_passes
from tests.colbert import CASES, PASSAGES, QUERIES, RECORDED, digest, make_all
from tests.models import NASTY_PASSAGES, local_model

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


@pytest.fixture(params=["bert", "bert-bare", "modernbert", "xlm_roberta", "stanford"])
def served(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    """An engine as it is served: texts do not spell control tokens."""
    return load_engine(local_model(folders[request.param]))


def test_no_text_spells_a_control_token(served: Any) -> None:
    """Markers and mask tokens are inserted as ids."""
    marks = {"[Q] ", "[D] ", "[MASK]", "[unused0]", "[unused1]", "<mask>", "[SEP]", "</s>"}
    (plain,) = served.tokenise("a", ["b"], Truncate.END)
    (spelled,) = served.tokenise("a " + " ".join(marks), ["b " + " ".join(marks)], Truncate.END)

    for ids, spelled_ids in ((plain.query_ids, spelled.query_ids), (plain.token_ids, spelled.token_ids)):
        control = {served._query_side.prefix_id, served._passage_side.prefix_id, int(ids[0])} - {None}
        counts = [sum(np.isin(one, list(control))) for one in (ids, spelled_ids)]
        assert counts[0] == counts[1]
    mask_id = served._query_side.mask_id
    seen = spelled.query_ids[: spelled.query_seen]
    assert mask_id is None or mask_id not in seen.tolist()
    assert len(spelled.token_ids) > 15  # the names were read, as characters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_logit_does_not_depend_on_its_batch(folders: dict[str, Path], name: str, dtype: str) -> None:
    engine = load_engine(local_model(folders[name], engine={"dtype": dtype}))
    pairs = engine.tokenise(QUERIES[0], NASTY_PASSAGES, Truncate.END)
    others = engine.tokenise(QUERIES[2], PASSAGES, Truncate.END)
    alone = []
    for pair in pairs:
        with engine.caches_off():
            alone += engine.score([pair])
    with engine.caches_off():
        together = engine.score([*others, *pairs])[len(others) :]

    tolerance = 0 if engine.is_batch_invariant else 1e-4
    assert together == pytest.approx(alone, abs=tolerance, rel=0)


def test_a_text_on_both_sides_is_encoded_for_each(folders: dict[str, Path]) -> None:
    """Without markers, query and passage have the same tokens, but only the passage leaves out tokens."""
    engine: Any = load_engine(local_model(folders["bert-bare"]))
    text = "one. two. three."
    (pair,) = engine.tokenise(text, [text], Truncate.END)
    (other,) = engine.tokenise(text, ["one. two. three. four"], Truncate.END)

    with engine.caches_off():
        (logit, _), (alone,) = engine.score([pair, other]), engine.score([pair])
    assert pair.query_ids.tolist() == pair.token_ids.tolist()
    assert logit == pytest.approx(alone, abs=1e-5)
    assert logit < len(pair.query_ids) - 0.01  # the full stops of the query find no equal token


def test_a_cached_passage_costs_no_pass_and_has_the_same_logit(folders: dict[str, Path]) -> None:
    fresh = load_engine(local_model(folders["bert"]))
    cached = load_engine(local_model(folders["bert"], engine={"passage_cache_bytes": 1_000_000}))
    pairs = cached.tokenise(QUERIES[0], PASSAGES, Truncate.END)
    expected = fresh.score(pairs)
    assert cached.score(pairs) == expected

    with recorded_passes() as passes:
        assert cached.score(pairs) == expected
        cached.score(cached.tokenise("another question", PASSAGES, Truncate.END))
    assert [len(packed.bounds) - 1 for packed in passes] == [1]  # the new query


@pytest.mark.parametrize("case", ["bert", "bert-projections", "modernbert-prompts", "xlm_roberta"])
def test_matches_are_places_in_the_texts_as_sent(folders: dict[str, Path], case: str) -> None:
    engine: Any = load_engine(local_model(folders[case], engine={"query_tokens": 40}))
    query, passages = "  İsle of honey", ["well, the honey", "  honey! bees, İsle"]
    pairs = engine.aligner.recording(engine.tokenise(query, passages, Truncate.END))
    engine.score(pairs)

    for passage, matches in zip(passages, engine.aligner.matches(query, passages, pairs), strict=True):
        places = {place for match in matches for place in range(*match.query)}
        assert places | {0, 1, 6, 9} == set(range(len(query)))  # every character but the spaces
        found = [match.passage for match in matches if match.passage]
        assert found
        assert all(0 <= start < end <= len(passage) for start, end in found)
        assert not {passage[start:end] for start, end in found} & set(engine.format.skipped_words)


def test_each_token_of_a_text_matches_itself(folders: dict[str, Path]) -> None:
    """Without markers, a text has the same vectors as query and as passage, except for the tokens left out."""
    engine: Any = load_engine(local_model(folders["bert-bare"], engine={"query_tokens": 40}))
    text = "  Bees keep honey. In wax."
    pairs = engine.aligner.recording(engine.tokenise(text, [text], Truncate.END))
    engine.score(pairs)

    (matches,) = engine.aligner.matches(text, [text], pairs)

    assert [m.passage for m in matches if text[slice(*m.query)] != "."] == [
        m.query for m in matches if text[slice(*m.query)] != "."
    ]
    assert "".join(text[slice(*match.query)] for match in matches) == text.strip()


def test_lengths_can_be_raised(folders: dict[str, Path]) -> None:
    engine: Any = load_engine(local_model(folders["bert"], window_tokens=60, engine={"query_tokens": 50}))
    (pair,) = engine.tokenise(QUERIES[2], ["word " * 200], Truncate.END)

    assert (len(pair.query_ids), len(pair.token_ids), pair.num_tokens) == (50, 60, 110)
    with pytest.raises(PairTooLong, match="exceeds maximum allowed token size 60"):
        engine.tokenise("q", ["word " * 200], Truncate.NONE)
    with pytest.raises(CheckpointError, match="queries of 5000 tokens are longer than the model's"):
        load_engine(local_model(folders["bert"], engine={"query_tokens": 5000}))


def test_a_configured_head_replaces_the_sum(folders: dict[str, Path]) -> None:
    plain = load_engine(local_model(folders["bert"]))
    head = {"cosine_weight": 0, "maxsim_weight": 2, "bias": 1}
    scaled = load_engine(local_model(folders["bert"], engine={"head": head}))
    pairs = plain.tokenise(QUERIES[0], PASSAGES, Truncate.END)

    assert scaled.score(pairs) == pytest.approx([1 + 2 * logit / 16 for logit in plain.score(pairs)], abs=1e-5)


def altered(folder: Path, target: Path, file: str, **settings: Any) -> Path:
    copy = shutil.copytree(folder, target / "altered")
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return copy


SETTINGS, DENSE, STANFORD = "config_sentence_transformers.json", "1_Dense/config.json", "artifact.metadata"


@pytest.mark.parametrize(
    ("case", "file", "settings", "reason"),
    [
        ("bert", SETTINGS, {"similarity_fn_name": "dot"}, "compares tokens by 'dot'; only MaxSim"),
        ("bert", SETTINGS, {"query_length": "32"}, "query_length: '32', which is not of the type int"),
        ("bert", SETTINGS, {"query_length": 2}, "query_length: 2; the least is 8"),
        ("bert", SETTINGS, {"query_prefix": "[X] "}, r"the token '\[X\] ', which its tokenizer does not have"),
        ("bert", SETTINGS, {"model_type": "MultiVectorEncoder"}, "save the model with pylate"),
        ("bert", DENSE, {"activation_function": "os.system"}, "has the activation function os.system; supported"),
        ("bert", DENSE, {"activation_function": "evil.GELU"}, "has the activation function evil.GELU; supported"),
        ("bert", DENSE, {"bias": True}, "its config.json calls for"),
        ("bert", DENSE, {"in_features": 32}, "its config.json calls for"),
        ("stanford", STANFORD, {"similarity": "l2"}, "compares tokens by 'l2'; only cosine"),
    ],
)
def test_what_no_engine_has_is_refused_by_name(
    folders: dict[str, Path], tmp_path: Path, case: str, file: str, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        load_engine(local_model(altered(folders[case], tmp_path, file, **settings)))


def test_incomplete_files_are_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    for number, (case, missing, reason) in enumerate(
        [
            ("bert", "modules.json", "no Dense module in modules.json"),
            ("bert", "1_Dense/config.json", "cannot read .*1_Dense/config.json"),
            ("bert", "1_Dense/model.safetensors", "the projection must be in"),
            ("stanford", "artifact.metadata", "has no artifact.metadata"),
        ]
    ):
        copy = shutil.copytree(folders[case], tmp_path / str(number))
        (copy / missing).unlink()
        with pytest.raises(CheckpointError, match=reason):
            load_engine(local_model(copy))


def test_a_pickled_projection_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["bert"], tmp_path / "bert")
    (copy / "1_Dense/model.safetensors").rename(copy / "1_Dense/pytorch_model.bin")

    with pytest.raises(CheckpointError, match=r"only pickled weights .*which can run code"):
        load_engine(local_model(copy))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_a_quantised_projection_without_a_scale_is_refused(
    folders: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    copy = shutil.copytree(folders["bert"], tmp_path / "bert")
    path = copy / "1_Dense/model.safetensors"
    save_file({name: (100 * tensor).to(dtype) for name, tensor in load_file(path).items()}, path)

    with pytest.raises(CheckpointError, match=r"linear.weight in .*1_Dense.* no scale says what they stand for"):
        load_engine(local_model(copy))


@pytest.mark.parametrize("kind", ["sentence_transformers.models.LayerNorm", "sentence_transformers.models.Router"])
def test_a_module_that_no_engine_computes_is_refused(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    copy = shutil.copytree(folders["bert"], tmp_path / "bert")
    modules = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps([*modules, {"idx": 2, "name": "2", "path": "2_X", "type": kind}]))

    with pytest.raises(CheckpointError, match=f"modules that no engine computes: {kind}"):
        load_engine(local_model(copy))


@pytest.mark.parametrize("place", ["../elsewhere", "/etc", "a/b"])
def test_a_module_outside_the_folder_is_refused(folders: dict[str, Path], tmp_path: Path, place: str) -> None:
    copy = shutil.copytree(folders["bert"], tmp_path / "bert")
    modules = json.loads((copy / "modules.json").read_text())
    modules[1]["path"] = place
    (copy / "modules.json").write_text(json.dumps(modules))

    with pytest.raises(CheckpointError, match="which is not in the checkpoint"):
        load_engine(local_model(copy))


def test_a_language_model_is_refused(tmp_path: Path) -> None:
    """Such as LFM2-ColBERT: packed attention would show each token the later ones."""
    folder = make_checkpoint(tmp_path / "qwen3", Architecture.QWEN3, "tiny", dtype="float32")
    weights = load_file(folder / "model.safetensors")
    kept = {name.removeprefix("model."): one for name, one in weights.items() if name.startswith("model.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["Qwen3Model"]}
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=r"is a language model \(qwen3\)"):
        load_engine(local_model(folder, window_tokens=100))
