"""Ranking on the page: it shows the API's answer."""

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.page.visit import BUSY, CROWDED, LONG, Visit

COUNT_ANIMATIONS = """
window.animated = 0;
const animate = Element.prototype.animate;
Element.prototype.animate = function (...args) { window.animated += 1; return animate.apply(this, args); };
"""


def rankings_asked(visit: Visit) -> list[str]:
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(request.url) if "ranking" in request.url else None)
    return asked


def test_one_click_ranks_the_example(visit: Visit) -> None:
    assert visit.order() == list(range(6))
    expect(visit.page.locator("#count")).to_have_text("6 passages")

    visit.rank()

    answer = visit.answer(visit.query.input_value(), visit.passages.input_value().split("\n\n"))
    assert visit.order() == [ranking["index"] for ranking in answer["rankings"]]
    logits = [float(text.replace("−", "-")) for text in visit.page.locator("li .logit").all_inner_texts()]
    assert logits == pytest.approx([ranking["logit"] for ranking in answer["rankings"]], abs=0.006)
    assert visit.page.locator("li .place").all_inner_texts() == ["1", "2", "3", "4", "5", "6"]
    expect(visit.summary).to_have_text(f"6 passages · {answer['usage']['total_tokens']} tokens")
    expect(visit.page.get_by_role("status")).to_contain_text(f"First: passage with index {visit.order()[0]}")
    stages = visit.page.locator("#timing dt").all_inner_texts()
    assert stages == ["parse", "tokenise", "queue", "forward", "total", "round trip"]


def test_bars_grow_from_one_zero_line_by_the_logit(visit: Visit) -> None:
    visit.rank()

    logits = [float(text.replace("−", "-")) for text in visit.page.locator("li .logit").all_inner_texts()]
    tracks = [bar.bounding_box() for bar in visit.page.locator("li .bar").all()]
    fills = [fill.bounding_box() for fill in visit.page.locator(".fill").all()]
    assert min(logits) < 0 < max(logits)
    scale = tracks[0]["width"] / (max(logits) - min(logits))
    zero = tracks[0]["x"] - min(logits) * scale
    for logit, fill in zip(logits, fills, strict=True):
        assert fill["width"] == pytest.approx(abs(logit) * scale, abs=1.5)
        assert (fill["x"] if logit > 0 else fill["x"] + fill["width"]) == pytest.approx(zero, abs=1.5)
    assert len({fill["height"] for fill in fills}) == len({track["height"] for track in tracks}) == 1


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_rows_are_animated_unless_reduced_motion_is_preferred(
    context: BrowserContext, visit: Visit, page: Page, motion: str
) -> None:
    page.emulate_media(reduced_motion=motion)
    page.add_init_script(COUNT_ANIMATIONS)
    page.reload()
    visit.rank()
    assert (page.evaluate("window.animated") > 0) == (motion == "no-preference")


def test_truncated_passages_are_counted_without_a_further_request(visit: Visit) -> None:
    rankings = rankings_asked(visit)
    visit.write("starch", [*(f"{number} {LONG}" for number in range(13)), "short", LONG, LONG])
    visit.rank()

    expect(visit.loss).to_have_text(
        "15 passages were truncated: together with the query, they exceed the model's window."
    )
    assert rankings == [f"{visit.url}v1/ranking"]

    visit.write("starch", ["short", LONG])
    expect(visit.loss).to_be_visible()  # as long as its ranking is shown
    visit.rank()
    expect(visit.loss).to_have_text("1 passage was truncated: together with the query, it exceeds the model's window.")
    expect(visit.page.get_by_role("status")).to_contain_text("1 passage was truncated")


def test_unscored_passages_are_counted_separately(visit: Visit) -> None:
    visit.page.get_by_label("Model").select_option(CROWDED)
    visit.write("starch", ["one", "two"])
    visit.rank()
    expect(visit.loss).to_have_text(
        "2 passages were not scored: the query fills the model's window, so their ranks are meaningless."
    )


def test_there_is_no_warning_if_everything_fits(visit: Visit) -> None:
    visit.rank()
    expect(visit.loss).to_be_hidden()


def test_512_passages(visit: Visit) -> None:
    passages = [f"bread number {number}" for number in range(512)]
    visit.write("bread number 77", passages)
    expect(visit.page.locator("#count")).to_have_text("512 passages")
    visit.rank()

    answer = visit.answer("bread number 77", passages)
    assert visit.order() == [ranking["index"] for ranking in answer["rankings"]]


def test_too_many_passages_are_reported_at_their_field(visit: Visit) -> None:
    visit.write("q", ["p"] * 513)
    visit.page.keyboard.press("Control+Enter")
    expect(visit.error_at("passages")).to_contain_text("passages has 513 entries; at most 512 are allowed")
    expect(visit.passages).to_be_focused()


def test_passages_can_be_separated_by_line_breaks(visit: Visit) -> None:
    visit.passages.fill("one\n\n  two  \nthree")
    expect(visit.page.locator("#count")).to_have_text("2 passages")
    visit.page.get_by_label("line breaks").check()
    expect(visit.page.locator("#count")).to_have_text("3 passages")
    assert visit.page.locator("li .text").all_inner_texts() == ["one", "two", "three"]


def test_a_ranking_is_marked_as_previous_after_an_edit(visit: Visit) -> None:
    visit.rank()
    order = visit.order()
    visit.query.fill("something else")
    expect(visit.summary).to_have_text("of the previous request")
    assert visit.order() == order


def test_an_edit_aborts_the_running_request(visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route("**/v1/ranking", lambda route: held.append(route))  # never answered
    visit.page.get_by_role("button", name="Rank", exact=True).click()
    expect(visit.page.get_by_role("button", name="Ranking")).to_be_visible()
    visit.passages.fill("only one now")
    expect(visit.page.get_by_role("button", name="Rank", exact=True)).to_be_visible()
    expect(visit.page.get_by_role("heading", name="Preview")).to_be_visible()

    visit.page.unroute("**/v1/ranking")
    visit.rank()
    assert visit.order() == [0]


def test_markup_in_a_passage_stays_text(visit: Visit) -> None:
    evil = [
        "<img src=x onerror='window.owned = 1'>",
        "<script>window.owned = 1</script>",
        "</textarea><b>bold</b> &amp;",
    ]
    visit.write("<svg onload='window.owned = 1'>", evil)
    visit.rank()

    assert sorted(visit.page.locator("li .text").all_inner_texts()) == sorted(evil)
    assert visit.page.locator("main :is(img, script, b)").count() == 0
    assert visit.page.evaluate("window.owned") is None


def test_a_long_passage_opens_and_closes(visit: Visit) -> None:
    visit.write("starch", [LONG, "short"])
    row = visit.rows.first
    low = row.bounding_box()["height"]
    row.get_by_role("button", name="Show all").click()
    assert row.bounding_box()["height"] > 2 * low
    row.get_by_role("button", name="Show less").click()
    assert row.bounding_box()["height"] == low
    expect(visit.rows.last.get_by_role("button")).to_have_count(0)


def test_a_blank_query_is_reported_at_its_field(visit: Visit) -> None:
    visit.query.fill(" ")
    visit.page.keyboard.press("Control+Enter")
    expect(visit.error_at("query")).to_have_text("query.text is blank; send a text")
    expect(visit.query).to_be_focused()
    expect(visit.query).to_have_attribute("aria-invalid", "true")

    visit.query.fill("bread")
    visit.rank()
    expect(visit.error_at("query")).to_be_empty()


def test_a_passage_refused_for_its_length_is_marked(visit: Visit) -> None:
    visit.page.get_by_label("Long passages").select_option("NONE")
    visit.write("starch", ["short", LONG])
    visit.page.keyboard.press("Control+Enter")
    expect(visit.error_at("passages")).to_contain_text("exceeds maximum allowed token size 256")
    expect(visit.rows.nth(1)).to_contain_text("refused")
    expect(visit.rows.nth(0)).not_to_contain_text("refused")


def test_a_full_queue_shows_the_services_message(visit: Visit) -> None:
    visit.page.get_by_label("Model").select_option(BUSY)
    visit.page.get_by_role("button", name="Rank", exact=True).click()
    expect(visit.error_at("general")).to_contain_text("The queue is full")
    expect(visit.error_at("general")).to_contain_text("retry after 7 s")


def test_an_unreachable_service_is_reported(context: BrowserContext, visit: Visit) -> None:
    expect(visit.page.get_by_label("Model")).not_to_be_empty()
    context.set_offline(True)
    visit.page.get_by_role("button", name="Rank", exact=True).click()
    expect(visit.error_at("general")).to_contain_text("did not answer. Is it running?")


def test_an_alias_is_marked_as_an_alias(visit: Visit) -> None:
    options = visit.page.get_by_label("Model").locator("option")
    expect(options).to_have_count(4)
    assert options.nth(1).inner_text() == "minilm (alias of sentence-transformers/all-MiniLM-L6-v2)"
