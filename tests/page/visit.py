"""A visitor's actions on the page, and the texts shown there. Elements are found by their labels where possible."""

from typing import Any

import httpx
from playwright.sync_api import Locator, Page, Route, expect

__all__ = ["BUSY", "CASCADE", "COSINE", "CROSS_ENCODER", "CROWDED", "HURRIED", "KEY", "LONG", "Visit"]

BUSY = "always/busy"
CASCADE = "both"
"""Id of a cascade."""
COSINE = "an-organisation/a-second-model-with-a-name-that-is-too-long-for-one-line"
"""Id of a model that compares mean vectors only, so its order differs."""
CROSS_ENCODER = "tiny/cross-encoder"
"""Id of a cross-encoder with random weights."""
CROWDED = "no/room"
"""Id of a model whose window is filled by any query."""
HURRIED = "hurried"
"""Id of a cascade whose last stage is always busy, and that answers without it."""
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
        return self.page.get_by_label("Query", exact=True)

    @property
    def passages(self) -> Locator:
        return self.page.get_by_label("Passages", exact=True)

    @property
    def rows(self) -> Locator:
        return self.page.get_by_role("listitem")

    @property
    def texts(self) -> Locator:
        """The passages' texts on the board."""
        return self.page.locator("li .text")

    @property
    def loss(self) -> Locator:
        """The sentence about truncated and unscored passages."""
        return self.page.locator("#loss")

    @property
    def summary(self) -> Locator:
        return self.page.locator("#summary")

    @property
    def threshold(self) -> Locator:
        return self.page.get_by_role("slider")

    @property
    def rank_button(self) -> Locator:
        return self.page.get_by_role("button", name="Rank", exact=True)

    def error_at(self, field: str) -> Locator:
        return self.page.locator(f"#{field}-error")

    def write(self, query: str, passages: list[str], separator: str = "\n\n") -> None:
        self.query.fill(query)
        # Sends the event that ends typing. Playwright's own `fill` takes minutes for a thousand lines.
        fill = "(area, text) => { area.value = text; area.dispatchEvent(new Event('input', {bubbles: true})); }"
        self.passages.evaluate(fill, separator.join(passages))

    def choose_model(self, name: str) -> None:
        self.page.get_by_role("group", name="Model").get_by_label(name).check()

    def compare(self) -> None:
        """Compares the default model with the second one."""
        self.page.get_by_role("button", name="Compare two models").click()

    def rank(self) -> None:
        """Presses the button and waits for the ranking."""
        self.rank_button.click()
        expect(self.page.locator("#result")).to_have_attribute("data-state", "ranked")

    def cut_at(self, logit: float) -> None:
        """Moves the threshold's thumb."""
        move = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }"
        self.threshold.evaluate(move, logit)

    def use_key(self, key: str) -> None:
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Use key").click()

    def hold_rankings(self) -> list[Route]:
        """Holds requests for rankings back. The returned list receives them."""
        held: list[Route] = []
        self.page.route("**/v1/ranking", lambda route: held.append(route))
        return held

    def rankings_asked(self) -> list[Any]:
        """Returns a list that receives the body of each request for a ranking."""
        asked: list[Any] = []
        self.page.on("request", lambda sent: asked.append(sent.post_data_json) if "ranking" in sent.url else None)
        return asked

    def ask_why(self, row: int) -> Locator:
        """Presses "Why?" at a row, and returns the explanation once it is there."""
        self.rows.nth(row).hover()
        self.rows.nth(row).get_by_role("button", name="Why?").click()
        panel = self.rows.nth(row).locator(".why-panel")
        expect(panel).to_be_visible()
        return panel

    def order(self, column: int = 0) -> list[int]:
        """Indices of the passages, in the order of one of the lists on the page."""
        rows = self.page.locator("ol").nth(column).locator("li")
        indices: list[int] = rows.evaluate_all("rows => rows.map((row) => Number(row.dataset.index))")
        return indices

    def logits(self, column: int = 0) -> list[float]:
        texts = self.page.locator("ol").nth(column).locator("li .logit").all_inner_texts()
        return [float(text.replace("−", "-")) for text in texts]

    def answer(self, query: str, passages: list[str], **fields: Any) -> dict[str, Any]:
        """The API's answer to the same request."""
        body = {"query": {"text": query}, "passages": [{"text": text} for text in passages], **fields}
        headers = {"Authorization": f"Bearer {KEY}"}
        response = httpx.post(f"{self.url}v1/ranking", json=body, headers=headers, timeout=60)
        answer: dict[str, Any] = response.raise_for_status().json()
        return answer
