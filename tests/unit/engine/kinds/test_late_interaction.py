"""The embedded default model, with its real weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import BertModel, PreTrainedTokenizerFast

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.engine import Engine, Truncate, load_engine
from rerank_service.engine.kinds.late_interaction import LateInteractionEngine
from rerank_service.errors import PairTooLong
from rerank_service.messages import TokenMatch, rank_by_logit
from tests.attention import recorded_passes
from tests.models import NASTY_PASSAGES, embedded_model

QUERY = "What is the capital of France?"


@pytest.fixture(scope="module", params=[False, True], ids=["pair by pair", "in chunks, as on a GPU"])
def engine(request: pytest.FixtureRequest) -> Engine:
    engine = load_engine(embedded_model())
    assert isinstance(engine, LateInteractionEngine)
    engine.compares_in_chunks = request.param
    return engine


def reference_logits(query: str, passages: list[str]) -> list[float]:
    """Logits by the formula, with transformers' unmodified BERT, one text at a time."""
    folder = resolve_checkpoint(embedded_model().checkpoint)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        folder, tokenizer_file=str(folder / "tokenizer.json"), split_special_tokens=True
    )
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()

    @torch.inference_mode()
    def states(text: str) -> torch.Tensor:
        ids = tokenizer(text, truncation=True, max_length=256, padding=False)["input_ids"]
        return model(torch.tensor([ids])).last_hidden_state[0]

    q = states(query)
    logits = []
    for passage in passages:
        p = states(passage)
        cosine = F.cosine_similarity(q.mean(0), p.mean(0), dim=0)
        maxsim = (F.normalize(q[1:-1], dim=-1) @ F.normalize(p, dim=-1).T).amax(1).mean()
        logits.append(float(6.42 * cosine + 9.83 * maxsim - 11.00))
    return logits


def test_each_logit_equals_the_formula(engine: Engine) -> None:
    logits = engine.score(engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END))

    assert logits == pytest.approx(reference_logits(QUERY, NASTY_PASSAGES), abs=1e-4)


def reference_matches(query: str, passage: str) -> list[TokenMatch]:
    """The best match of each query token, with transformers' unmodified BERT."""
    folder = resolve_checkpoint(embedded_model().checkpoint)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        folder, tokenizer_file=str(folder / "tokenizer.json"), split_special_tokens=True
    )
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()

    def encoded(text: str) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        tokens = tokenizer(text, truncation=True, max_length=256, return_offsets_mapping=True)
        with torch.inference_mode():
            states = model(torch.tensor([tokens["input_ids"]])).last_hidden_state[0]
        return F.normalize(states, dim=-1), tokens["offset_mapping"]

    (q, q_places), (p, p_places) = encoded(query), encoded(passage)
    matches = []
    for state, place in list(zip(q, q_places, strict=True))[1:-1]:
        cosines = p @ state
        best = int(cosines.argmax())
        matches.append(TokenMatch(place, None if p_places[best] == (0, 0) else p_places[best], float(cosines[best])))
    return matches


@pytest.mark.parametrize("query", [QUERY, "Wie heißt die Hauptstadt Frankreichs? 首都", "capital " * 400])
def test_matches_are_the_largest_cosines(engine: Engine, query: str) -> None:
    aligner = engine.aligner
    assert aligner is not None
    pairs = aligner.recording(engine.tokenise(query, NASTY_PASSAGES, Truncate.END))
    engine.score(pairs)

    for passage, matches in zip(NASTY_PASSAGES, aligner.matches(query, NASTY_PASSAGES, pairs), strict=True):
        expected = reference_matches(query, passage)
        assert [match.query for match in matches] == [match.query for match in expected]
        assert [match.similarity for match in matches] == pytest.approx([m.similarity for m in expected], abs=1e-5)
        differing = [pair for pair in zip(matches, expected, strict=True) if pair[0].passage != pair[1].passage]
        assert len(differing) <= len(matches) * 0.02  # two tokens may tie within rounding


def test_matches_are_places_in_the_texts_as_sent(engine: Engine) -> None:
    passage = "🎉 Naïve PARIS"
    aligner = engine.aligner
    assert aligner is not None
    pairs = aligner.recording(engine.tokenise("paris naïve", [passage], Truncate.END))
    engine.score(pairs)

    (matches,) = aligner.matches("paris naïve", [passage], pairs)

    assert [("paris naïve"[slice(*m.query)], passage[slice(*(m.passage or (0, 0)))]) for m in matches] == [
        ("paris", "PARIS"),
        ("naïve", "Naïve"),
    ]


def test_recording_matches_changes_no_logit(engine: Engine) -> None:
    pairs = engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)
    aligner = engine.aligner
    assert aligner is not None
    recording = aligner.recording(pairs)
    mixed = [recording[n] if n % 2 else pair for n, pair in enumerate(pairs)]

    assert engine.score(recording) == engine.score(mixed) == engine.score(pairs)


def test_the_matches_of_a_cached_passage_are_the_same() -> None:
    cached = load_engine(embedded_model(engine={"passage_cache_bytes": 10_000_000}))
    aligner = cached.aligner
    assert aligner is not None
    pairs = cached.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)
    found = []
    for _ in range(2):
        recording = aligner.recording(pairs)
        cached.score(recording)
        found.append(aligner.matches(QUERY, NASTY_PASSAGES, recording))

    assert cached.cache_counts.hits > 0
    assert found[0] == found[1]


def test_a_query_without_words_has_no_matches(engine: Engine) -> None:
    aligner = engine.aligner
    assert aligner is not None
    pairs = aligner.recording(engine.tokenise("\x00", ["Paris"], Truncate.END))
    engine.score(pairs)

    assert aligner.matches("\x00", ["Paris"], pairs) == [[]]


def test_passages_keep_different_logits_with_a_long_query(engine: Engine) -> None:
    """Query and passage each have their own window, so a long query takes no room from the passages."""
    query, passages = "Which city is the capital? " * 200, [NASTY_PASSAGES[2], "bees make honey", "the last train"]

    pairs = engine.tokenise(query, passages, Truncate.END)

    assert engine.score(pairs) == pytest.approx(reference_logits(query, passages), abs=1e-4)
    assert [(pair.is_truncated, pair.is_passage_cut, pair.is_unscored) for pair in pairs] == [(True, False, False)] * 3
    assert rank_by_logit(engine.score(pairs))[0] == 0


def test_the_most_relevant_passage_is_first_and_the_least_relevant_last(engine: Engine) -> None:
    passages = [
        "A croissant is a buttery, flaky pastry.",
        "The French Revolution began in 1789.",
        "Paris is the capital and largest city of France.",
        "Berlin is the capital of Germany.",
    ]

    logits = engine.score(engine.tokenise(QUERY, passages, Truncate.END))

    assert rank_by_logit(logits)[0] == 2
    assert rank_by_logit(logits)[-1] == 0
    assert logits[2] > 0 > logits[3]


def test_pairs_of_several_queries_share_a_batch(engine: Engine) -> None:
    first = engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)
    second = engine.tokenise("Wie heißt die Hauptstadt?", NASTY_PASSAGES[::-1], Truncate.END)
    mixed = [pair for pairs in zip(first, second, strict=True) for pair in pairs]

    logits = engine.score(mixed)

    assert logits[0::2] == pytest.approx(engine.score(first), abs=2e-5)
    assert logits[1::2] == pytest.approx(engine.score(second), abs=2e-5)


def test_a_logit_does_not_depend_on_its_batch(engine: Engine) -> None:
    pairs = engine.tokenise(QUERY, NASTY_PASSAGES, Truncate.END)

    alone = [engine.score([pair])[0] for pair in pairs]

    assert engine.score(pairs * 2) == pytest.approx(alone * 2, abs=2e-5)


def test_a_query_without_words_is_still_scored(engine: Engine) -> None:
    logits = engine.score(engine.tokenise("\x00", NASTY_PASSAGES, Truncate.END))

    assert np.isfinite(logits).all()


def test_truncation_keeps_the_closing_token(engine: Engine) -> None:
    (pair,) = engine.tokenise("q", ["word " * 600], Truncate.END)

    assert (len(pair.token_ids), pair.token_ids[0], pair.token_ids[-1]) == (256, 101, 102)
    assert pair.is_truncated
    with pytest.raises(PairTooLong, match="Input length 602 exceeds maximum allowed token size 256"):
        engine.tokenise("q", ["short", "word " * 600], Truncate.NONE)


def test_the_window_comes_from_the_checkpoint_and_can_be_raised() -> None:
    assert load_engine(embedded_model()).window_tokens == 256
    assert load_engine(embedded_model(window_tokens=512)).window_tokens == 512


def test_tokens_of_query_and_passage_are_counted(engine: Engine) -> None:
    (pair,) = engine.tokenise("one two", ["three"], Truncate.END)

    assert pair.num_tokens == (2 + 2) + (1 + 2)


def test_tampered_weights_are_refused(tmp_path: Path) -> None:
    from rerank_service.errors import CheckpointError

    source = resolve_checkpoint(embedded_model().checkpoint)
    for path in source.glob("*.*"):
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    digest = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

    model = embedded_model().model_copy(
        update={
            "checkpoint": embedded_model().checkpoint.model_copy(update={"source": str(tmp_path), "sha256": digest})
        }
    )
    with pytest.raises(CheckpointError, match="sha256"):
        load_engine(model)


def test_a_cached_passage_has_the_same_logit_to_the_last_bit() -> None:
    fresh = load_engine(embedded_model())
    cached = load_engine(embedded_model(engine={"passage_cache_bytes": 10_000_000}))
    before = cached.cache_counts  # counts from the warm-up
    for query in (QUERY, "another question", QUERY):
        pairs = cached.tokenise(query, NASTY_PASSAGES, Truncate.END)
        assert cached.score(pairs) == fresh.score(pairs)

    distinct = len({pair.token_ids.tobytes() for pair in pairs})
    assert cached.cache_counts.hits - before.hits == 2 * distinct
    assert cached.cache_counts.misses - before.misses == distinct
    assert fresh.cache_counts == (0, 0)


def test_a_query_is_encoded_once_for_all_batches_of_its_request() -> None:
    engine = load_engine(embedded_model())
    pairs = engine.tokenise(QUERY, ["one passage", "another"], Truncate.END)

    with recorded_passes() as passes:
        for pair in pairs:
            engine.score([pair])

    assert [len(packed.bounds) - 1 for packed in passes] == [2, 1]
