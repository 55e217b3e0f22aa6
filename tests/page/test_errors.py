"""Errors in plain words, at the field they are about, with a way to try again."""

import json

import pytest
from playwright.sync_api import BrowserContext, Route, expect

from tests.page.visit import BUSY, LONG, Visit


def test_a_blank_query_is_reported_at_its_field(visit: Visit) -> None:
    visit.query.fill(" ")
    visit.page.keyboard.press("Control+Enter")
    expect(visit.error_at("query")).to_have_text("query.text is blank; send a text")
    expect(visit.query).to_be_focused()
    expect(visit.query).to_have_attribute("aria-invalid", "true")

    visit.query.fill("bread")
    visit.rank()
    expect(visit.error_at("query")).to_be_empty()


def test_too_many_passages_are_reported_at_their_field(visit: Visit) -> None:
    visit.write("q", ["p"] * 513)
    visit.page.keyboard.press("Control+Enter")
    expect(visit.error_at("passages")).to_contain_text("passages has 513 entries; at most 512 are allowed")
    expect(visit.passages).to_be_focused()


def test_a_passage_refused_for_its_length_is_marked(visit: Visit) -> None:
    visit.page.get_by_label("Long passages").select_option("NONE")
    visit.write("starch", ["short", LONG])
    visit.page.keyboard.press("Control+Enter")
    expect(visit.error_at("passages")).to_contain_text("exceeds maximum allowed token size 256")
    expect(visit.rows.nth(1)).to_contain_text("refused")
    expect(visit.rows.nth(0)).not_to_contain_text("refused")


def test_a_field_named_by_another_server_is_shown_at_its_field(visit: Visit) -> None:
    """FastAPI's form of 422 has no message."""
    detail = [{"loc": ["body", "passages", 0, "text"], "msg": "Field required", "type": "missing"}]
    body = json.dumps({"detail": detail})
    visit.page.route("**/v1/ranking", lambda route: route.fulfill(status=422, body=body))
    visit.rank_button.click()
    expect(visit.error_at("passages")).to_have_text("Field required")


def test_a_full_queue_counts_down_until_the_retry(models_visit: Visit) -> None:
    visit, page = models_visit, models_visit.page
    visit.choose_model(BUSY)
    page.clock.install()
    visit.rank_button.click()
    expect(visit.error_at("general")).to_contain_text("The service is busy")
    expect(visit.error_at("general")).to_contain_text("The queue is full")
    retry = page.get_by_role("button", name="Try again")
    expect(retry).to_have_text("Try again in 7 s")
    expect(retry).to_be_disabled()
    page.clock.run_for(3000)
    expect(retry).to_have_text("Try again in 4 s")
    page.clock.run_for(4500)
    expect(retry).to_be_enabled()

    asked = visit.rankings_asked()
    retry.click()
    expect(page.get_by_role("button", name="Try again in 7 s")).to_be_visible()
    assert [body["model"] for body in asked] == [BUSY]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, "Too many requests for now."),
        (500, "The service failed on this request."),
        (502, "not reachable through its proxy"),
        (504, "took too long"),
        (418, "The service answered with status 418 and no explanation."),
    ],
)
def test_a_status_without_an_explanation_is_explained(visit: Visit, status: int, words: str) -> None:
    visit.page.route("**/v1/ranking", lambda route: route.fulfill(status=status, body="<h1>nginx</h1>"))
    visit.rank_button.click()
    expect(visit.error_at("general")).to_contain_text(words)
    expect(visit.error_at("general")).not_to_contain_text("nginx")


def test_an_unreachable_service_is_reported_and_can_be_tried_again(context: BrowserContext, visit: Visit) -> None:
    expect(visit.page.locator("#models .model-name")).to_be_visible()
    context.set_offline(True)
    visit.rank_button.click()
    expect(visit.error_at("general")).to_contain_text("No answer from 127.0.0.1")
    context.set_offline(False)
    visit.page.get_by_role("button", name="Try again").click()
    expect(visit.page.get_by_role("heading", name="Ranking")).to_be_visible()
    expect(visit.error_at("general")).to_be_empty()


def test_models_that_could_not_be_listed_are_listed_on_the_next_try(visit: Visit) -> None:
    refused: list[Route] = []

    def refuse_once(route: Route) -> None:
        refused.append(route)
        route.abort() if len(refused) == 1 else route.continue_()

    visit.page.route("**/v1/models", refuse_once)
    visit.page.reload()
    expect(visit.error_at("general")).to_contain_text("No answer from")
    visit.page.get_by_role("button", name="Try again").click()
    expect(visit.page.locator("#models .model-name")).to_be_visible()
