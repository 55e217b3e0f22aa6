"""Replaces generated sections of Markdown pages, and provides helpers for their tables and plots.

A section is the text between `<!-- generated: NAME -->` and `<!-- end -->`; the rest of a page is not changed.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "GREY",
    "INK",
    "RED",
    "PageSection",
    "ResultFile",
    "cores",
    "failures_cell",
    "markdown_table",
    "origin",
    "read_result",
    "replace_sections",
    "save_figure",
    "section_names",
    "shown",
    "svg_plots",
]

RED, GREY, INK = "#d1495b", "#9aa0a6", "#3c4043"
"""Colours of all plots. Plots have a white background, so they are readable on light and dark pages."""

_SECTION = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ESCAPED_BAR = "\\|"

ResultFile = Mapping[str, Any]
"""Content of one file in `benchmarks/results`."""
PageSection = tuple[str, Callable[[ResultFile], str]]
"""The result file of a section, and the function that turns it into Markdown."""


def read_result(folder: Path, file: str) -> ResultFile:
    """Reads one file in `benchmarks/results`."""
    result: ResultFile = json.loads((folder / file).read_text(encoding="utf-8"))
    return result


def section_names(text: str) -> list[str]:
    """Names of the sections of a page, in order."""
    return [match["name"] for match in _SECTION.finditer(text)]


def replace_sections(text: str, contents: Mapping[str, str], images: str = "images") -> str:
    """Returns the page with its sections replaced by `contents`, by name; sections without new contents do not change.

    `images` is the relative path from the page to the folder of the plots.
    """

    def replaced(match: re.Match[str]) -> str:
        content = contents.get(match["name"])
        if content is None:
            return match[0]
        return f"{match[1]}\n{content.replace('](images/', f']({images}/')}\n\n{match[3]}"

    return _SECTION.sub(replaced, text)


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], num_names: int = 1) -> str:
    """A table whose first `num_names` columns contain words and whose other columns contain numbers."""
    rule = ["---"] * num_names + ["---:"] * (len(heads) - num_names)
    return "\n".join(
        f"| {' | '.join(cell.replace('|', _ESCAPED_BAR) for cell in cells)} |" for cells in (heads, rule, *rows)
    )


def shown(value: float | None, form: str) -> str:
    """A number in a table; empty if it is null."""
    return "" if value is None else format(value, form)


def failures_cell(failures: Mapping[str, int]) -> str:
    """Number of failed requests by status."""
    return ", ".join(f"{count} x {status}" for status, count in failures.items()) or "none"


def origin(result: ResultFile) -> str:
    """Hardware, date, commit and command of a measurement."""
    hardware = result["hardware"]
    masks = hardware.get("instruction_sets", {}).get("masks")
    commit = (result["commit"] or "unknown")[:12] + (" with changes" if result["has_uncommitted_changes"] else "")
    masked = " masked to AVX2" if masks else ""
    return (
        f"{hardware['cpu']}{masked}, {cores(hardware)}; {result['date'][:10]}, commit {commit}; `{result['command']}`."
    )


def cores(hardware: Mapping[str, Any]) -> str:
    """Number of cores, in words."""
    return "1 core" if hardware["cores"] == 1 else f"{hardware['cores']} cores"


def svg_plots() -> Any:
    """matplotlib's `pyplot`, set up so that equal figures give equal files. Needs the extra `tools`."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rerank-service"
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure without a date, and without the upper and right edges of its frame."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    svg_plots().close(figure)
