"""Regenerates the Serve configurations in this folder. Run it after a change of the generator.

A generated text begins with `# Written by: rerank-service config ...` and extends to the end of its YAML block. A test
fails if a generated text differs from the output of its command.
"""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["MARK", "marked_files", "regenerated"]

FOLDER = Path(__file__).parent
MARK = "# Written by: "
_COMMAND = [sys.executable, "-c", "from rerank_service.tools.cli import main; main()"]


def marked_files() -> list[Path]:
    """The files of this folder that contain a generated text."""
    return [path for path in sorted(FOLDER.rglob("*.yaml")) if MARK in path.read_text(encoding="utf-8")]


def regenerated(text: str, write: Callable[[list[str]], str]) -> str:
    """A file's text with each generated block replaced by the output of `write`, which takes the command's words."""
    lines = text.splitlines()
    result: list[str] = []
    while lines:
        line = lines.pop(0)
        indent, is_marked, command = line.partition(MARK)
        if not is_marked or indent.strip():
            result.append(line)
            continue
        while lines and (not lines[0].strip() or lines[0].startswith(indent) or not indent):
            lines.pop(0)
        written = write(shlex.split(command)).splitlines()
        result += [f"{indent}{new}" if new else "" for new in written]
    return "\n".join(result) + "\n"


def _run(words: list[str]) -> str:
    return subprocess.run([*_COMMAND, *words[1:]], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Rewrites the files in place."""
    for path in marked_files():
        text = path.read_text(encoding="utf-8")
        changed = regenerated(text, _run)
        if changed != text:
            path.write_text(changed, encoding="utf-8")
            sys.stdout.write(f"{path.relative_to(FOLDER)} rewritten\n")


if __name__ == "__main__":
    main()
