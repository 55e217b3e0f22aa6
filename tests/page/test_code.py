"""The code in the dialog runs and gives the ranking on the page. tests/page/test_module_code.py covers nasty texts."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.page.visit import KEY, Visit

PASSAGES = ["It's a paper bag.", "def f():\n    return '$HOME'", "東京 🍞"]
RUN = {"curl": ["bash"], "Python": [sys.executable]}


def copied(context: BrowserContext, visit: Visit, language: str) -> str:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.page.get_by_role("button", name="Code").first.click()
    visit.page.get_by_label(language, exact=True).check()
    visit.page.get_by_role("button", name="Copy").click()
    expect(visit.page.get_by_role("button", name="Copied")).to_be_visible()
    text: str = visit.page.evaluate("navigator.clipboard.readText()")
    return text


def run(language: str, code: str) -> str:
    environment = os.environ | {"RERANK_SERVICE_API_KEY": KEY}
    done = subprocess.run(
        RUN[language], input=code.encode(), capture_output=True, check=True, env=environment, timeout=90
    )
    return done.stdout.decode()


def write_code(visit: Visit) -> None:
    visit.page.get_by_label("---").check()
    visit.write('What\'s `this` "$HOME"?', PASSAGES, "\n---\n")


def test_copied_curl_gives_the_answer_on_the_page(context: BrowserContext, visit: Visit) -> None:
    write_code(visit)
    visit.rank()

    answer = json.loads(run("curl", copied(context, visit, "curl")))

    assert [ranking["index"] for ranking in answer["rankings"]] == visit.order()
    assert answer == visit.answer('What\'s `this` "$HOME"?', PASSAGES)


def test_copied_python_prints_the_ranking_on_the_page(context: BrowserContext, visit: Visit) -> None:
    write_code(visit)
    visit.rank()

    lines = run("Python", copied(context, visit, "Python"))

    figures = zip(visit.order(), visit.logits(), strict=True)
    assert lines == "".join(f"{logit:.2f} {PASSAGES[index]}\n" for index, logit in figures)


@pytest.mark.parametrize("language", RUN)
def test_the_threshold_cuts_in_the_copied_code(context: BrowserContext, visit: Visit, language: str) -> None:
    if language == "curl" and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    visit.rank()
    visit.cut_at(visit.logits()[2] - 0.01)
    expect(visit.page.locator("#kept")).to_have_text("Keep 3 of 6")

    printed = run(language, copied(context, visit, language))

    kept = len(json.loads(printed)["rankings"]) if language == "curl" else len(printed.splitlines())
    assert kept == 3


@pytest.mark.parametrize("language", RUN)
def test_a_key_is_taken_from_the_environment(context: BrowserContext, keyed_visit: Visit, language: str) -> None:
    keyed_visit.use_key(KEY)
    expect(keyed_visit.query).to_be_focused()
    keyed_visit.rank()

    code = copied(context, keyed_visit, language)

    assert KEY not in code
    assert run(language, code).strip()


def test_the_code_has_the_windows_and_the_model(context: BrowserContext, visit: Visit) -> None:
    visit.page.get_by_label("Long passages").select_option("WINDOWS")
    visit.rank()
    answer: dict[str, Any] = json.loads(copied(context, visit, "curl").split("<<'JSON'\n")[1].removesuffix("\nJSON\n"))
    assert answer["passage_windows"] == {"max_per_passage": 8}
    assert answer["model"] == "sentence-transformers/all-MiniLM-L6-v2"


def test_512_long_passages_do_not_exceed_the_shells_argument_limit(context: BrowserContext, visit: Visit) -> None:
    visit.write("q", [f"{number} " + "x" * 2000 for number in range(514)])  # over 1 MB; refused, so cheap
    answer = json.loads(run("curl", copied(context, visit, "curl")))
    assert "passages has 514 entries" in str(answer["message"])


def test_a_press_beside_the_dialog_closes_it(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Code").first.click()
    dialog = visit.page.get_by_role("dialog")
    box = dialog.bounding_box()
    visit.page.mouse.click(box["x"] + 5, box["y"] + 5)  # its padding
    expect(dialog).to_be_visible()
    visit.page.mouse.click(box["x"] - 20, box["y"] + 20)
    expect(dialog).to_be_hidden()


def test_the_page_selects_the_code_if_it_cannot_copy(visit: Visit) -> None:
    visit.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    visit.page.get_by_role("button", name="Code").first.click()
    visit.page.get_by_role("button", name="Copy").click()
    expect(visit.page.get_by_role("button", name="Selected")).to_be_visible()
    assert visit.page.evaluate("getSelection().toString()").startswith("curl ")
