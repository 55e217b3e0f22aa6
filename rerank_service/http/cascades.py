"""Cascades of one ingress: the stages of a request, one after another, and what the answer says about them.

An ingress without cascades has no object of this module.
"""

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple
from urllib.parse import quote

from rerank_service.config import CascadeConfig, RerankConfig, StageConfig
from rerank_service.errors import RequestTimedOut, RerankError
from rerank_service.http.calibration import cut_at, probabilities_of
from rerank_service.http.dialects import RankingCall, RankingQuery
from rerank_service.http.versions import RankCall, Scored, Versions
from rerank_service.messages import Deadline, Ranked
from rerank_service.routing.cascade import ScoredStage, StageSpeed, joined, keeps_all, passages_to_keep
from rerank_service.telemetry.metrics import (
    CASCADE_SKIPPED_STAGES,
    CASCADE_STAGE_PASSAGES,
    CASCADE_STAGE_SECONDS,
    MetricSink,
)
from rerank_service.telemetry.observation import Observation

__all__ = ["Cascades"]

_OVERLOADED = (503, 504)
"""HTTP status of the errors that `answer_early` avoids: overload, no replica, time limit."""
_SHORT_DEADLINE = "short_deadline"
_KEEPS_ALL = "keeps_all"
_RESERVED_SHARE, _MOST_RESERVED_S = 0.05, 1.0
"""Time that a stage which may be left out leaves for the early answer: a share of the request's time limit, and at most
this many seconds."""
_TIMED_OUT = 2.0
"""Assumed time of a stage that did not finish in time, as a multiple of the time that it had."""

_RankStage = Callable[[RankingCall, str, Deadline], Awaitable[tuple[str, Scored]]]
"""Ranks a call with a model. Returns the id of the model or version that answered, and its answer."""


class _Outcome(NamedTuple):
    """What became of one stage."""

    model: str
    """Id of the stage's model in the configuration."""
    answered_by: str
    """Id of the model, or of the version of it, that scored."""
    num_passages: int = 0
    took_s: float = 0.0
    skipped: str | None = None
    """Why the stage was left out: an error's code or another reason. Null: the stage has scored."""


class Cascades:
    """The cascades, by id. A stage ranks in the same way as a request for the stage's model, versions included."""

    def __init__(self, config: RerankConfig, metrics: MetricSink, versions: Versions | None = None) -> None:
        """`versions` is null if no model has versions."""
        self._cascades = {cascade.id: cascade for cascade in config.cascades}
        self._metrics = metrics
        self._versions = versions
        self._speeds: defaultdict[str, StageSpeed] = defaultdict(StageSpeed)
        self._probabilities = probabilities_of(config)

    async def rank(
        self,
        call: RankingCall,
        observation: Observation,
        caller: str,
        client_id: str | None,
        deadline: Deadline,
        rank: RankCall,
    ) -> Scored:
        """Has the stages of the observed cascade rank a call. Notes each stage in the observation, in the metrics and
        in a header for the answer.

        The last stage alone answers a call for scores instead of a ranking. Under `answer_early`, the ranking of the
        stages before is the answer if a stage after the first is overloaded or has too little time. Raises the errors
        of the stages.
        """
        cascade = self._cascades[observation.model_id]
        if call.min_probability is not None:  # fail before the first stage, not after
            cut_at(call.min_probability, cascade.last_model, self._probabilities)
        rank_stage = partial(self._rank_stage, rank, caller, client_id)
        if call.is_ranking:
            staged = _StagedCall(cascade, call, deadline, rank_stage, self._speeds)
            outcomes = staged.outcomes
            try:
                rankings, headers = [await staged.rank()], staged.headers
            finally:  # the stages before a failed one have worked too
                self._note(cascade.id, observation, outcomes)
        else:
            started = time.perf_counter()
            name, (rankings, headers) = await rank_stage(call, cascade.last_model, deadline)
            num_passages = sum(len(ranked.logits) for ranked in rankings)
            outcomes = [_Outcome(cascade.last_model, name, num_passages, time.perf_counter() - started)]
            self._note(cascade.id, observation, outcomes)
        if call.min_probability is not None:
            scored_by = observation.logits_of or cascade.last_model
            rankings = list(map(cut_at(call.min_probability, scored_by, self._probabilities), rankings))
        return rankings, headers | {"x-rerank-stages": ", ".join(map(_entry, outcomes))}

    async def _rank_stage(
        self, rank: RankCall, caller: str, client_id: str | None, call: RankingCall, model_id: str, deadline: Deadline
    ) -> tuple[str, Scored]:
        """Ranks a call with a stage's model, or with a version that receives a share of the model's requests."""
        if self._versions is None or model_id not in self._versions.models:
            return model_id, await rank(call, caller, client_id, model_id, deadline)
        return await self._versions.answer(call, model_id, caller, client_id, deadline, rank)

    def _note(self, cascade_id: str, observation: Observation, outcomes: Sequence[_Outcome]) -> None:
        timings = []
        for number, one in enumerate(outcomes, 1):
            if one.skipped is None:
                observation.logits_of = one.answered_by
                self._metrics.record(CASCADE_STAGE_PASSAGES, one.num_passages, cascade_id, one.model)
                self._metrics.record(CASCADE_STAGE_SECONDS, one.took_s, cascade_id, one.model)
                timings.append(f', stage-{number};dur={1000 * one.took_s:.1f};desc="{_in_header(one.answered_by)}"')
            elif one.skipped != _KEEPS_ALL:
                self._metrics.record(CASCADE_SKIPPED_STAGES, 1, cascade_id, one.model, one.skipped)
        observation.stage_timings = "".join(timings)
        stages = ",".join(map(_entry, outcomes))
        observation.more_fields["stages"] = stages
        observation.span.set_attribute("rerank.stages", stages)


class _StagedCall:
    """The stages of one call with one query."""

    def __init__(
        self,
        cascade: CascadeConfig,
        call: RankingCall,
        deadline: Deadline,
        rank_stage: _RankStage,
        speeds: Mapping[str, StageSpeed],
    ) -> None:
        """`speeds` has the speed of each stage's model, and learns from this call."""
        self._stages = cascade.stages
        self._answers_early = cascade.on_overload == "answer_early"
        self._call = call
        (self._query,) = call.queries
        self._deadline = deadline
        self._rank_stage = rank_stage
        self._speeds = speeds
        self._scored: list[ScoredStage] = []
        self.outcomes: list[_Outcome] = []
        """What became of each stage, in order."""
        self.headers: dict[str, str] = {}
        """Headers for the answer."""

    async def rank(self) -> Ranked:
        """Runs the stages, and joins their rankings into one. Raises the errors of the stages."""
        started = time.perf_counter()
        indices: Sequence[int] = range(len(self._query.passages))
        skipped = None
        for stage in self._stages:
            passages = [self._query.passages[index] for index in indices]
            if not self._answers_early and keeps_all(stage.keep, passages):
                # An early answer would need the stage's ranking; otherwise, nothing does.
                self.outcomes.append(_Outcome(stage.model, stage.model, skipped=_KEEPS_ALL))
                continue
            skipped = skipped or await self._score(stage, indices, passages)
            if skipped is not None:
                self.outcomes.append(_Outcome(stage.model, stage.model, skipped=skipped))
            elif stage.keep is not None:
                kept = passages_to_keep(stage.keep, passages, self._scored[-1].ranked)
                indices = [indices[at] for at in kept]
        ranked = joined(self._scored, time.perf_counter() - started)
        if self._call.min_probability is not None:  # only the passages of the last stage, which come first, have one
            ranked = replace(ranked, order=ranked.order[: len(self._scored[-1].indices)])
        if self._call.explain_top_n is not None and ranked.explanations is None:
            return replace(ranked, explanations=())  # the last stage, which explains, was left out
        return ranked

    async def _score(self, stage: StageConfig, indices: Sequence[int], passages: Sequence[str]) -> str | None:
        """Has a stage rank these passages. Returns why the stage is left out, if it is."""
        may_skip = self._answers_early and bool(self._scored)
        deadline, speed = self._deadline, self._speeds[stage.model]
        num_characters = sum(map(len, passages)) + len(passages) * len(self._query.text)
        if may_skip:
            reserved_s = min(_MOST_RESERVED_S, _RESERVED_SHARE * deadline.timeout_s)
            deadline = Deadline(deadline.timeout_s, deadline.at_s - reserved_s)
            if deadline.remaining_s() <= speed.expected_s(num_characters):
                return _SHORT_DEADLINE
        call = replace(
            self._call,
            queries=(RankingQuery(self._query.text, passages, indices),),
            explain_top_n=None if stage.keep is not None else self._call.explain_top_n,
            min_probability=None if stage.keep is not None else self._call.min_probability,
        )
        started = time.perf_counter()
        try:
            answered_by, ((ranked,), headers) = await self._rank_stage(call, stage.model, deadline)
        except RerankError as error:
            if isinstance(error, RequestTimedOut):
                speed.add(num_characters, _TIMED_OUT * (time.perf_counter() - started))
            if may_skip and error.http_status in _OVERLOADED:
                return error.code
            raise
        took_s = time.perf_counter() - started
        speed.add(num_characters, took_s)
        self._scored.append(ScoredStage(indices, ranked))
        self.outcomes.append(_Outcome(stage.model, answered_by, len(passages), took_s))
        self.headers |= headers
        return None


def _entry(outcome: _Outcome) -> str:
    """A stage in the header: `small=512`, or `large=0;skipped=queue_full`."""
    reason = "" if outcome.skipped is None else f";skipped={outcome.skipped}"
    return f"{_in_header(outcome.answered_by)}={outcome.num_passages}{reason}"


def _in_header(model_id: str) -> str:
    return quote(model_id, safe="/:@")
