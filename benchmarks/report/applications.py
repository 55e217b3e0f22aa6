"""Table of `docs/clients.md`, made from the recorded requests in `tests/compatibility/applications`."""

import math
from collections.abc import Callable, Mapping, Sequence
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
    setting = f"`{_flow(request['works_with'])}`" if "works_with" in request else None
    proxy = ", through a proxy" if request.get("address_is_fixed") else ""
    refused = [call["refused_today"] for call in (request, *request.get("calls_first", ())) if "refused_today" in call]
    if refused:
        reason = "; ".join(refused)
        return f"with {setting}{proxy}; by default, refused: {reason}" if setting else f"**refused**: {reason}"
    notes = [f"yes{proxy}"]
    if "long_text_refused_today" in request:
        reason = request["long_text_refused_today"]
        notes.append(f"long texts need {setting}" if setting else f"long texts are refused: {reason}")
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


def _cell(verdict: str) -> str:
    """The verdict in a word or two."""
    short, _, exception = verdict.partition(";")
    if short.startswith("yes"):
        return f"{short}; exception" if exception else short
    return "**refused**" if short.startswith("**") else "with a setting"


def _table() -> str:
    recorded = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(_FOLDER.glob("*.yaml"))]
    recorded.sort(key=lambda one: one["application"].casefold())
    rows, exceptions = [], []
    for one in recorded:
        for request in one["requests"]:
            said = verdict(request)
            is_first = request is one["requests"][0]
            rows.append(
                (_linked(one) if is_first else one["application"], request["provider"], _cell(said), _address(request))
            )
            if ";" in said or said.startswith("**"):
                exceptions.append(f"- {one['application']}, {request['provider']}: {said}.")
    table = markdown_table(_HEADS, rows, num_names=len(_HEADS))
    return "\n".join([_counts(rows, len(recorded)), "", *exceptions, "", table])


def _counts(rows: Sequence[Sequence[str]], num_applications: int) -> str:
    cells = [row[2] for row in rows]
    num_yes, num_refused = sum(cell.startswith("yes") for cell in cells), cells.count("**refused**")
    are = "is" if num_refused == 1 else "are"
    return (
        f"Of {len(rows)} providers in {num_applications} applications, {num_yes} work with the default settings, "
        f"{cells.count('with a setting')} with another setting, and {num_refused} {are} refused. "
        "The exceptions:"
    )


def _linked(application: Mapping[str, Any]) -> str:
    source = application["source"]
    tree = f"/tree/{source['commit']}" if "commit" in source else ""
    return f"[{application['application']}](https://github.com/{source['repository']}{tree})"


SECTIONS: dict[str, Callable[[], str]] = {"applications": _table}
