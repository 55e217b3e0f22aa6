"""A batch job from input to output: plan or resume, score the missing chunks, join the parts.

A job can be resumed only with the same input, model and settings, so its output equals that of an uninterrupted run.
The caller decides how chunks are scored.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rerank_service.checkpoints.verification import Progress, read_digests
from rerank_service.errors import BatchError
from rerank_service.tools.batch.beir import build_index
from rerank_service.tools.batch.chunk_scorer import ScoredChunk, ScoringTask
from rerank_service.tools.batch.chunks import Chunk, ChunkPlan, plan_chunks
from rerank_service.tools.batch.outputs import check_output, write_output
from rerank_service.tools.batch.parts import Parts, whole_file
from rerank_service.tools.batch.records import Position
from rerank_service.tools.batch.sources import open_source
from rerank_service.tools.files import file_problem

__all__ = ["BatchJob", "Summary", "prepare"]

_FORMAT = 1
"""Version of the files' formats. A job whose files have another version cannot be resumed."""
_MODEL_SETTINGS: Any = {"id": True, "checkpoint": {"source", "revision", "sha256"}, "window_tokens": True}

ScoreChunks = Callable[[Iterable[Chunk]], Iterator[ScoredChunk]]
"""A function that scores chunks and yields the results in any order."""


@dataclass
class Summary:
    """Result of one run of the command; `num_resumed_pairs` were scored by earlier runs."""

    num_pairs: int
    num_resumed_pairs: int
    num_scored_pairs: int = 0
    num_tokens: int = 0
    num_truncated_pairs: int = 0
    num_unscored_pairs: int = 0
    engine: str | None = None
    peak_worker_memory_bytes: int = 0


class BatchJob:
    """A planned job with a locked parts folder."""

    def __init__(self, output: Path, parts: Parts, plan: ChunkPlan, manifest: dict[str, Any]) -> None:
        self._output = output
        self._parts = parts
        self._plan = plan
        self._manifest = manifest
        done = parts.done()
        self.missing = [chunk for chunk in plan.chunks if chunk.index not in done]
        num_missing = sum(chunk.num_pairs for chunk in self.missing)
        self.summary = Summary(plan.num_pairs, plan.num_pairs - num_missing, engine=manifest["engine"])

    def score(self, scorer: ScoreChunks, progress: Progress) -> None:
        """Scores and saves the missing chunks. Raises `BatchError` if workers use different engines."""
        summary = self.summary
        progress("scored", summary.num_resumed_pairs, summary.num_pairs)
        for scored in scorer(self.missing):
            if summary.engine is None:
                summary.engine = self._manifest["engine"] = scored.engine
                self._parts.write_manifest(self._manifest)
            elif scored.engine != summary.engine:
                raise BatchError(
                    f"earlier chunks were scored by {summary.engine!r}, this chunk by {scored.engine!r}, and their "
                    "logits differ: set --dtype, and use a device that every machine of the job has"
                )
            self._parts.write(scored.chunk, scored.lines)
            summary.num_scored_pairs += self._plan.chunks[scored.chunk].num_pairs
            summary.num_tokens += scored.num_tokens
            summary.num_truncated_pairs += scored.num_truncated
            summary.num_unscored_pairs += scored.num_unscored
            summary.peak_worker_memory_bytes = max(summary.peak_worker_memory_bytes, scored.peak_memory_bytes)
            progress("scored", summary.num_resumed_pairs + summary.num_scored_pairs, summary.num_pairs)

    def finish(self, progress: Progress, keep_parts: bool = False) -> None:
        """Joins the parts into the output atomically, then removes the parts unless `keep_parts` is true."""
        with whole_file(self._output) as file:
            write_output(self._output, self._counted(progress), file)
        if not keep_parts:
            self._parts.remove()

    def _counted(self, progress: Progress) -> Iterator[bytes]:
        for number, line in enumerate(self._parts.lines(self._plan.chunks), 1):
            yield line
            if number % 10_000 == 0 or number == self._plan.num_pairs:
                progress("joined", number, self._plan.num_pairs)


def prepare(
    task: ScoringTask, output: Path, parts: Parts, chunk_pairs: int, progress: Progress, overwrite: bool = False
) -> BatchJob:
    """Plans a new job, or resumes the job in `parts`. Raises `BatchError` for an invalid input or output, or for
    settings that differ from those of the job to resume."""
    check_output(output)
    source = open_source(task.files)
    settings = _settings(task, chunk_pairs, source.files, progress)
    manifest = parts.manifest()
    if manifest is not None:
        _check_same(manifest["settings"], settings, parts.folder)
        chunks = (
            Chunk(index, index * chunk_pairs, num_pairs, Position(offset, number), skip)
            for index, (offset, number, skip, num_pairs) in enumerate(manifest["chunks"])
        )
        return BatchJob(output, parts, ChunkPlan(manifest["num_pairs"], tuple(chunks)), manifest)
    if output.exists() and not overwrite:
        raise BatchError(f"{output} already exists; --force replaces it")
    parts.clear()
    if task.files.path.is_dir():
        build_index(task.files.path, parts.index)
    plan = plan_chunks(source, chunk_pairs, lambda position: progress("read", position.offset, source.extent))
    manifest = {"settings": settings, "engine": None, "num_pairs": plan.num_pairs}
    manifest["chunks"] = [[*chunk.start, chunk.skip_pairs, chunk.num_pairs] for chunk in plan.chunks]
    parts.write_manifest(manifest)
    return BatchJob(output, parts, plan, manifest)


def _settings(task: ScoringTask, chunk_pairs: int, files: tuple[Path, ...], progress: Progress) -> dict[str, Any]:
    model = task.model.model_dump(mode="json", include=_MODEL_SETTINGS)
    engine = task.model.engine.model_dump(mode="json", exclude={"num_threads", "cuda_graphs", "passage_cache_bytes"})
    folder = Path(task.model.checkpoint.source).expanduser() if task.model.checkpoint.is_folder else None
    weights = sorted(path for path in folder.iterdir() if path.is_file()) if folder and folder.is_dir() else []
    return {
        "format": _FORMAT,
        "input": {path.name: _digest(path, progress) for path in files},
        "model": model | engine,
        "checkpoint_files": {path.name: _digest(path, progress) for path in weights},
        "truncate": task.fitting.truncate.value,
        "windows": task.fitting.windows and asdict(task.fitting.windows),
        "chunk_pairs": chunk_pairs,
    }


def _digest(path: Path, progress: Progress) -> str:
    stage = f"fingerprint of {path.name}"
    try:
        return read_digests(path, lambda _, done, total: progress(stage, done, total)).sha256
    except OSError as error:
        raise BatchError(file_problem(error, path)) from None


def _check_same(begun: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    changed = [name for name in wanted if begun.get(name) != wanted[name]]
    if changed:
        details = ", ".join(_difference(name, begun.get(name), wanted[name]) for name in changed)
        raise BatchError(
            f"{folder} contains a job with other settings: {details}. Repeat the original command, or delete the folder"
        )


def _difference(name: str, begun: Any, wanted: Any) -> str:
    if isinstance(begun, dict) and isinstance(wanted, dict):
        keys = [key for key in wanted | begun if begun.get(key) != wanted.get(key)]
        if name in ("input", "checkpoint_files"):
            return f"{name.replace('_', ' ')} ({', '.join(keys)} changed)"
        return ", ".join(f"{key} {begun.get(key)!r} instead of {wanted.get(key)!r}" for key in keys)
    return f"{name} {begun!r} instead of {wanted!r}"
