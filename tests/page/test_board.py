"""The board: bars, lines from the order before, the threshold, and many passages."""

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Service
from tests.page.visit import LONG, Visit


def test_bars_grow_with_relevance_on_one_linear_scale(visit: Visit) -> None:
    visit.rank()

    logits = visit.logits()
    tracks = [bar.bounding_box() for bar in visit.page.locator("li .bar").all()]
    fills = [fill.bounding_box() for fill in visit.page.locator("li .fill").all()]
    low, high = min(logits), max(logits)
    for logit, track, fill in zip(logits, tracks, fills, strict=True):
        length = (logit - low) / (high - low) * track["width"]
        assert fill["x"] == pytest.approx(track["x"], abs=0.5)
        assert fill["width"] == pytest.approx(max(2, length), abs=1.5)
    assert [fill["width"] for fill in fills] == sorted((fill["width"] for fill in fills), reverse=True)
    expect(visit.page.locator("#low")).to_have_text(f"−{abs(low):.2f}")
    expect(visit.page.locator("#high")).to_have_text(f"+{high:.2f}")


def test_equal_logits_have_equal_full_bars_and_no_threshold(visit: Visit) -> None:
    visit.write("q", ["same", "same"])
    visit.rank()
    bars = visit.page.locator("li .bar").first.bounding_box(), visit.page.locator("li .fill").first.bounding_box()
    assert bars[0]["width"] == bars[1]["width"]
    expect(visit.threshold).to_be_disabled()


ENDS = """paths => paths.map((path) => {
    const [start, end] = [path.getPointAtLength(0), path.getPointAtLength(path.getTotalLength())];
    const top = path.ownerSVGElement.getBoundingClientRect().top;
    return [Number(path.parentNode.dataset.index), start.y + top, end.y + top];
})"""


def line_ends(page: Page) -> dict[int, tuple[float, float]]:
    """Heights of the start and the end of each passage's line, in pixels of the window."""
    return {index: (start, end) for index, start, end in page.locator("#lines path").evaluate_all(ENDS)}


def place_heights(page: Page) -> list[float]:
    boxes = [place.bounding_box() for place in page.locator("li .place").all()]
    return [box["y"] + box["height"] / 2 for box in boxes]


def test_lines_lead_from_the_place_before_to_the_place_after(visit: Visit) -> None:
    visit.rank()
    order, places, ends = visit.order(), place_heights(visit.page), line_ends(visit.page)
    assert order != list(range(6))
    for place, index in enumerate(order):
        assert ends[index] == pytest.approx((places[index], places[place]), abs=1.5)
    moves = visit.rows.evaluate_all("rows => rows.map((row) => row.querySelector('.moved').textContent)")
    expected = [index - place for place, index in enumerate(order)]
    words = [f"↑{by}up {by}" if by > 0 else f"↓{-by}down {-by}" if by < 0 else "" for by in expected]
    assert moves == words


def test_lines_can_lead_from_the_order_of_bm25(visit: Visit) -> None:
    visit.write("red apples", ["a green pear", "a red wall", "red apples and more red apples", "nothing"])
    visit.rank()
    asked = visit.rankings_asked()
    visit.page.get_by_label("BM25").check()
    places, ends = place_heights(visit.page), line_ends(visit.page)
    bm25 = [2, 1, 0, 3]  # two words, one word, then none, in the order of the request
    starts = {index: places[place] for place, index in enumerate(bm25)}
    assert {index: start for index, (start, _) in ends.items()} == pytest.approx(starts, abs=1.5)
    assert asked == []


def test_lines_follow_a_row_that_opens(visit: Visit) -> None:
    visit.write("starch", [LONG, "starch", "flour"])
    visit.rank()
    order, lines = visit.order(), visit.page.locator("#lines")
    before = lines.get_attribute("viewBox")
    visit.rows.filter(has_text="water, salt").get_by_role("button", name="More").click()
    expect(lines).not_to_have_attribute("viewBox", before)
    ends = line_ends(visit.page)
    assert [ends[index][1] for index in order] == pytest.approx(place_heights(visit.page), abs=1.5)


def test_pointing_at_a_row_highlights_its_line(visit: Visit) -> None:
    visit.rank()
    row = visit.rows.nth(2)
    row.hover()
    active = visit.page.locator("#lines .active")
    expect(active).to_have_count(1)
    assert active.get_attribute("data-index") == row.get_attribute("data-index")
    visit.page.mouse.move(5, 5)
    expect(active).to_have_count(0)


def test_the_threshold_keeps_the_passages_above_it(visit: Visit) -> None:
    visit.rank()
    kept = visit.page.locator("#kept")
    expect(kept).to_have_text("Keep all 6")
    logits = visit.logits()
    visit.cut_at((logits[2] + logits[3]) / 2)

    expect(kept).to_have_text("Keep 3 of 6")
    dropped = visit.rows.evaluate_all("rows => rows.map((row) => row.classList.contains('dropped'))")
    assert dropped == [False] * 3 + [True] * 3
    assert visit.threshold.get_attribute("aria-valuetext").startswith("Keep 3 of 6: logit at least −")

    visit.threshold.focus()
    visit.page.keyboard.press("End")  # the best passage is always kept
    expect(kept).to_have_text("Keep 1 of 6")
    visit.page.keyboard.press("Home")
    expect(kept).to_have_text("Keep all 6")


def test_the_thumb_stands_where_it_cuts_the_bars(visit: Visit) -> None:
    visit.rank()
    logits = visit.logits()
    visit.cut_at(logits[1])
    track = visit.page.locator("li .bar").first.bounding_box()
    slider = visit.threshold.bounding_box()
    ratio = (float(visit.threshold.input_value()) - logits[-1]) / (logits[0] - logits[-1])
    thumb_width = slider["width"] - track["width"]
    thumb = slider["x"] + thumb_width / 2 + ratio * (slider["width"] - thumb_width)
    bar_end = visit.page.locator("li .fill").nth(1).bounding_box()
    assert thumb == pytest.approx(bar_end["x"] + bar_end["width"], abs=2)


def test_the_threshold_stays_for_the_next_request_to_the_model(visit: Visit) -> None:
    visit.rank()
    visit.cut_at(-2)
    kept = visit.page.locator("#kept").inner_text()
    visit.query.fill("How is bread kept fresh?")
    visit.rank()
    above = sum(logit >= -2 for logit in visit.logits())
    expect(visit.page.locator("#kept")).to_have_text(f"Keep {above} of 6")
    assert kept != "Keep all 6"


def test_fifty_passages_take_one_line_each(page: Page, service: Service) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    visit = Visit(page, service.url)
    passages = [f"Passage {number} about bread. {LONG[:1000]}" for number in range(50)]
    visit.write("bread", passages)
    visit.rank()
    heights = [row.bounding_box()["height"] for row in visit.rows.all()]
    assert max(heights) <= 28
    assert page.locator("li .logit").first.is_visible()

    visit.rows.first.hover()
    visit.rows.first.get_by_role("button", name="More").click()
    assert visit.rows.first.bounding_box()["height"] > 100
    expect(page.locator(".scale")).to_be_visible()
    visit.rows.last.scroll_into_view_if_needed()
    expect(page.locator(".scale")).to_be_in_viewport()  # the threshold stays in reach
