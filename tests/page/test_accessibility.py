"""Accessibility: axe finds no violation in the light and dark themes and on a phone, the keyboard suffices, and the
page fits small screens."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.page.conftest import Service
from tests.page.visit import LONG, Visit

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
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE, SMALL_PHONE], ids=["desktop", "phone", "small-phone"])
def test_axe_finds_no_violation(page: Page, service: Service, scheme: str, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    visit = Visit(page, service.url)
    expect(page.get_by_label("Model")).not_to_be_empty()
    assert_accessible(page)

    visit.write("How is bread kept?", ["In a bag.", LONG, "word" * 200])
    visit.rank()
    assert_accessible(page)

    visit.query.fill("")
    assert_accessible(page)  # the ranking of the previous request
    page.keyboard.press("Control+Enter")
    expect(visit.error_at("query")).to_contain_text("blank")
    assert_accessible(page)

    keyed = Visit(page, service.keyed_url)
    expect(page.get_by_label("API key")).to_be_focused()
    assert_accessible(page)
    page.get_by_role("button", name="Rank", exact=True).click()
    expect(keyed.error_at("key")).to_contain_text("Missing")
    assert_accessible(page)


def test_the_keyboard_suffices(visit: Visit) -> None:
    page = visit.page
    expect(page.get_by_label("Model")).not_to_be_empty()
    visited = []
    for _ in range(16):
        page.keyboard.press("Tab")
        visited.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim() || "
                                     "document.activeElement.value"))  # fmt: skip
    start = ["API reference", "model", "truncate", "query", "passages", "blank", "clear", "rank"]
    assert visited[: len(start)] == start
    assert visited.index("Show all") < visited.index("curl") < visited.index("copy") < len(visited) - 1

    visit.query.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("What is a stale quote?")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("heading", name="Ranking")).to_be_visible()
    expect(visit.query).to_be_focused()
    assert visit.order()[0] == 1

    more = page.get_by_role("button", name="Show all").first
    more.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Show less")).to_be_focused()
    page.get_by_label("curl").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#snippet")).to_contain_text("import httpx")


def test_on_a_phone_the_ranking_comes_into_view(page: Page, service: Service) -> None:
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    visit = Visit(page, service.url)
    visit.rank()
    expect(page.get_by_role("heading", name="Ranking")).to_be_in_viewport()
