"""The pages are short, are all in the index, and name only existing paths, links, metrics and settings."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerank_service.tools.config_reference import config_reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHERS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "cluster/README.md",
    ROOT / "cluster/kubernetes.md",
    ROOT / "training/README.md",
    *sorted((ROOT / "docs").glob("*/*.md")),
]
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
SETTING = re.compile(
    r"`(?:models\[\]\.)?(?:auth|autoscaling|batching|checkpoint|engine|limits|logs|pools|rate_limits|replica|service|tracing|version)"
    r"((?:\.[a-z0-9_]+)+)"
)
APPLICATIONS = re.compile(r"<!-- generated: applications -->.*?<!-- end -->", re.DOTALL)
PATH_IN_PACKAGE = re.compile(r"rerank_service(?:/[\w.*]+)+/?")


def prose(page: Path) -> str:
    """The text of a page without fenced code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub and the documentation site generate them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    """Link targets within the repository."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return (target for target in LINK.findall(text) if not re.match(r"[a-z]+:", target))


def num_words(page: Path) -> int:
    """Words of a page. The generated list of applications is for looking up one row, as the pages in `reference`."""
    return len(APPLICATIONS.sub("", page.read_text(encoding="utf-8")).split())


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_takes_five_minutes_to_read() -> None:
    assert num_words(ROOT / "README.md") <= 900


def test_all_pages_together_take_an_hour_to_read() -> None:
    assert len(PAGES) > 10
    assert sum(map(num_words, PAGES)) <= 15_000


def test_the_architecture_fits_on_one_page() -> None:
    assert len((ROOT / "docs/architecture.md").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=page_name)
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    indexed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    decisions = ROOT / "docs/decisions/README.md"
    indexed |= {(decisions.parent / link).resolve() for link in links(decisions)}
    assert {*PAGES, *OTHERS} - indexed - {index} == set()


def test_the_list_of_decisions_has_the_titles_of_the_pages() -> None:
    folder = ROOT / "docs/decisions"
    titles = [page.read_text(encoding="utf-8").splitlines()[0][2:] for page in sorted(folder.glob("0*.md"))]
    assert re.findall(r"^- \[(.+)\]\(\d", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE) == titles


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=page_name)
def test_every_named_path_of_the_package_exists(page: Path) -> None:
    named = {path.rstrip("/.") for path in PATH_IN_PACKAGE.findall(page.read_text(encoding="utf-8"))}
    assert [path for path in named if not any(ROOT.glob(path))] == []


def test_the_runbook_quotes_existing_log_lines() -> None:
    runbook = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    symptoms = re.search(r"^## Symptoms$(.*?)^## ", runbook, re.DOTALL | re.MULTILINE)
    assert symptoms is not None
    columns = [row.split("|")[-2] for row in symptoms[1].splitlines() if row.startswith("| ")]
    quoted = {span for column in columns for span in re.findall(r"`([a-z]+(?: [a-z.]+)+)`", column)} - {"serve status"}
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rerank_service").rglob("*.py"))
    assert len(quoted) > 5
    assert [message for message in quoted if not all(part in source for part in message.split(" ... "))] == []


def test_every_metric_that_a_page_names_is_published() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = set(re.findall(r"`(rerank_[a-z_]+)`", pages)) - {"rerank_service_client"}
    named = {name.removeprefix("rerank_").removesuffix("_total") for name in names}
    telemetry = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rerank_service/telemetry").rglob("*.py"))
    assert named
    assert [name for name in named if name not in telemetry] == []


def test_every_setting_that_a_page_names_exists() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = {name for dotted in SETTING.findall(pages) for name in dotted.split(".")[1:]}
    reference = config_reference()
    assert len(named) > 20
    assert [name for name in named if f"**`{name}`**" not in reference and f".{name}`" not in reference] == []
