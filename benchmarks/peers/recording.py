"""The file of a comparison: written after each turn, so that a later run can continue it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from benchmarks.peers.bare_runs import BareFigures
from benchmarks.peers.rounds import Result, RoundSettings
from benchmarks.provenance import provenance, save_record

__all__ = ["Recording"]


class Recording:
    """Figures in a file; without a path, nothing is written."""

    def __init__(self, path: Path | None, plan: RoundSettings, resume: bool) -> None:
        self._path = path
        self._record = provenance(["rerank-service", "ray", "torch", "transformers"]) | {"settings": _settings(plan)}
        self._earlier: dict[str, Any] = {"bare": [], "contenders": []}
        if resume and path is not None and path.exists():
            self._earlier = json.loads(path.read_text(encoding="utf-8"))
            for name in ("commit", "hardware", "settings"):
                if self._earlier[name] != self._record[name]:
                    raise typer.BadParameter(f"{path} has another {name}; figures of both cannot be compared")
            self._record["command"] = self._earlier["command"]

    def read(self, results: Sequence[Result]) -> None:
        """Adds the rounds of an earlier run."""
        earlier = {recorded["name"]: recorded for recorded in self._earlier["contenders"]}
        for result in results:
            if result.contender.name in earlier:
                result.add(earlier[result.contender.name])

    def write(self, results: Sequence[Result], bare: Sequence[BareFigures]) -> None:
        """Replaces the file's figures of these contenders. `bare` has the runs of this process."""
        if self._path is None:
            return
        figures = [*self._earlier["bare"], *map(asdict, bare)]
        contenders = {recorded["name"]: recorded for recorded in self._earlier["contenders"]}
        contenders |= {result.contender.name: result.as_json() for result in results}
        content = self._record | {"bare": figures, "contenders": list(contenders.values())}
        save_record(self._path, content)


def _settings(plan: RoundSettings) -> dict[str, Any]:
    return {
        "num_requests": len(plan.workload.requests),
        "num_pairs": plan.workload.num_pairs,
        "mean_pair_tokens": round(plan.workload.mean_tokens, 1),
        "logit_range": plan.workload.logit_range,
        "num_clients": plan.num_clients,
        "num_threads": plan.num_threads,
        "num_rounds": plan.num_rounds,
    }
