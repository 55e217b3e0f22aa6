"""Two models on one query."""

from itertools import combinations

import pytest
from playwright.sync_api import expect

from tests.models import EMBEDDED
from tests.page.visit import BUSY, COSINE, Visit


def test_two_models_rank_side_by_side_in_one_request_each(models_visit: Visit) -> None:
    visit, page = models_visit, models_visit.page
    asked = visit.rankings_asked()
    visit.compare()
    visit.rank()

    assert sorted(body["model"] for body in asked) == sorted([EMBEDDED, COSINE])
    expect(page.locator(".ranking-head .model-name")).to_have_text([EMBEDDED, COSINE])
    passages = visit.passages.input_value().split("\n\n")
    orders = []
    for column, model in enumerate([EMBEDDED, COSINE]):
        answer = visit.answer(visit.query.input_value(), passages, model=model)
        orders.append([ranking["index"] for ranking in answer["rankings"]])
        assert visit.order(column) == orders[column]
        logits = [ranking["logit"] for ranking in answer["rankings"]]
        assert visit.logits(column) == pytest.approx(logits, abs=0.006)
    assert orders[0] != orders[1]

    rank = [{index: place for place, index in enumerate(order)} for order in orders]
    pairs = list(combinations(range(len(passages)), 2))
    agreeing = sum((rank[0][a] < rank[0][b]) == (rank[1][a] < rank[1][b]) for a, b in pairs)
    tau = (2 * agreeing - len(pairs)) / len(pairs)
    shared = len(set(orders[0][:3]) & set(orders[1][:3]))
    expect(page.locator("#agreement")).to_contain_text(f"{tau:+.2f} Kendall’s tau".replace("-", "−"))
    expect(page.locator("#agreement")).to_contain_text(f"{shared} of 3 in both top 3")


def test_lines_lead_from_one_model_to_the_other(models_visit: Visit) -> None:
    visit = models_visit
    visit.compare()
    visit.rank()
    lines = visit.page.locator("#lines path")
    expect(lines).to_have_count(6)
    heights = (
        "(rows, svg) => Object.fromEntries(rows.map((row) => [row.dataset.index, row.getBoundingClientRect().top]))"
    )
    lefts, rights = (visit.page.locator("ol").nth(column).locator("li").evaluate_all(heights) for column in range(2))
    slopes = lines.evaluate_all(
        "paths => Object.fromEntries(paths.map((path) => [path.parentNode.dataset.index, "
        "path.getPointAtLength(path.getTotalLength()).y - path.getPointAtLength(0).y]))"
    )
    for index, slope in slopes.items():
        assert slope == pytest.approx(rights[index] - lefts[index], abs=1.5)
    expect(visit.threshold).to_be_hidden()  # the two scales differ


def test_the_second_list_leaves_out_the_first_model(models_visit: Visit) -> None:
    page = models_visit.page
    models_visit.compare()
    rival = page.get_by_role("group", name="Compared with")
    expect(rival.get_by_role("radio")).to_have_count(4)
    models_visit.choose_model(COSINE)
    expect(page.get_by_role("group", name="Models").get_by_label(COSINE)).to_be_focused()
    expect(rival.get_by_label(EMBEDDED)).to_be_checked()

    page.get_by_role("button", name="Use one model").click()
    expect(rival).to_have_count(0)
    models_visit.rank()
    expect(page.locator(".ranking:visible")).to_have_count(1)
    expect(models_visit.threshold).to_be_visible()


def test_names_of_models_are_never_cut(models_visit: Visit) -> None:
    models_visit.compare()
    models_visit.rank()
    for name in models_visit.page.get_by_text(COSINE).all():
        is_whole = "name => name.scrollWidth <= name.clientWidth + 1 || getComputedStyle(name).display === 'inline'"
        assert name.evaluate(is_whole)
        style = name.evaluate("name => [getComputedStyle(name).textOverflow, getComputedStyle(name).whiteSpace]")
        assert style == ["clip", "normal"]


def test_an_error_of_one_of_two_models_names_the_model(models_visit: Visit) -> None:
    models_visit.compare()
    models_visit.page.get_by_role("group", name="Compared with").get_by_label(BUSY).check()
    models_visit.rank_button.click()
    expect(models_visit.error_at("general")).to_contain_text(f"{BUSY}: The service is busy")


def test_a_service_with_one_model_offers_no_comparison(visit: Visit) -> None:
    expect(visit.page.locator("#models .model-name")).to_be_visible()
    expect(visit.page.get_by_role("button", name="Compare two models")).to_have_count(0)
