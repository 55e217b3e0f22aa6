"""Runs a model twice, as a plain reference and as served, and compares the results.

The reference is freed before the served model is loaded, since two copies, one in float32, might not fit in memory.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import cycle
from typing import NamedTuple

import torch

from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.checkpoints.verification import Progress, no_progress
from rerank_service.config import ModelConfig
from rerank_service.engine.build import engine_kind
from rerank_service.engine.device.choose import choose_device
from rerank_service.engine.device.cuda import release_unused_memory
from rerank_service.engine.loading import refuse_pickles
from rerank_service.tools.verify.recorded import RecordedLogits
from rerank_service.tools.verify.reference import Reference, load_reference
from rerank_service.tools.verify.served import PairTokens, ServedLogits, ServedPath
from rerank_service.tools.verify.texts import VERIFICATION_QUERIES, VerificationQuery, over_long_queries
from rerank_service.tools.verify.verdict import RecordedFigures, TokenFigures, Verdict, figures_of, judge

__all__ = ["ReferenceRun", "compare_served", "run_reference", "verify"]

_LONGEST_SCORED = 1_024
"""Tokens of the longest pair whose logit is compared; for longer pairs, only the tokens are compared. A pair of 8,192
tokens would take minutes on a CPU, and one matrix of `eager` attention would take 8.6 GB for the 1B's 32 heads."""

_FEW_PARAMETERS = 50_000_000
"""A reference with fewer parameters runs on one thread, since several threads would mostly wait for each other. On a
busy machine, all-MiniLM-L6-v2 took 17 CPU-seconds on two threads and 0.9 on one."""

_REQUEST_SIZES = (1, 2, 3)
"""Passages per request when all pairs are scored again in small requests."""


class Expected(NamedTuple):
    """Reference result of a query."""

    question: VerificationQuery
    tokens: tuple[PairTokens, ...]
    num_cut: int
    """Pairs truncated to the window."""
    logits: tuple[float, ...] | None
    """Logits in the order of the passages; null if a pair is too long to be scored."""


class ReferenceRun(NamedTuple):
    """Result of the reference run."""

    model: str
    description: str
    window_tokens: int
    expected: list[Expected]
    recorded: tuple[RecordedLogits, ...]


def verify(
    model: ModelConfig,
    open_served: Callable[[], ServedPath],
    recorded: Sequence[RecordedLogits] = (),
    on_progress: Progress = no_progress,
) -> Verdict:
    """Compares a model with its reference. Raises `CheckpointError`, and the errors of the served path."""
    run = run_reference(model, recorded, on_progress)
    gc.collect()  # frees the reference before the served model is loaded
    release_unused_memory()
    on_progress("served", 0, 1)
    with closing(open_served()) as served:
        return compare_served(run, served, on_progress)


def run_reference(
    model: ModelConfig, recorded: Sequence[RecordedLogits] = (), on_progress: Progress = no_progress
) -> ReferenceRun:
    """Runs the reference on the queries in `texts.py`, the queries with recorded logits, and two queries that exceed
    the window."""
    on_progress("reference", 0, 1)
    folder = resolve_checkpoint(model.checkpoint)
    refuse_pickles(folder)
    kind, device = engine_kind(folder, model.engine), choose_device(model.engine.device).device
    reference = load_reference(kind, folder, model, device)
    if num_threads := model.engine.num_threads or (1 if reference.num_parameters < _FEW_PARAMETERS else None):
        torch.set_num_threads(num_threads)  # the served engine sets its own number later
    further = [VerificationQuery(one.query, one.passages) for one in recorded]
    questions = [*VERIFICATION_QUERIES, *further, *over_long_queries(reference.window_tokens)]
    count = _Count("reference", _num_pairs(questions), on_progress)
    expected = [_expect(reference, question, count) for question in questions]
    description = f"transformers on {device} in float32, one pair at a time ({kind.value})"
    return ReferenceRun(model.id, description, reference.window_tokens, expected, tuple(recorded))


def compare_served(run: ReferenceRun, served: ServedPath, on_progress: Progress = no_progress) -> Verdict:
    """Scores the same queries with the served model and compares the results."""
    expected = {one.question: one.logits for one in run.expected if one.logits is not None}
    answers, elsewhere = _ask_twice(served, list(expected), on_progress)
    figures = figures_of(list(expected.values()), [answer.logits for answer in answers.values()], elsewhere)
    tokens = _compare_tokens(run, served, answers)
    recorded = tuple(
        RecordedFigures(one, expected[question], answers[question].logits)
        for one in run.recorded
        for question in [VerificationQuery(one.query, one.passages)]
    )
    checks, reason = judge(figures, tokens, recorded, served.dtype, served.must_repeat)
    return Verdict(
        model=run.model,
        served=served.description,
        reference=run.description,
        dtype=served.dtype,
        is_faithful=all(check.is_passed for check in checks),
        reason=reason,
        checks=checks,
        figures=figures,
        tokens=tokens,
        recorded=recorded,
    )


def _expect(reference: Reference, question: VerificationQuery, count: "_Count") -> Expected:
    encoded = [reference.encode(question.query, passage) for passage in question.passages]
    num_cut = sum(one.is_cut for one in encoded)
    tokens = tuple(PairTokens(one.token_ids, one.num_tokens) for one in encoded)
    if any(one.num_tokens > _LONGEST_SCORED for one in encoded):
        return Expected(question, tokens, num_cut, None)
    logits = []
    for one in encoded:
        logits.append(reference.logit(one))
        count.add(1)
    return Expected(question, tokens, num_cut, tuple(logits))


def _ask_twice(
    served: ServedPath, questions: Sequence[VerificationQuery], on_progress: Progress
) -> tuple[dict[VerificationQuery, ServedLogits], list[tuple[float, ...]]]:
    """Scores everything twice: first all queries concurrently, in mixed batches; then small requests one by one, in
    reverse order. The logits of the second run are returned in the order of the first run.
    """
    count = _Count("served", 2 * _num_pairs(questions), on_progress)
    answers = served.answer(questions, True, count.add)
    small = list(_small_requests(questions))
    again = served.answer([question for _, question in small], False, count.add)
    backwards: list[list[float]] = [[] for _ in questions]
    for (index, _), answer in zip(small, again, strict=True):
        backwards[index] += answer.logits
    return dict(zip(questions, answers, strict=True)), [tuple(logits[::-1]) for logits in backwards]


def _small_requests(questions: Sequence[VerificationQuery]) -> Iterator[tuple[int, VerificationQuery]]:
    """Yields the queries from last to first, each with its passages in reverse order, a few passages at a time."""
    sizes = cycle(_REQUEST_SIZES)
    for index in reversed(range(len(questions))):
        passages = questions[index].passages[::-1]
        while passages:
            size = next(sizes)
            yield index, VerificationQuery(questions[index].query, passages[:size])
            passages = passages[size:]


def _compare_tokens(
    run: ReferenceRun, served: ServedPath, answers: Mapping[VerificationQuery, ServedLogits]
) -> TokenFigures:
    """Compares token ids pair by pair, or numbers of tokens request by request if the ids are unknown."""
    alike: list[bool] = []
    num_cut, unit = 0, "pairs"
    for expected in run.expected:
        shown = served.tokens(expected.question)
        if shown is not None:
            alike += [one == other for one, other in zip(expected.tokens, shown, strict=True)]
        elif expected.question in answers:
            unit = "requests"
            alike.append(sum(pair.num_tokens for pair in expected.tokens) == answers[expected.question].num_tokens)
        else:
            continue
        num_cut += expected.num_cut
    return TokenFigures(unit, len(alike), alike.count(False), num_cut, run.window_tokens)


class _Count:
    """Counts scored pairs and reports them."""

    def __init__(self, stage: str, total: int, on_progress: Progress) -> None:
        self._stage, self._total, self._on_progress = stage, total, on_progress
        self._done = 0
        self.add(0)

    def add(self, num_pairs: int) -> None:
        self._done += num_pairs
        self._on_progress(self._stage, self._done, self._total)


def _num_pairs(questions: Sequence[VerificationQuery]) -> int:
    return sum(len(question.passages) for question in questions)
