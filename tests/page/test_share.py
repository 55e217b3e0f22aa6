"""Sharing: the form's state in the fragment of the address."""

from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.models import EMBEDDED
from tests.page.visit import COSINE, Visit

PASSAGES = ["def f():\n\n    return '東京 🍞'", "كيس ورقي"]


def share(context: BrowserContext, visit: Visit) -> str:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.page.get_by_role("button", name="Share").click()
    expect(visit.page.locator("#toast")).to_contain_text("Link copied.")
    link: str = visit.page.evaluate("navigator.clipboard.readText()")
    return link


def test_a_link_restores_the_form_in_another_tab(context: BrowserContext, models_visit: Visit) -> None:
    visit = models_visit
    visit.page.get_by_label("---").check()
    visit.write("Where is f?", PASSAGES, "\n---\n")
    visit.page.get_by_label("Long passages").select_option("WINDOWS")
    visit.choose_model(COSINE)
    visit.rank()
    visit.page.get_by_label("BM25").check()
    visit.cut_at(sum(visit.logits()) / 2)
    kept = visit.page.locator("#kept").inner_text()
    link = share(context, visit)

    other = Visit(context.new_page(), link)
    expect(other.query).to_have_value("Where is f?")
    assert other.texts.evaluate_all("texts => texts.map((text) => text.textContent)") == PASSAGES
    expect(other.page.get_by_role("group", name="Model").get_by_label(COSINE)).to_be_checked()
    expect(other.page.get_by_label("Long passages")).to_have_value("WINDOWS")
    other.rank()
    expect(other.page.locator("#kept")).to_have_text(kept)
    assert other.order() == visit.order()
    expect(other.page.get_by_label("BM25")).to_be_checked()


def test_two_models_are_shared(context: BrowserContext, models_visit: Visit) -> None:
    models_visit.compare()
    other = Visit(context.new_page(), share(context, models_visit))
    expect(other.page.get_by_role("group", name="Models").get_by_label(EMBEDDED)).to_be_checked()
    expect(other.page.get_by_role("group", name="Compared with").get_by_label(COSINE)).to_be_checked()


def test_nothing_of_the_state_is_sent(context: BrowserContext, visit: Visit) -> None:
    sent: list[str] = []
    visit.page.on("request", lambda request: sent.append(f"{request.url} {request.post_data or ''}"))
    visit.write("a secret query", ["a secret passage"])
    link = share(context, visit)
    other = context.new_page()
    other.on("request", lambda request: sent.append(f"{request.url} {request.post_data or ''}"))
    opened = Visit(other, link)
    expect(opened.query).to_have_value("a secret query")
    fragment = urlsplit(link).fragment
    assert fragment
    assert [one for one in sent if fragment in one or "ranking" in one] == []


def test_an_edit_removes_the_outdated_fragment(context: BrowserContext, visit: Visit) -> None:
    share(context, visit)
    assert visit.page.evaluate("location.hash") != ""
    visit.query.fill("something else")
    assert visit.page.evaluate("location.hash") == ""


def test_a_link_opened_in_the_same_tab_replaces_the_form(context: BrowserContext, visit: Visit) -> None:
    visit.write("first", ["one"])
    link = share(context, visit)
    visit.write("second", ["two"])
    visit.page.goto(link)
    expect(visit.query).to_have_value("first")


def test_a_link_opened_during_a_request_aborts_it(context: BrowserContext, visit: Visit) -> None:
    visit.write("first", ["one"])
    link = share(context, visit)
    visit.write("second", ["two", "three"])
    visit.hold_rankings()
    visit.rank_button.click()
    visit.page.goto(link)
    expect(visit.query).to_have_value("first")
    expect(visit.rank_button).to_be_visible()
    expect(visit.rows).to_have_count(1)


@pytest.mark.parametrize("fragment", ["x", "%%%", "AAAA", "1" * 5000])
def test_a_damaged_link_shows_the_example(visit: Visit, fragment: str) -> None:
    example = visit.query.input_value()
    other = Visit(visit.page.context.new_page(), f"{visit.url}#{fragment}")
    expect(other.page.locator("#toast")).to_contain_text("This link is damaged")
    expect(other.query).to_have_value(example)
