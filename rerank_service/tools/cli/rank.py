"""`rerank-service rank`: ranks lines of text, with a running service or in this process."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from rerank_service.client import Client, ConnectionFailed, Ranking, RerankClientError
from rerank_service.client import PassageWindows as ClientWindows
from rerank_service.messages import PassageWindows
from rerank_service.tools.cli.console import Key, Url, fail, stdout, unreachable
from rerank_service.tools.cli.options import (
    DEFAULT_OVERLAP_TOKENS,
    ConfigOption,
    MaxWindows,
    OverlapTokens,
    WindowTokens,
    choose_model,
    passage_windows,
)

__all__ = ["rank"]

_TIMEOUT_S = 120.0


def rank(
    query: Annotated[str, typer.Argument(help="The query to rank the passages for.")],
    passages: Annotated[str, typer.Argument(help="File with one passage per line; - reads standard input.")] = "-",
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
    model: Annotated[str | None, typer.Option(help="Model or alias; by default the service's default model.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Number of best passages to show.")] = None,
    max_windows: MaxWindows = 1,
    window_tokens: WindowTokens = None,
    overlap_tokens: OverlapTokens = DEFAULT_OVERLAP_TOKENS,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Load the model in this process, without a service.")
    ] = False,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ranking as JSON.")] = False,
) -> None:
    """Rank passages, one per line, for a query."""
    if not query.strip():
        raise fail("the query is blank; give a text")
    lines = _read_lines(passages)
    windows = passage_windows(max_windows, window_tokens, overlap_tokens)
    answer, num_truncated, num_unscored = (
        _rank_here(query, lines, model, config, windows)
        if in_process
        else _rank_by_service(query, lines, model, url, key, windows)
    )
    if num_truncated:
        told = f"{num_truncated} of {len(lines)} passages were truncated to the model's window"
        told += "; use --max-windows to score their whole text"
        if num_unscored:
            told += f"\nThe query leaves no room for {num_unscored} of the passages (not scored): shorten the query"
        typer.echo(told, err=True)
    answer["rankings"] = answer["rankings"][:top]
    if as_json:
        typer.echo(json.dumps(answer))
        return
    table = Table(
        Column("logit", justify="right", no_wrap=True),
        Column("index", justify="right", no_wrap=True, style="dim"),
        "passage",  # without no_wrap, since rich narrows only columns that may wrap; the texts are shortened instead
        box=None,
        pad_edge=False,
    )
    for ranking in answer["rankings"]:
        index = ranking["index"]
        table.add_row(f"{ranking['logit']:.2f}", str(index), Text(lines[index], no_wrap=True, overflow="ellipsis"))
    stdout.print(table)


def _read_lines(source: str) -> list[str]:
    place = "standard input" if source == "-" else source
    try:
        # Bytes, because Python decodes standard input leniently under some locales.
        raw = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise fail(f"cannot read passages from {place}: line {line} is not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise fail(f"cannot read passages from {place}: {error}") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise fail("there are no passages; give one per line")
    return lines


def _rank_by_service(
    query: str, passages: list[str], model: str | None, url: str, key: str | None, windows: PassageWindows | None
) -> tuple[dict[str, Any], int | None, int | None]:
    """One answer in the API's form for all requests, and the numbers of truncated and unscored passages."""
    try:
        with Client(url, api_key=key, model=model, timeout_s=_TIMEOUT_S) as client:
            return _answer(client.rank(query, passages, windows=_as_sent(windows)))
    except ConnectionFailed as error:
        raise unreachable(url, error.cause) from None
    except (RerankClientError, ValueError) as error:
        raise fail(str(error)) from None


def _rank_here(
    query: str, passages: list[str], name: str | None, config: str | None, windows: PassageWindows | None
) -> tuple[dict[str, Any], int | None, int | None]:
    """Like `_rank_by_service`, but runs the engine in this process."""
    model = choose_model(name, config)

    from rerank_service.errors import NonFiniteLogit
    from rerank_service.tools.reranker import Reranker  # numpy and the settings: not needed to rank through a service

    try:
        with Reranker(model) as reranker:
            return _answer(reranker.rank(query, passages, windows=_as_sent(windows)))
    except NonFiniteLogit as error:
        raise fail(
            f"the logit of passage {error.first} (from 0, blank lines not counted) is not a finite number; "
            f"set engine.dtype: float32 for {model.id} in {config or 'the configuration'}"
        ) from None


def _as_sent(windows: PassageWindows | None) -> ClientWindows | None:
    return ClientWindows(windows.max_per_passage, windows.tokens, windows.overlap_tokens) if windows else None


def _answer(ranking: Ranking) -> tuple[dict[str, Any], int | None, int | None]:
    answer = {
        "rankings": [{"index": passage.index, "logit": passage.logit} for passage in ranking],
        "usage": {"prompt_tokens": ranking.usage.prompt_tokens, "total_tokens": ranking.usage.total_tokens},
    }
    return answer, ranking.num_truncated, ranking.num_unscored
