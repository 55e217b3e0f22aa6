"""Ranking on the page: it shows the API's answer."""

import pytest
from playwright.sync_api import Page, expect

from tests.models import EMBEDDED
from tests.page.visit import CROWDED, LONG, Visit

RECORD_ANIMATIONS = """
window.animated = [];
const animate = Element.prototype.animate;
Element.prototype.animate = function (...args) { window.animated.push(this); return animate.apply(this, args); };
"""


def test_one_press_ranks_the_example_in_one_request(visit: Visit) -> None:
    asked = visit.rankings_asked()
    assert visit.order() == list(range(6))
    expect(visit.page.locator("#count")).to_have_text("6 passages")

    visit.rank()

    answer = visit.answer(visit.query.input_value(), visit.passages.input_value().split("\n\n"))
    assert len(asked) == 1
    assert visit.order() == [ranking["index"] for ranking in answer["rankings"]]
    assert visit.logits() == pytest.approx([ranking["logit"] for ranking in answer["rankings"]], abs=0.006)
    assert visit.page.locator("li .place").all_inner_texts() == ["1", "2", "3", "4", "5", "6"]
    expect(visit.page.locator("#announcement")).to_contain_text(f"First: passage with index {visit.order()[0]}")


def test_the_total_time_comes_first_and_the_other_times_are_folded(visit: Visit) -> None:
    visit.rank()
    answer = visit.answer(visit.query.input_value(), visit.passages.input_value().split("\n\n"))
    tokens = answer["usage"]["total_tokens"]
    assert visit.summary.inner_text().split(" · ")[1:] == ["6 passages", f"{tokens} tokens"]
    times = visit.page.locator("#times")
    expect(times).to_be_hidden()

    visit.page.get_by_role("button", name="Times").click()

    expect(times).to_be_visible()
    stages = times.locator("dt").all_inner_texts()
    assert stages == ["total", "parse", "tokenise", "queue", "forward", "round trip"]


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_rows_and_lines_are_animated_unless_reduced_motion_is_preferred(visit: Visit, page: Page, motion: str) -> None:
    page.emulate_media(reduced_motion=motion)
    page.add_init_script(RECORD_ANIMATIONS)
    page.reload()
    visit.rank()
    # After two frames, observers of the layout have run too.
    page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    tags = page.evaluate("window.animated.filter((one) => one.isConnected).map((one) => one.localName)")
    if motion == "reduce":
        assert tags == []
    else:
        assert tags.count("path") == 6
        assert tags.count("li") > 0


def test_truncated_passages_are_counted_without_a_further_request(visit: Visit) -> None:
    asked = visit.rankings_asked()
    visit.write("starch", [*(f"{number} {LONG}" for number in range(13)), "short", LONG, LONG])
    visit.rank()

    expect(visit.loss).to_contain_text(
        "15 passages were truncated: together with the query, they exceed the model's window."
    )
    assert len(asked) == 1

    visit.write("starch", ["short", LONG])
    expect(visit.loss).to_be_visible()  # as long as its ranking is shown
    visit.rank()
    expect(visit.loss).to_contain_text(
        "1 passage was truncated: together with the query, it exceeds the model's window."
    )
    expect(visit.page.locator("#announcement")).to_contain_text("1 passage was truncated")


def test_windows_are_offered_where_a_passage_was_cut(visit: Visit) -> None:
    passages = ["short", LONG + "The keeper of the lighthouse is called Ada."]
    visit.write("Who keeps the lighthouse?", passages)
    visit.rank()
    asked = visit.rankings_asked()

    visit.page.get_by_role("button", name="Rank them by their best part").click()

    expect(visit.loss).to_be_hidden()
    assert [body["passage_windows"] for body in asked] == [{"max_per_passage": 8}]
    expect(visit.page.get_by_label("Long passages")).to_have_value("WINDOWS")
    answer = visit.answer("Who keeps the lighthouse?", passages, passage_windows={"max_per_passage": 8})
    assert visit.logits() == pytest.approx([ranking["logit"] for ranking in answer["rankings"]], abs=0.006)


def test_unscored_passages_are_counted_separately(models_visit: Visit) -> None:
    models_visit.choose_model(CROWDED)
    models_visit.write("starch", ["one", "two"])
    models_visit.rank()
    expect(models_visit.loss).to_contain_text(
        "2 passages were not scored: the query fills the model's window, so their ranks are meaningless."
    )
    expect(models_visit.page.get_by_role("button", name="Rank them by their best part")).to_be_hidden()


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


def test_a_ranking_is_marked_as_previous_after_an_edit(visit: Visit) -> None:
    visit.rank()
    order = visit.order()
    visit.query.fill("something else")
    expect(visit.summary).to_have_text("of the previous request")
    assert visit.order() == order


def test_a_running_request_shows_a_timer_and_a_second_press_sends_nothing(visit: Visit) -> None:
    held = visit.hold_rankings()
    visit.rank_button.click()
    busy = visit.page.get_by_role("button", name="Ranking")
    expect(busy.locator(".spinner")).to_be_visible()
    first = busy.locator(".timer").inner_text()
    assert first.endswith(" s")
    expect(busy.locator(".timer")).not_to_have_text(first)  # the timer runs

    busy.click()
    visit.page.keyboard.press("Control+Enter")
    assert len(held) == 1

    visit.page.get_by_role("button", name="Stop").click()
    expect(visit.rank_button).to_be_focused()
    expect(visit.page.get_by_role("heading", name="Preview")).to_be_visible()


def test_an_edit_aborts_the_running_request(visit: Visit) -> None:
    visit.hold_rankings()
    visit.rank_button.click()
    expect(visit.page.get_by_role("button", name="Ranking")).to_be_visible()
    visit.passages.fill("only one now")
    expect(visit.rank_button).to_be_visible()
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

    assert sorted(visit.texts.all_inner_texts()) == sorted(evil)
    assert visit.page.locator("main :is(img, script), ol b, form b").count() == 0
    assert visit.page.evaluate("window.owned") is None


def test_an_alias_is_listed_with_its_model(visit: Visit) -> None:
    expect(visit.page.locator("#models .model-name")).to_have_text(f"{EMBEDDED} also minilm")
