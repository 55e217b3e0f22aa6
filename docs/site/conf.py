"""Sphinx settings: `make docs` builds the documentation as a site in `site/`, and fails on any warning or dead link.

The source folder is the repository's root. README.md, cluster/README.md and the others are therefore pages too, and
every relative link works in the site as in the repository. Links to files that are not pages become downloads.

We use Sphinx because MkDocs 1 has had no release since 2024, support for Material for MkDocs ends in May 2027, and its
successor Zensical was at version 0.1, with preliminary support for docstrings (November 2026).
"""

import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(_ROOT))

project = "Rerank service"
copyright = "its authors, Apache License 2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
source_suffix = {".md": "markdown"}
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "cluster/README.md",
    "cluster/kubernetes.md",
    "cluster/gateway/README.md",
    "training/README.md",
    "docs/**.md",
]
exclude_patterns = [".*", "site", "build", "dist", "rerank_service", "tests", "benchmarks", "docs/site"]

html_theme = "furo"  # no fonts, scripts or styles from other hosts
html_title = "Rerank service"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}

myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings = ["misc.highlighting_failure"]  # a command over several lines, with its output

default_role = "code"  # docstrings are Markdown; `name` in them is code
autodoc_member_order = "bysource"
autoclass_content = "both"  # the settings of a client are described at its __init__
autodoc_typehints_format = "short"
add_module_names = False
python_use_unqualified_type_names = True
autodoc_preserve_defaults = True
nitpick_ignore_regex = [(r"py:.*", r".*")]  # types of other packages; links between pages stay strict

_FOLDER_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>[^)#:]+)\)")


def _unlink_folders(app: Sphinx, name: str, content: list[str]) -> None:
    """Replaces links to folders by their text, because folders have no page in the site."""
    folder = (_ROOT / name).parent

    def linked(match: re.Match[str]) -> str:
        return match["text"] if (folder / match["target"]).is_dir() else match[0]

    content[0] = _FOLDER_LINK.sub(linked, content[0])


def _navigation(app: Sphinx, name: str, content: list[str]) -> None:
    """Builds the sidebar from the index by role in `docs/README.md`."""
    if name == "docs/decisions/README":
        content[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n0*\n```\n"
    if name != root_doc:
        return
    index = (_ROOT / "docs/README.md").read_text(encoding="utf-8")
    trees = []
    for section in index.split("\n## ")[1:]:
        caption, _, body = section.partition("\n")
        pages = [(_ROOT / "docs" / path).resolve() for path in re.findall(r"\]\(([^)#:]+\.md)\)", body)]
        lines = [str(path.relative_to(_ROOT).with_suffix("")) for path in pages]
        trees.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```"]))
    first = "```{toctree}\n:hidden:\n\ndocs/README\n```"
    content[0] += "\n\n" + "\n\n".join([first, *trees]) + "\n"


class ConfigurationReference(SphinxDirective):
    """The directive that inserts the reference generated from the docstrings of `rerank_service.config`."""

    def run(self) -> list[nodes.Node]:
        from rerank_service.tools.config_reference import config_reference

        lines = StringList(config_reference().splitlines(), source="rerank_service.config")
        section = nodes.section()
        section.document = self.state.document
        self.state.nested_parse(lines, self.content_offset, section, match_titles=True)
        return section.children


def _write_index(app: Sphinx, error: Exception | None) -> None:
    """Copies the README's page to index.html, which web servers show for the folder."""
    if error is None:
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> dict[str, bool]:
    """The hook that Sphinx calls at its start."""
    app.connect("source-read", _unlink_folders)
    app.connect("source-read", _navigation)
    app.connect("build-finished", _write_index)
    app.add_directive("configuration-reference", ConfigurationReference)
    return {"parallel_read_safe": True}
