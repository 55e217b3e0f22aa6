"""One run of the GPU benchmark: for each model the reference, then each variant with its rows, within a time budget."""

import argparse
import gc
import time
from typing import Any

import torch

from benchmarks.on_gpu.limits import Rates, measure_rates, operations
from benchmarks.on_gpu.measure import Reference, figures, reference_logits
from benchmarks.on_gpu.models import collected_warnings, counted_replays, load, state_of, window, written
from benchmarks.on_gpu.plan import Budget, Extent, Row, rows_of, variants_of
from benchmarks.on_gpu.record import Record, table
from benchmarks.provenance import provenance
from rerank_service.engine import Engine
from rerank_service.engine.loading import read_model_config

__all__ = ["bench"]

_LOAD_S = 20.0
"""Assumed time for loading an engine before the first has been loaded."""


def bench(options: argparse.Namespace) -> None:
    """Measures the chosen models. Prints and saves every row as it comes, and ends with the table."""
    rates = measure_rates(options.device)
    origin = provenance(["torch", "transformers", "triton"])
    record = Record(options.json, origin | ({"commit": options.commit} if options.commit else {}), rates)
    float8 = f", float8 {rates.float8 / 1e12:.0f}" if rates.float8 else ""
    print(f"large matrix products, TFLOP/s: bfloat16 {rates.bfloat16 / 1e12:.0f}{float8}", flush=True)
    for model in options.models.split(","):
        _ModelBench(model, options, rates, record).run()
    print("\n" + table(record.rows), flush=True)


class _ModelBench:
    """The rows of one model."""

    def __init__(self, model: str, options: argparse.Namespace, rates: Rates, record: Record) -> None:
        self.model, self.options, self.rates, self.record = model, options, rates, record
        self.budget = Budget.of_model(model, options.budget_s)
        self.load_s = _LOAD_S
        self.checkpoint = written(options.checkpoints, model, options.device)
        print(f"{model}: checkpoint ready, {self.budget.left_s:.0f} s left", flush=True)

    def run(self) -> None:
        """Measures the rows that fit in the budget, the most important first."""
        plans = [self._rows(number) for number in range(len(variants_of(self.options.device)))]
        reference = self._reference(sorted({row.load.num_tokens for row in plans[0]}))
        for rows in plans:
            if self.budget.has_time_for(rows, self.load_s):
                self._bench_variant(rows, reference)
                self._free()
            self.record.add_skipped(self.budget.skipped, "no time")
            self.budget.skipped.clear()

    def _rows(self, number: int) -> list[Row]:
        variant = variants_of(self.options.device)[number]
        extent = Extent(self.options.queue_tokens, self.options.passages, self.options.repeats)
        return rows_of(self.model, variant, window(self.checkpoint), extent, is_first=number == 0)

    def _reference(self, lengths: list[int]) -> Reference:
        started = time.perf_counter()
        if self.budget.left_s < self.load_s:
            self.record.add_skipped([f"{self.model}, float32 reference"], "no time")
            return {}
        try:
            logits = reference_logits(self.checkpoint, lengths, self.options.device)
        except Exception as problem:  # speed can be measured without it
            self.record.add_skipped([f"{self.model}, float32 reference"], _brief(problem))
            return {}
        finally:
            self._free()
        print(f"{self.model}: float32 reference in {time.perf_counter() - started:.0f} s", flush=True)
        return logits

    def _bench_variant(self, rows: list[Row], reference: Reference) -> None:
        started = time.perf_counter()
        with counted_replays() as replays, collected_warnings() as warnings:
            try:
                engine = load(self.checkpoint, rows[0].variant, self.options.device)
                self.load_s = time.perf_counter() - started
                self.record.add_load(self._load_facts(engine, rows[0], warnings))
            except Exception as problem:  # the other variants run even if this one cannot
                self.record.add_skipped([str(row) for row in rows], _brief(problem))
                return
            for row in rows:
                if self.budget.has_time_for([row], self._expected_s(row, engine)):
                    self._measure(row, engine, reference, replays, warnings)

    def _measure(self, row: Row, engine: Engine[Any], reference: Reference, replays: Any, warnings: list[str]) -> None:
        try:
            self.record.add(
                figures(
                    *(row, engine, self.checkpoint),
                    rates=self.rates,
                    reference=reference,
                    batch_tokens=self.options.batch_tokens,
                    replays=replays,
                    warnings=warnings,
                )
            )
        except Exception as problem:  # the other rows are measured even if this one fails
            self.record.add_skipped([str(row)], _brief(problem))

    def _expected_s(self, row: Row, engine: Engine[Any]) -> float:
        work = operations(read_model_config(self.checkpoint), [row.load.num_tokens] * row.load.num_pairs)
        return Budget.expected_row_s(row.load, self.rates.least_seconds(work, engine.precision))

    def _load_facts(self, engine: Engine[Any], row: Row, warnings: list[str]) -> dict[str, Any]:
        start_times = getattr(engine, "start_times", None)
        return {
            "model": self.model,
            "asked_for": row.variant.name,
            "ran_as": str(state_of(engine, 0, 0)),
            "load_s": round(self.load_s, 1),
            "stages": {name: round(value, 1) for name, value in start_times._asdict().items()} if start_times else None,
            "memory_tokens": engine.memory_tokens,
            "warnings": list(warnings),
        }

    def _free(self) -> None:
        gc.collect()
        if self.options.device.startswith("cuda"):
            torch.cuda.empty_cache()


def _brief(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {lines[0][:300]}"
