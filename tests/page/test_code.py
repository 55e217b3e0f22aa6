"""The code offered for copying runs and gives the answer on the page."""

import json
import os
import subprocess
import sys

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.page.visit import KEY, Visit

NASTY = [
    "It's 5 o'clock; she said \"no\"",
    "two\nlines, and\n\ttabs\\n",
    "$HOME ${HOME} $(id) `id` !! !x \\ \\\\ %s {} {{query}} #{x}",
    "JSON\nEOF\n'JSON'",
    "東京 🍞 naïve \u2028 \u0085 \x7f",
    "-d @/etc/passwd",
]
RUN = {"curl": ["bash"], "Python": [sys.executable]}


def copied(context: BrowserContext, visit: Visit, language: str) -> str:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.page.get_by_label(language, exact=True).check()
    visit.page.get_by_role("button", name="Copy").click()
    expect(visit.page.get_by_role("button", name="Copied")).to_be_visible()
    text: str = visit.page.evaluate("navigator.clipboard.readText()")
    return text


def run(language: str, code: str) -> dict[str, object]:
    environment = os.environ | {"NVIDIA_API_KEY": KEY}
    done = subprocess.run(
        RUN[language], input=code.encode(), capture_output=True, check=True, env=environment, timeout=90
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("language", RUN)
def test_the_copied_code_gives_the_answer_on_the_page(context: BrowserContext, visit: Visit, language: str) -> None:
    visit.write('What\'s `this` "$HOME"?', NASTY)
    visit.rank()

    answer = run(language, copied(context, visit, language))

    assert visit.order() == [ranking["index"] for ranking in answer["rankings"]]
    assert answer == visit.answer('What\'s `this` "$HOME"?', [text.strip() for text in NASTY])


@pytest.mark.parametrize("language", RUN)
def test_a_key_is_taken_from_the_environment(context: BrowserContext, keyed_visit: Visit, language: str) -> None:
    keyed_visit.use_key(KEY)
    expect(keyed_visit.query).to_be_focused()

    code = copied(context, keyed_visit, language)

    assert KEY not in code
    assert run(language, code)["rankings"]


def test_512_long_passages_do_not_exceed_the_shells_argument_limit(context: BrowserContext, visit: Visit) -> None:
    visit.write("q", [f"{number} " + "x" * 2000 for number in range(514)])  # over 1 MB; the service refuses it at once
    answer = run("curl", copied(context, visit, "curl"))
    assert "passages has 514 entries" in str(answer["message"])


def test_the_page_selects_the_code_if_it_cannot_copy(context: BrowserContext, visit: Visit) -> None:
    visit.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    visit.page.get_by_role("button", name="Copy").click()
    expect(visit.page.get_by_role("button", name="Selected")).to_be_visible()
    assert visit.page.evaluate("getSelection().toString()").startswith("curl ")
