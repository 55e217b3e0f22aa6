"""Explains the best passages of a ranking: which passages to score in addition, and what their scores say.

A model with late interaction reports which tokens match. With any other model, each sentence of a passage is left out
in turn, and the change of the logit is the sentence's contribution. This contribution is approximate, because sentences
also affect the logit together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Protocol

from rerank_service.messages import (
    Explanation,
    Ranked,
    SentenceContribution,
    SentenceContributions,
    Span,
    TokenAlignment,
)
from rerank_service.routing.sentences import split_sentences

__all__ = ["AlignmentPlan", "ExplanationPlan", "LeaveOneOutPlan", "plan_explanation", "with_explanations"]

_MAX_SENTENCES = 16
"""Maximum number of sentences per passage, and therefore of extra passages to score for it. If a passage has more,
neighbouring sentences are joined."""


class ExplanationPlan(Protocol):
    """How the best passages of a ranking are explained."""

    @property
    def passages(self) -> Sequence[str]:
        """The passages to score for the same query; may be empty."""
        ...

    @property
    def aligns(self) -> bool:
        """Whether to ask for token matches with the logits."""
        ...

    def explanations(self, scored: Ranked | None) -> list[Explanation]:
        """The explanations, most relevant passage first. `scored` has the scores of `passages`, or is null if
        `passages` is empty."""
        ...


def plan_explanation(passages: Sequence[str], ranked: Ranked, top_n: int) -> ExplanationPlan:
    """The plan for the `top_n` best passages. `ranked` is the ranking of `passages`."""
    best = ranked.order[:top_n]
    texts = [passages[index] for index in best]
    if ranked.can_align:
        return AlignmentPlan(best, texts)
    return LeaveOneOutPlan(best, texts, [ranked.logits[index] for index in best])


def with_explanations(ranked: Ranked, plan: ExplanationPlan, scored: Ranked | None) -> Ranked:
    """The ranking with its explanations. `scored` has the scores of the plan's passages, or is null if the plan has
    none. The tokens, shards and times of `scored` are added to those of the ranking."""
    explanations = plan.explanations(scored)
    if scored is None:
        return replace(ranked, explanations=explanations)
    return replace(
        ranked,
        explanations=explanations,
        num_explaining=len(scored.logits),
        num_tokens=ranked.num_tokens + scored.num_tokens,
        num_shards=ranked.num_shards + scored.num_shards,
        tokenise_s=ranked.tokenise_s + scored.tokenise_s,
        queue_s=ranked.queue_s + scored.queue_s,
        forward_s=ranked.forward_s + scored.forward_s,
        total_s=ranked.total_s + scored.total_s,
    )


@dataclass(frozen=True, slots=True)
class AlignmentPlan:
    """Plan that scores the passages again and asks for their token matches too."""

    indices: Sequence[int]
    passages: Sequence[str]
    aligns: bool = True

    def explanations(self, scored: Ranked | None) -> list[Explanation]:
        """See `ExplanationPlan`."""
        if scored is None or scored.matches is None:
            raise RuntimeError("the replicas reported no token matches")
        return [TokenAlignment(index, matches) for index, matches in zip(self.indices, scored.matches, strict=True)]


class LeaveOneOutPlan:
    """Plan that scores each passage once per sentence, with that sentence left out."""

    aligns = False

    def __init__(self, indices: Sequence[int], passages: Sequence[str], logits: Sequence[float]) -> None:
        self._indices = indices
        self._logits = logits
        self._sentences = [split_sentences(passage, _MAX_SENTENCES) for passage in passages]
        self._variants = [
            _without_each(passage, sentences) for passage, sentences in zip(passages, self._sentences, strict=True)
        ]

    @property
    def passages(self) -> Sequence[str]:
        """Each passage once per sentence, without that sentence. A passage with a single sentence adds none."""
        return [variant for variants in self._variants for variant in variants]

    def explanations(self, scored: Ranked | None) -> list[Explanation]:
        """See `ExplanationPlan`."""
        logits = scored.logits if scored else []
        bounds = accumulate(map(len, self._variants), initial=0)
        return [
            SentenceContributions(index, _contributions(sentences, whole, logits[start:end]))
            for index, sentences, whole, (start, end) in zip(
                self._indices, self._sentences, self._logits, pairwise(bounds), strict=True
            )
        ]


def _without_each(passage: str, sentences: Sequence[Span]) -> list[str]:
    if len(sentences) < 2:
        return []
    following = [*(start for start, _ in sentences[1:]), len(passage)]
    return [passage[:start] + passage[after:] for (start, _), after in zip(sentences, following, strict=True)]


def _contributions(
    sentences: Sequence[Span], whole: float, logits_without: Sequence[float]
) -> list[SentenceContribution]:
    if not logits_without:
        return [SentenceContribution(sentence, None) for sentence in sentences]
    return [
        SentenceContribution(sentence, whole - logit) for sentence, logit in zip(sentences, logits_without, strict=True)
    ]
