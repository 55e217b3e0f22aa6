"""A service that requires a key, behind a prefix."""

from playwright.sync_api import expect

from tests.page.visit import KEY, Visit


def test_the_page_asks_for_a_key_and_ranks_with_it(keyed_visit: Visit) -> None:
    page = keyed_visit.page
    expect(page.get_by_label("API key")).to_be_focused()
    expect(page.get_by_text("This service requires an API key.")).to_be_visible()
    expect(keyed_visit.error_at("key")).to_be_empty()  # no error yet
    expect(page.get_by_label("API key")).not_to_have_attribute("aria-invalid", "true")

    page.get_by_role("button", name="Rank", exact=True).click()
    expect(keyed_visit.error_at("key")).to_contain_text("Missing API key")

    keyed_visit.use_key("wrong")
    expect(keyed_visit.error_at("key")).to_contain_text("Invalid API key")

    keyed_visit.use_key("schlüssel")
    expect(keyed_visit.error_at("key")).to_contain_text("letters, digits and symbols")

    keyed_visit.use_key(KEY)
    expect(keyed_visit.query).to_be_focused()
    expect(page.get_by_label("API key")).to_be_hidden()
    keyed_visit.rank()
    answer = keyed_visit.answer(keyed_visit.query.input_value(), keyed_visit.passages.input_value().split("\n\n"))
    assert keyed_visit.order() == [ranking["index"] for ranking in answer["rankings"]]


def test_the_key_stays_in_the_tab_and_can_be_forgotten(keyed_visit: Visit) -> None:
    page = keyed_visit.page
    keyed_visit.use_key(KEY)
    expect(keyed_visit.query).to_be_focused()

    assert KEY not in page.url
    assert page.evaluate("[JSON.stringify(localStorage), document.cookie]") == ["{}", ""]
    assert page.evaluate("Object.entries(sessionStorage)") == [["rerank-service key /keyed/", KEY]]
    page.reload()
    keyed_visit.rank()

    page.get_by_role("button", name="Forget it").click()
    expect(page.get_by_label("API key")).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Rank", exact=True).click()
    expect(keyed_visit.error_at("key")).to_contain_text("Missing API key")


def test_a_service_without_keys_does_not_ask_for_a_key(visit: Visit) -> None:
    expect(visit.page.locator("#models .model-name")).to_be_visible()
    expect(visit.page.get_by_label("API key")).to_be_hidden()
