"""Table of `docs/clients.md`, made from the recorded requests in `tests/compatibility/applications`."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from benchmarks.report.pages import markdown_table

__all__ = ["SECTIONS", "verdict"]

_FOLDER = Path(__file__).parents[2] / "tests" / "compatibility" / "applications"
_HEADS = ("application", "provider or setting", "works", "address")


def verdict(request: Mapping[str, Any]) -> str:
    """What the tests have shown for a recorded request, in the words of its marks."""
    setting = f"with `{_flow(request['works_with'])}`" if "works_with" in request else None
    proxy = ", through a proxy" if request.get("address_is_fixed") else ""
    refused = [call["refused_today"] for call in (request, *request.get("calls_first", ())) if "refused_today" in call]
    if refused:
        reason = "; ".join(refused)
        return f"{setting}{proxy}; by default, refused: {reason}" if setting else f"**refused**: {reason}"
    notes = [f"yes{proxy}"]
    if "long_text_refused_today" in request:
        reason = request["long_text_refused_today"]
        notes.append(f"long texts {setting}" if setting else f"long texts are refused: {reason}")
    if "larger_batch_refused_today" in request:
        notes.append(f"not with {request['largest_batch']} texts: {request['larger_batch_refused_today']}")
    if request.get("wants_errors"):
        notes.append("it asks for an error if a text is long")
    return "; ".join(notes)


def _flow(setting: Mapping[str, Any]) -> str:
    """The setting in YAML, on one line and without the outer braces."""
    return yaml.safe_dump(dict(setting), default_flow_style=True, width=math.inf).strip()[1:-1]


def _address(request: Mapping[str, Any]) -> str:
    address = request["configured"]
    return f"fixed: {urlsplit(address).hostname}" if request.get("address_is_fixed") else f"`{address}`"


def _rows(application: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    source = application["source"]
    tree = f"/tree/{source['commit']}" if "commit" in source else ""
    name = f"[{application['application']}](https://github.com/{source['repository']}{tree})"
    for request in application["requests"]:
        yield name, request["provider"], verdict(request), _address(request)
        name = application["application"]


def _table() -> str:
    recorded = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(_FOLDER.glob("*.yaml"))]
    recorded.sort(key=lambda one: one["application"].casefold())
    rows = [row for one in recorded for row in _rows(one)]
    num = {start: sum(row[2].startswith(start) for row in rows) for start in ("yes", "with", "**refused**")}
    num_fixed = sum(" through a proxy" in row[2] for row in rows)
    num_long = sum(row[2].startswith("yes") and "long texts" in row[2] for row in rows)
    counts = (
        f"Of {len(rows)} providers in {len(recorded)} applications, {num['yes']} work with the default settings "
        f"({num_long} of them need another setting for long texts), "
        f"{num['with']} with the setting shown, and {num['**refused**']} is refused. "
        f"{num_fixed} of the addresses are fixed in the application."
    )
    return f"{counts}\n\n{markdown_table(_HEADS, rows, num_names=len(_HEADS))}"


SECTIONS: dict[str, Callable[[], str]] = {"applications": _table}
