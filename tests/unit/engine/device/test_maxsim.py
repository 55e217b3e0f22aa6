"""MaxSim in chunks, compared with the formula on random token states."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from rerank_service.engine.device.maxsim import Comparison, compare

CPU = torch.device("cpu")
WIDTH = 24
QUERIES = [3, 4, 2, 1, 18, 19, 70, 600]  # tokens, CLS and SEP included
PASSAGES = [1, 2, 3, 31, 32, 33, 64, 65, 250, 600]


def text(length: int, seed: int) -> torch.Tensor:
    return torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(1000 * seed + length))


def all_pairs(queries: Sequence[int], passages: Sequence[int]) -> Comparison:
    """Each query with each passage, texts of the given lengths."""
    states = [text(length, seed) for seed, length in enumerate([*queries, *passages])]
    grid = [(query, len(queries) + passage) for passage in range(len(passages)) for query in range(len(queries))]
    return Comparison(states, [query for query, _ in grid], [passage for _, passage in grid], 600)


def similarities(comparison: Comparison, pair: int) -> torch.Tensor:
    """Cosines `[L, Nq]` of passage tokens with query words."""
    query, passage = (comparison.states[side[pair]] for side in (comparison.queries, comparison.passages))
    words = query[1:-1] if len(query) > 2 else query
    return F.normalize(passage, dim=-1) @ F.normalize(words, dim=-1).T


def results(comparison: Comparison, record: bool = False) -> tuple[torch.Tensor, torch.Tensor, dict[int, Any]]:
    return compare(comparison, CPU, [record] * len(comparison.queries))


@pytest.mark.parametrize("repeats", [1, 25])
def test_every_pair_has_the_logits_and_matches_of_the_formula(repeats: int) -> None:
    """With 25 passages of each length, the pairs of one query fill several chunks."""
    comparison = all_pairs(QUERIES, PASSAGES * repeats)
    cosines, maxsims, matches = results(comparison, record=True)

    for pair, (query, passage) in enumerate(zip(comparison.queries, comparison.passages, strict=True)):
        means = [comparison.states[index].mean(0) for index in (query, passage)]
        assert cosines[pair] == pytest.approx(float(F.cosine_similarity(*means, dim=0)), abs=1e-5)
        largest = similarities(comparison, pair).max(0)
        assert maxsims[pair] == pytest.approx(float(largest.values.mean()), abs=1e-5)
        assert matches[pair].similarities.tolist() == pytest.approx(largest.values.tolist(), abs=1e-5)
        assert matches[pair].tokens.tolist() == largest.indices.tolist()


def test_equal_tokens_match_at_their_first_place() -> None:
    passage = text(2, 1).repeat(300, 1)
    comparison = Comparison([text(40, 0), passage], [0], [1], 600)

    _, _, matches = results(comparison, record=True)

    assert set(matches[0].tokens.tolist()) <= {0, 1}


def test_a_pair_has_the_same_bits_alone_and_in_any_batch() -> None:
    together = all_pairs(QUERIES, PASSAGES * 3)
    cosines, maxsims, _ = results(together)
    for pair in range(0, len(together.queries), 7):
        query, passage = together.queries[pair], together.passages[pair]
        alone = Comparison([together.states[query], together.states[passage]], [0], [1], 600)
        assert results(alone)[:2] == (cosines[pair], maxsims[pair])


def test_recording_changes_no_bit() -> None:
    comparison = all_pairs(QUERIES, PASSAGES)
    for plain, recorded in zip(results(comparison)[:2], results(comparison, record=True)[:2], strict=True):
        assert torch.equal(plain, recorded)


def test_states_that_are_not_finite_reach_only_their_own_pairs() -> None:
    comparison = all_pairs(QUERIES, PASSAGES)
    spoilt = len(QUERIES) + 3
    comparison.states[spoilt][-1] = torch.nan
    cosines, maxsims, _ = results(comparison)

    is_spoilt = torch.tensor([passage == spoilt for passage in comparison.passages])
    assert (cosines + maxsims).isfinite().tolist() == (~is_spoilt).tolist()


class Operators(TorchDispatchMode):
    """Records the operators that run, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.names.append(str(func))
        return result


def operators(comparison: Comparison) -> list[str]:
    with Operators() as recorded:
        results(comparison, record=True)
    return recorded.names


def test_the_number_of_kernels_does_not_depend_on_the_number_of_passages() -> None:
    few, many = (operators(all_pairs([12], [40] * count)) for count in (2, 250))

    assert few == many
    assert len(many) < 40


def test_a_full_batch_takes_a_bounded_number_of_kernels() -> None:
    """16,384 tokens: a request of short passages, and forty requests at once."""
    one_request = all_pairs([12], [160] * 102)
    queries = [3 + 2 * number for number in range(40)]
    states = [text(length, seed) for seed, length in enumerate(queries + [100] * 120)]
    mixed = Comparison(states, [number % 40 for number in range(120)], list(range(40, 160)), 256)

    assert len(operators(one_request)) < 40
    assert len(operators(mixed)) < 110
