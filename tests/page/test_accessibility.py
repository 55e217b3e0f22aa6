"""Accessibility: axe finds no violation in the light and dark themes and on a phone, the keyboard suffices, and the
page fits small screens."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.models import EMBEDDED
from tests.page.conftest import Service
from tests.page.visit import BUSY, CROSS_ENCODER, LONG, Visit

DESKTOP, PHONE, SMALL_PHONE = (1280, 900), (390, 844), (320, 568)


def assert_accessible(page: Page) -> None:
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    # If axe cannot judge a contrast, it reports it as incomplete, not as a violation.
    unsure = [
        (node["html"], node["any"][0]["message"])
        for rule in results.response["incomplete"]
        if rule["id"] == "color-contrast"
        for node in rule["nodes"]
    ]
    assert unsure == []
    too_wide = "[...document.querySelectorAll('*')].filter((one) => one.getBoundingClientRect().right > innerWidth + 1)"
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits), page.evaluate(f"{too_wide}.map((one) => one.outerHTML.slice(0, 200))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE, SMALL_PHONE], ids=["desktop", "phone", "small-phone"])
def test_axe_finds_no_violation(page: Page, service: Service, scheme: str, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    visit = Visit(page, service.url)
    expect(page.locator("#models .model-name")).to_be_visible()
    assert_accessible(page)

    visit.write("How is bread kept?", ["In a bag.", LONG, "word" * 200])
    visit.rank()
    page.get_by_role("button", name="Times").click()
    visit.cut_at(visit.logits()[0])
    assert_accessible(page)

    visit.ask_why(0)
    assert_accessible(page)
    page.get_by_role("group", name="Tokens of the query").get_by_role("button").nth(1).focus()
    assert_accessible(page)

    page.get_by_role("button", name="Code").first.click()
    assert_accessible(page)
    page.get_by_role("button", name="Close", exact=True).click()

    visit.query.fill("")
    assert_accessible(page)  # the ranking of the previous request
    page.keyboard.press("Control+Enter")
    expect(visit.error_at("query")).to_contain_text("blank")
    assert_accessible(page)

    keyed = Visit(page, service.keyed_url)
    expect(page.get_by_label("API key")).to_be_focused()
    assert_accessible(page)
    keyed.rank_button.click()
    expect(keyed.error_at("key")).to_contain_text("Missing")
    assert_accessible(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_violation_with_several_models(
    page: Page, service: Service, scheme: str, size: tuple[int, int]
) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    visit = Visit(page, service.models_url)
    visit.compare()
    visit.rank()
    page.get_by_role("button", name="Times").click()
    visit.rows.first.hover()
    assert_accessible(page)

    visit.write("bread", [f"Passage {number} about bread. {LONG[:400]}" for number in range(20)])
    visit.rank()
    assert_accessible(page)

    page.get_by_role("button", name="Use one model").click()
    visit.choose_model(CROSS_ENCODER)
    visit.write("bread", ["Bread is baked. It is sold. The shop is closed on Sundays."])
    visit.rank()
    visit.ask_why(0)
    assert_accessible(page)

    visit.choose_model(BUSY)
    visit.rank_button.click()
    expect(visit.error_at("general")).to_contain_text("busy")
    assert_accessible(page)

    page.route("**/v1/ranking", lambda route: None)  # never answered
    visit.choose_model(EMBEDDED)
    visit.rank_button.click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    assert_accessible(page)


def test_the_keyboard_suffices(visit: Visit) -> None:
    page = visit.page
    expect(page.locator("#models .model-name")).to_be_visible()
    visited = []
    for _ in range(10):
        page.keyboard.press("Tab")
        visited.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim() || "
                                     "document.activeElement.value"))  # fmt: skip
    start = ["share", "show-code", "API reference", "query", "passages", "blank", "open-file", "clear", "fitting"]
    assert visited == [*start, "rank"]

    visit.query.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("What is a stale quote?")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("heading", name="Ranking")).to_be_visible()
    expect(visit.query).to_be_focused()
    assert visit.order()[0] == 1

    visit.threshold.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#kept")).to_have_text("Keep 5 of 6")
    page.get_by_label("as pasted").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("BM25")).to_be_checked()

    more = page.get_by_role("button", name="More").first
    more.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Less")).to_be_focused()

    page.get_by_role("button", name="Code").first.focus()
    page.keyboard.press("Enter")
    page.get_by_label("curl").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#snippet")).to_contain_text("from rerank_service.client import Client")
    page.keyboard.press("Escape")
    expect(page.locator("#snippet")).to_be_hidden()


def test_buttons_of_a_compact_row_appear_with_the_focus(visit: Visit) -> None:
    visit.write("bread", [f"Passage {number} about bread. {LONG[:400]}" for number in range(20)])
    visit.rank()
    opacity = "row => getComputedStyle(row.querySelector('.actions')).opacity"
    assert visit.rows.first.evaluate(opacity) == "0"
    visit.rows.first.get_by_role("button", name="Why?").focus()
    assert visit.rows.first.evaluate(opacity) == "1"


def test_on_a_phone_the_ranking_comes_into_view(page: Page, service: Service) -> None:
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    visit = Visit(page, service.url)
    visit.rank()
    expect(page.get_by_role("heading", name="Ranking")).to_be_in_viewport()
