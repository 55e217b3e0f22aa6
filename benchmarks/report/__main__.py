"""Rewrites the generated sections and plots of `docs/`; see `python -m benchmarks.report --help`."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import applications, capacity, cascade, late_interaction, models, peers, performance, quality
from benchmarks.report.pages import read_result, replace_sections, section_names

__all__ = ["contents", "pages"]

_ROOT = Path(__file__).parents[2]


def contents(results: Path) -> dict[str, str]:
    """Markdown of every generated section, by name. A section whose result is missing says so."""
    measured = (
        peers.SECTIONS
        | performance.SECTIONS
        | capacity.SECTIONS
        | cascade.SECTIONS
        | quality.SECTIONS
        | late_interaction.SECTIONS
    )
    made = {
        name: table(read_result(results, file)) if (results / file).exists() else "Not measured."
        for name, (file, table) in measured.items()
    }
    made |= {f"peers-summary-{processor}": peers.summary_table(results, processor) for processor in peers.PROCESSORS}
    return made | {name: table() for name, table in (models.SECTIONS | applications.SECTIONS).items()}


def pages(docs: Path, made: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Every page that has generated sections, and its text with updated sections."""
    for page in sorted(docs.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if section_names(text):
            yield page, replace_sections(text, made, os.path.relpath(docs / "images", page.parent))


def main(
    results: Annotated[Path, typer.Option(help="Folder with the measurements.")] = _ROOT / "benchmarks" / "results",
    docs: Annotated[Path, typer.Option(help="Folder with the pages.")] = _ROOT / "docs",
) -> None:
    """Rewrites the plots and the generated sections of every page in `docs`."""
    for page, text in pages(docs, contents(results)):
        page.write_text(text, encoding="utf-8")
    peers.draw(results, docs / "images")
    performance.draw(results, docs / "images")
    capacity.draw(results, docs / "images")
    cascade.draw(results, docs / "images")


if __name__ == "__main__":
    typer.run(main)
