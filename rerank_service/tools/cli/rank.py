"""`rerank-service rank`: rank lines of text, by a running service or in this process."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rerank_service import client as client_package
from rerank_service.client import Client, ConnectionFailed, RerankClientError
from rerank_service.messages import Fitting, PassageWindows
from rerank_service.tools.cli.check import checked_config
from rerank_service.tools.cli.console import Key, Url, fail, stdout, unreachable
from rerank_service.tools.cli.window_options import (
    DEFAULT_OVERLAP_TOKENS,
    MaxWindows,
    OverlapTokens,
    WindowTokens,
    passage_windows,
)

__all__ = ["rank"]

_TIMEOUT_S = 120.0


def rank(
    query: str = typer.Argument(help="What the passages are ranked for."),
    passages: str = typer.Argument("-", help="File with one passage a line; - reads standard input."),
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
    model: str | None = typer.Option(None, help="Model or alias; the default model if not given."),
    top: int | None = typer.Option(None, min=1, help="Show only the best so many."),
    max_windows: MaxWindows = 1,
    window_tokens: WindowTokens = None,
    overlap_tokens: OverlapTokens = DEFAULT_OVERLAP_TOKENS,
    in_process: bool = typer.Option(False, "--in-process", help="Load the model here; no service needed."),
    config: str = typer.Option("serve_config.yaml", help="With --in-process: where the models are configured."),
    as_json: bool = typer.Option(False, "--json", help="Print the ranking as JSON."),
) -> None:
    """Rank passages, one a line, for a query."""
    lines = _lines(passages)
    windows = passage_windows(max_windows, window_tokens, overlap_tokens)
    answer, num_truncated, num_unscored = (
        _rank_here(query, lines, model, config, windows)
        if in_process
        else _rank_there(query, lines, model, url, key, windows)
    )
    if num_truncated:
        typer.echo(_loss(len(lines), num_truncated, num_unscored or 0), err=True)
    answer["rankings"] = answer["rankings"][:top]
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        stdout.print(_table(answer, lines))


def _lines(source: str) -> list[str]:
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"cannot read passages from {source}: {error}") from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise fail("there are no passages; give one a line")
    return lines


def _rank_there(
    query: str, passages: list[str], model: str | None, url: str, key: str | None, windows: PassageWindows | None
) -> tuple[dict[str, Any], int | None, int | None]:
    """As the API answers it, also where the passages took several requests; how many were truncated and unscored."""
    try:
        with Client(url, api_key=key, model=model, timeout_s=_TIMEOUT_S) as client:
            ranking = client.rank(
                query,
                passages,
                windows=None if windows is None else client_package.PassageWindows(**dataclasses.asdict(windows)),
            )
    except ConnectionFailed as error:
        raise unreachable(url, error.cause) from None
    except (RerankClientError, ValueError) as error:
        raise fail(str(error)) from None
    answer = {
        "rankings": [{"index": passage.index, "logit": passage.logit} for passage in ranking],
        "usage": {"prompt_tokens": ranking.usage.prompt_tokens, "total_tokens": ranking.usage.total_tokens},
    }
    return answer, ranking.num_truncated, ranking.num_unscored


def _rank_here(
    query: str, passages: list[str], name: str | None, config: str, windows: PassageWindows | None
) -> tuple[dict[str, Any], int, int]:
    """The service's answer without a service: same engine, same order."""
    settings = checked_config(config)
    wanted = (name or settings.default_model_id).casefold()
    model = next((m for m in settings.models if wanted in {n.casefold() for n in m.names}), None)
    if model is None:
        raise fail(f"{config} has no model {name!r}; it has {', '.join(m.id for m in settings.models)}")

    from rerank_service.engine import load_engine  # torch takes seconds; only this path pays
    from rerank_service.engine.score_all import score_passages
    from rerank_service.errors import CheckpointError, NonFiniteLogit, RerankError
    from rerank_service.messages import rank_by_logit

    fitting, batch_tokens = Fitting(windows=windows), model.batching.max_batch_tokens
    try:
        encoded, logits = score_passages(load_engine(model), [(query, passages)], fitting, batch_tokens)
    except NonFiniteLogit as error:
        raise fail(
            f"the logit of passage {error.first} (from 0, blank lines not counted) is not a finite number; "
            f"set engine.dtype: float32 for {model.id} in {config}"
        ) from None
    except (CheckpointError, RerankError) as error:
        raise fail(escape(str(error))) from None
    num_tokens = sum(encoded.num_tokens)
    answer = {
        "rankings": [{"index": index, "logit": logits[index]} for index in rank_by_logit(logits)],
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    return answer, sum(encoded.is_truncated), sum(encoded.is_unscored)


def _loss(num_passages: int, num_truncated: int, num_unscored: int) -> str:
    """What the model did not see, in words."""
    words = f"{num_truncated} of {num_passages} passages were cut to the model's window; --max-windows ranks them whole"
    if num_unscored:
        words += f"\n{num_unscored} of them were not scored at all: shorten the query, which leaves no room for them"
    return words


def _table(answer: dict[str, Any], passages: list[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("logit", justify="right")
    table.add_column("index", justify="right", style="dim")
    table.add_column("passage", overflow="ellipsis", no_wrap=True)
    for ranking in answer["rankings"]:
        index = ranking["index"]
        table.add_row(f"{ranking['logit']:.2f}", str(index), Text(passages[index]))
    return table
