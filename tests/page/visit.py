"""A visitor's actions on the page, and the texts shown there. Elements are found by their labels where possible."""

from typing import Any

import httpx
from playwright.sync_api import Locator, Page, expect

__all__ = ["BUSY", "CROWDED", "KEY", "LONG", "Visit"]

BUSY = "always/busy"
CROWDED = "no/room"
"""Id of a model whose window is filled by any query."""
KEY = "nvapi-of-the-page"
LONG = "starch, water, salt and air; " * 100
"""Text longer than the model's window."""


class Visit:
    """An open page."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        page.goto(url)

    @property
    def query(self) -> Locator:
        return self.page.get_by_label("Query")

    @property
    def passages(self) -> Locator:
        return self.page.get_by_label("Passages", exact=True)

    @property
    def rows(self) -> Locator:
        return self.page.get_by_role("listitem")

    @property
    def loss(self) -> Locator:
        """The sentence about truncated and unscored passages."""
        return self.page.locator("#loss")

    @property
    def summary(self) -> Locator:
        return self.page.locator("#summary")

    def error_at(self, field: str) -> Locator:
        return self.page.locator(f"#{field}-error")

    def write(self, query: str, passages: list[str]) -> None:
        self.query.fill(query)
        # Sends the event that ends typing. Playwright's own `fill` takes minutes for a thousand lines.
        fill = "(area, text) => { area.value = text; area.dispatchEvent(new Event('input', {bubbles: true})); }"
        self.passages.evaluate(fill, "\n\n".join(passages))

    def rank(self) -> None:
        """Presses the button and waits for the ranking."""
        self.page.get_by_role("button", name="Rank", exact=True).click()
        expect(self.page.get_by_role("heading", name="Ranking")).to_be_visible()
        expect(self.summary).to_contain_text("token")

    def use_key(self, key: str) -> None:
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Use key").click()

    def order(self) -> list[int]:
        """Indices of the passages, in the order on the page."""
        return [int(words.removeprefix("index ")) for words in self.page.locator(".index").all_inner_texts()]

    def answer(self, query: str, passages: list[str]) -> dict[str, Any]:
        """The API's answer to the same request."""
        body = {"query": {"text": query}, "passages": [{"text": text} for text in passages]}
        headers = {"Authorization": f"Bearer {KEY}"}
        response = httpx.post(f"{self.url}v1/ranking", json=body, headers=headers, timeout=60)
        answer: dict[str, Any] = response.raise_for_status().json()
        return answer
