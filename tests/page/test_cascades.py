"""Cascades on the page: the choice names the stages, and the times show what each stage did."""

import re

from playwright.sync_api import Page, expect

from tests.models import EMBEDDED
from tests.page.conftest import Service
from tests.page.visit import CASCADE, COSINE, HURRIED, Visit


def ranked_by(page: Page, service: Service, model: str) -> Visit:
    visit = Visit(page, service.cascades_url)
    page.locator(f'#models input[value="{model}"]').check()
    visit.rank()
    return visit


def test_each_stage_of_a_cascade_is_shown(page: Page, service: Service) -> None:
    visit = ranked_by(page, service, CASCADE)

    expect(page.locator("#models")).to_contain_text(f"{CASCADE} ranks in stages: {COSINE}, {EMBEDDED}")
    expect(visit.loss).to_be_hidden()
    page.get_by_role("button", name="Times").click()
    first, last = page.locator("#times .stage").all_inner_texts()
    assert re.fullmatch(rf"{COSINE}\s+6 passages, [\d.]+ ms", first)
    assert re.fullmatch(rf"{EMBEDDED}\s+2 passages, [\d.]+ ms", last)


def test_a_stage_that_was_left_out_is_named(page: Page, service: Service) -> None:
    visit = ranked_by(page, service, HURRIED)

    words = "The stage always/busy was left out (queue_full); the ranking is that of the stages before."
    expect(visit.loss).to_contain_text(words)
    expect(page.get_by_role("button", name="Use windows")).to_be_hidden()


def test_a_passage_is_explained_by_the_last_stage(page: Page, service: Service) -> None:
    visit = ranked_by(page, service, CASCADE)

    expect(visit.ask_why(0)).to_be_visible()
