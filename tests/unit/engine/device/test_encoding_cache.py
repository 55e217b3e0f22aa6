import numpy as np
import torch

from rerank_service.engine.device.encoding_cache import EncodingCache


def text(number: int) -> np.ndarray:
    return np.array([101, number, 102], np.int32)


def states(number: int) -> torch.Tensor:
    return torch.full((3, 1000), float(number))


def test_a_stored_text_is_found_and_counted() -> None:
    cache = EncodingCache(100_000)
    assert cache.get(text(1)) is None
    cache.put_all([(text(1), states(1))])

    found = cache.get(text(1))
    assert found is not None
    assert torch.equal(found, states(1))
    assert (cache.hits, cache.misses) == (1, 1)


def test_the_bound_holds_and_the_least_recently_used_text_is_dropped_first() -> None:
    cache = EncodingCache(40_000)  # room for three entries of slightly over 12,000 bytes
    for number in range(3):
        cache.put_all([(text(number), states(number))])
    cache.get(text(0))
    cache.put_all([(text(3), states(3))])

    assert [cache.get(text(number)) is not None for number in range(4)] == [True, False, True, True]
    assert cache.num_bytes <= 40_000


def test_an_entry_larger_than_the_bound_is_not_stored() -> None:
    cache = EncodingCache(1_000)
    cache.put_all([(text(1), states(1))])
    assert cache.get(text(1)) is None
    assert cache.num_bytes == 0


def test_the_cache_stores_a_copy_and_not_the_batch() -> None:
    cache = EncodingCache(100_000)
    batch = torch.zeros(30, 1000)
    cache.put_all([(text(1), batch[3:6])])
    batch.fill_(9)

    found = cache.get(text(1))
    assert found is not None
    assert not found.any()
    assert found.untyped_storage().nbytes() == 12_000
