"""`Reranker` ranks passages in a Python process that loads the model itself, without a service and without Ray.

It uses the service's engines, token-based batches and windows, computes the same logits, and returns the client's
`Ranking`.
"""

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from rerank_service.checkpoints.verification import Progress
from rerank_service.client import PassageWindows, RankedPassage, Ranking, Usage
from rerank_service.client.exchange import Truncate as TruncateName
from rerank_service.config import ModelConfig
from rerank_service.engine import Engine, load_engine
from rerank_service.engine.score_all import QueryPassages, score_passages
from rerank_service.engine.text.windows import EncodedPassages
from rerank_service.errors import NonFiniteLogit, PairTooLong
from rerank_service.messages import Fitting, rank_by_logit
from rerank_service.tools.catalogue.settings import LoadOptions, ModelName, model_settings
from rerank_service.tools.reranker_inputs import (
    Places,
    check_model,
    check_top_n,
    checked_fitting,
    checked_pairs,
    checked_questions,
    placed,
)

if TYPE_CHECKING:
    from rerank_service.tools.cli.progress import ProgressBar

__all__ = ["Reranker"]

_Result = TypeVar("_Result")

_SILENT_S = 3.0
"""Calls that take less time show no progress, unless `show_progress` is true."""


class Reranker:
    """A model loaded in this process. Threads may share it: their calls run one after the other.

    `close`, or the end of a `with` block, releases the model and its memory on the device. Loading a model changes two
    settings of the whole process: torch's number of threads, and the log level of transformers, which becomes ERROR.
    """

    def __init__(
        self,
        model: ModelName = "all-MiniLM-L6-v2",
        *,
        device: str = "auto",
        dtype: str | None = None,
        num_threads: int | None = None,
        window_tokens: int | None = None,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
    ) -> None:
        """Loads the model, after downloading its files if they are not on this machine.

        - `model`: a name that `rerank-service models` lists, `ORG/NAME` on the hub, a folder (`./NAME`), a folder of an
          object store (`s3://BUCKET/FOLDER`), or `package:NAME`. A known model is downloaded at the commit in the
          catalogue. For another model on the hub, append `@COMMIT`: without it, each start asks the hub for the newest
          commit and logs it. To choose every setting, pass a `rerank_service.config.ModelConfig` instead of a name.
        - `device`: `cpu`, `cuda` or `cuda:N`. `auto`: a GPU if there is one, else the CPU.
        - `dtype`: `float32`, `bfloat16`, `float16`, `int8`, `float8`, `auto` or `fastest` (see `engine.dtype`). None:
          the catalogue's setting for this model and device, as with `rerank-service serve`.
        - `num_threads`: CPU threads of a forward pass. None: one for each CPU that the process may use. If a
          process loads several models, the number of the model loaded last applies to all.
        - `window_tokens`: longest pair, in tokens. None: the model's own window.
        - `batch_tokens`: most tokens in one forward pass. None: a number that suits the model and the device.
        - `show_progress`: whether to show the progress of downloads and rankings on standard error. None: on a
          terminal, for a call that takes more than three seconds.

        Raises `CheckpointError` (in `rerank_service.errors`) if the model cannot be found or loaded, and `ValueError`
        for an invalid option, or `TypeError` for a wrong type.
        """
        check_model(model)
        self._process = os.getpid()
        self._show_progress = show_progress
        # One thread loads the model and runs all forward passes: each computing thread has its own OpenMP threads.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reranker")
        self._engine: Engine[Any] | None = None
        options = LoadOptions(device, dtype, num_threads, window_tokens, batch_tokens)
        try:
            self._model, self._engine = self._run(partial(_load, model, options))
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    @property
    def model(self) -> ModelConfig:
        """The model's settings in the service's form: id, pinned checkpoint, engine, window and batching."""
        return self._model

    @overload
    def rank(
        self,
        query: str,
        passages: Sequence[str],
        *,
        top_n: int | None = None,
        truncate: TruncateName = "END",
        windows: PassageWindows | None = None,
    ) -> Ranking: ...
    @overload
    def rank(
        self,
        query: list[str] | tuple[str, ...],
        passages: Sequence[str] | Sequence[Sequence[str]],
        *,
        top_n: int | None = None,
        truncate: TruncateName = "END",
        windows: PassageWindows | None = None,
    ) -> list[Ranking]: ...
    def rank(
        self,
        query: str | list[str] | tuple[str, ...],
        passages: Sequence[str] | Sequence[Sequence[str]],
        *,
        top_n: int | None = None,
        truncate: TruncateName = "END",
        windows: PassageWindows | None = None,
    ) -> Ranking | list[Ranking]:
        """Ranks `passages` by relevance to `query` and returns all of them, or the `top_n` best.

        A list of queries returns a list of rankings. `passages` is then one list for all queries, or a list with the
        passages of each query. The list of passages may be empty, and a passage may be blank; a
        query may not.

        A pair that is longer than the model's window is truncated, or refused with `truncate="NONE"`. With `windows`,
        a long passage has the logit of its best window. `num_truncated` and `num_unscored` of a ranking count its
        truncated and unscored passages; `request_id` is empty. The client's option `explain` needs a service.

        Raises `ValueError` or `TypeError` for an invalid argument, `PairTooLong` or `QueryTooLong` for a long pair with
        `truncate="NONE"`, and `NonFiniteLogit` if the model computes NaN or an infinite logit. The last three are in
        `rerank_service.errors`. Each message names the argument, with its index.
        """
        check_top_n(top_n)
        fitting = checked_fitting(truncate, windows)
        questions, places = checked_questions(query, passages)
        encoded, logits = self._score(questions, fitting, places)
        rankings, start = [], 0
        for _, texts in questions:
            rankings.append(_ranking(texts, encoded, logits, slice(start, start + len(texts)), top_n))
            start += len(texts)
        return rankings[0] if isinstance(query, str) else rankings

    @overload
    def predict(self, pairs: tuple[str, str]) -> float: ...
    @overload
    def predict(self, pairs: Sequence[tuple[str, str]] | Sequence[list[str]]) -> NDArray[np.float32]: ...
    def predict(
        self, pairs: tuple[str, str] | Sequence[tuple[str, str]] | Sequence[list[str]]
    ) -> float | NDArray[np.float32]:
        """The logit of each pair of a query and a passage, in the order of `pairs`; a float for a single pair.

        The arguments and the result are those of `CrossEncoder.predict` in sentence-transformers, but the logits are
        raw: `CrossEncoder` applies a sigmoid for most models. Long pairs are truncated. Raises the errors of `rank`.
        """
        listed, is_single = checked_pairs(pairs)
        questions = [(query, [passage for _, passage in group]) for query, group in groupby(listed, key=itemgetter(0))]
        _, logits = self._score(questions, Fitting(), lambda index: (("pairs", index, 0), ("pairs", index, 1)))
        return logits[0] if is_single else np.array(logits, dtype=np.float32)

    def close(self) -> None:
        """Waits for running calls, then releases the model and its memory on the device. Further calls raise
        `RuntimeError`."""
        self._thread.shutdown()
        if self._engine is not None:
            from rerank_service.engine.device.cuda import release_unused_memory  # imports torch, as the engine does

            self._engine = None
            gc.collect()  # torch frees only memory that nothing refers to; models may contain cycles of references
            release_unused_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._engine is None else self._engine.description
        return f"<Reranker {self._model.id}: {state}>"

    def _score(
        self, questions: Sequence[QueryPassages], fitting: Fitting, places: Places
    ) -> tuple[EncodedPassages[Any], tuple[float, ...]]:
        engine, batch_tokens = self._engine, self._model.batching.max_batch_tokens
        if engine is None:
            raise _closed()

        def job(report: Progress) -> tuple[EncodedPassages[Any], tuple[float, ...]]:
            reported = _reported(questions, report)
            return score_passages(engine, reported, fitting, batch_tokens, partial(report, "scored"))

        try:
            return self._run(job)
        except (PairTooLong, NonFiniteLogit) as error:
            raise placed(error, places) from None

    def _run(self, job: Callable[[Progress], _Result]) -> _Result:
        """Runs `job` in the thread. If the waiting caller is interrupted, the job stops at its next report."""
        if os.getpid() != self._process:
            raise RuntimeError("a Reranker does not survive a fork; create it in the process that uses it")
        is_abandoned = threading.Event()
        try:
            future = self._thread.submit(_with_progress, job, self._show_progress, is_abandoned)
        except RuntimeError:
            raise _closed() from None
        try:
            return future.result()
        except BaseException:
            is_abandoned.set()
            future.cancel()
            raise
        finally:
            del future  # it refers to an error, whose traceback refers to this frame


class _Abandoned(Exception):
    """The caller was interrupted and no longer waits for the result, so the job stops."""


def _with_progress(
    job: Callable[[Progress], _Result], show_progress: bool | None, is_abandoned: threading.Event
) -> _Result:
    started = time.monotonic()
    is_shown = sys.stderr.isatty() if show_progress is None else show_progress
    silent_s = 0.0 if show_progress else _SILENT_S
    bar: ProgressBar | None = None
    with ExitStack() as stack:

        def report(stage: str, done: int, total: int) -> None:
            nonlocal bar
            if is_abandoned.is_set():
                raise _Abandoned
            if bar is None and is_shown and time.monotonic() - started >= silent_s:
                from rerank_service.tools.cli.progress import ProgressBar  # imports rich, which few calls need

                bar = stack.enter_context(ProgressBar(scored="pairs", fetching="MB", checking="MB"))
            if bar is not None:
                bar(stage, done, total)

        return job(report)


def _load(model: ModelName, options: LoadOptions, report: Progress) -> tuple[ModelConfig, Engine[Any]]:
    settings = model_settings(model, options, report)
    return settings, load_engine(settings, progress=report)


def _reported(questions: Sequence[QueryPassages], report: Progress) -> Iterator[QueryPassages]:
    """Yields the queries that have passages, and reports each query before it is tokenised."""
    for number, question in enumerate(questions):
        report("reading", number, len(questions))
        if question[1]:
            yield question


def _ranking(
    texts: Sequence[str], encoded: EncodedPassages[Any], logits: Sequence[float], own: slice, top_n: int | None
) -> Ranking:
    """The ranking of one query. `own` selects its passages among those of all queries."""
    own_logits = logits[own]
    num_tokens = sum(encoded.num_tokens[own])
    return Ranking(
        tuple(RankedPassage(index, texts[index], own_logits[index]) for index in rank_by_logit(own_logits)[:top_n]),
        Usage(num_tokens, num_tokens),
        request_id="",
        num_truncated=sum(encoded.is_truncated[own]),
        num_unscored=sum(encoded.is_unscored[own]),
    )


def _closed() -> RuntimeError:
    return RuntimeError("the Reranker is closed")
