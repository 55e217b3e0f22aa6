"""`rerank-service rank`: ranks lines of text, with a running service or in this process."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from rerank_service.client import Client, ConnectionFailed, Ranking, RerankClientError
from rerank_service.client import PassageWindows as ClientWindows
from rerank_service.messages import PassageWindows
from rerank_service.tools.cli.console import Key, Url, fail, say, stderr, stdout, unreachable
from rerank_service.tools.cli.options import (
    DEFAULT_OVERLAP_TOKENS,
    ConfigOption,
    MaxWindows,
    OverlapTokens,
    WindowTokens,
    choose_model,
    passage_windows,
)
from rerank_service.tools.files import file_problem

__all__ = ["rank"]

_TIMEOUT_S = 120.0
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Control characters, which a passage must not send to the terminal."""

Model = Annotated[
    str | None,
    typer.Option(
        help="Name of the model; with --in-process, any model that `serve` accepts. By default the default model."
    ),
]

Top = Annotated[int | None, typer.Option(min=1, help="Number of passages to show, best first; by default all.")]
MinProbability = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Leave out passages with a lower probability; needs a calibrated model."),
]


def rank(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="The question or search text.")],
    passages: Annotated[str, typer.Argument(help="Text file with one passage per line; -: standard input.")] = "-",
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
    model: Model = None,
    top: Top = None,
    min_probability: MinProbability = None,
    max_windows: MaxWindows = 1,
    window_tokens: WindowTokens = None,
    overlap_tokens: OverlapTokens = DEFAULT_OVERLAP_TOKENS,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Load the model here, without a running service.")
    ] = False,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ranking as JSON.")] = False,
) -> None:
    """Rank passages, one per line, for a query.

    The best passage comes first. A higher score (logit) means more relevant; scores of different models cannot be
    compared. Example: rerank-service rank "Why do we cry over onions?" examples/passages.txt --top 3
    """
    if not query.strip():
        raise fail("the query is blank; give some text")
    _refuse_ignored(context, in_process)
    lines = _read_lines(passages)
    windows = passage_windows(max_windows, window_tokens, overlap_tokens)
    answer, num_truncated, num_unscored = (
        _rank_here(query, lines, model, config, windows)
        if in_process
        else _rank_by_service(query, lines, model, url, key, windows, min_probability)
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
    if min_probability is not None and not answer["rankings"]:
        say(f"No passage reaches the probability {min_probability:g}.")
        return
    _show(answer["rankings"], lines)


def _refuse_ignored(context: typer.Context, in_process: bool) -> None:
    """Ends the program if the command line has an option that has no effect. Environment variables may be set."""
    ignored, reason = (
        (("url", "key", "min_probability"), "applies to a running service; leave it out with --in-process")
        if in_process
        else (("config",), "needs --in-process: a running service has its own configuration")
    )
    for name in ignored:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise fail(f"--{name.replace('_', '-')} {reason}")


def _show(rankings: list[dict[str, Any]], lines: list[str]) -> None:
    """Prints one line per passage. On a terminal, a passage is shortened to the width that logit and index leave."""
    rows = [("logit", "index", "passage")]
    rows += [(f"{one['logit']:.2f}", str(one["index"]), _CONTROL.sub(" ", lines[one["index"]])) for one in rankings]
    logits, indices = (max(len(row[column]) for row in rows) for column in (0, 1))
    for logit, index, passage in rows:
        line = Text.assemble(logit.rjust(logits), "  ", (index.rjust(indices), "dim"), "  ", passage)
        stdout.print(
            line, no_wrap=True, overflow="ellipsis" if stdout.is_terminal else "ignore", crop=stdout.is_terminal
        )


def _read_lines(source: str) -> list[str]:
    place = "standard input" if source == "-" else source
    if source == "-" and sys.stdin.isatty():
        stderr.print("reading passages from the terminal, one per line; Ctrl-D ends the input")
    try:
        # Bytes, because Python decodes standard input leniently under some locales.
        raw = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise fail(file_problem(error, place)) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise fail("there are no passages; give one per line")
    return lines


def _rank_by_service(
    query: str,
    passages: list[str],
    model: str | None,
    url: str,
    key: str | None,
    windows: PassageWindows | None,
    min_probability: float | None,
) -> tuple[dict[str, Any], int | None, int | None]:
    """One answer in the API's form for all requests, and the numbers of truncated and unscored passages."""
    try:
        with Client(url, api_key=key, model=model, timeout_s=_TIMEOUT_S) as client:
            return _answer(client.rank(query, passages, windows=_as_sent(windows), min_probability=min_probability))
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
    from rerank_service.tools.reranker import Reranker  # imports numpy; ranking through a service does not

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
