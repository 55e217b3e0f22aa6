"""Choosing a version of FlashAttention, in torch's own registry and with a fake package."""

import inspect
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch.nn import attention
from torch.nn.attention.varlen import varlen_attn

from rerank_service.engine.device import flash_attention
from rerank_service.engine.device.flash_attention import use_flash_attention
from rerank_service.errors import CheckpointError

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
has_splits = "num_splits" in inspect.signature(varlen_attn).parameters
needs_splits = pytest.mark.skipif(not has_splits, reason="this torch refuses other versions for another reason")


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process with a Hopper GPU, in which no model has chosen a version."""
    monkeypatch.setattr(flash_attention, "_chosen", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    yield
    attention.restore_flash_attention_impl(_raise_warn=False)


def register(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Puts a version in torch's registry; its activations are added to the list."""
    activated: list[str] = []
    monkeypatch.setitem(attention._registry._FLASH_ATTENTION_IMPLS, name, lambda: activated.append(name))
    return activated


def test_version_2_needs_nothing() -> None:
    use_flash_attention(2, GPU)
    assert attention.current_flash_attention_impl() is None


@needs_splits
def test_a_newer_version_is_activated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    activated = register(monkeypatch, "FA3")
    use_flash_attention(3, GPU)
    use_flash_attention(3, GPU)
    assert activated == ["FA3"]


@needs_splits
def test_a_missing_package_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"flash_attention: 3 cannot be loaded .*flash_attn_interface"):
        use_flash_attention(3, GPU)


@needs_splits
def test_a_package_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn_interface", ModuleType("flash_attn_interface"))
    with pytest.raises(CheckpointError, match="does not expose FA3"):
        use_flash_attention(3, GPU)


@needs_splits
@pytest.mark.parametrize(("version", "capability"), [(3, (8, 0)), (3, (10, 0)), (4, (8, 9)), (4, (12, 0))])
def test_a_gpu_without_the_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: flash_attention.FlashAttention, capability: tuple[int, int]
) -> None:
    activated = register(monkeypatch, f"FA{version}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(CheckpointError, match=f"flash_attention: {version} needs a GPU of compute capability"):
        use_flash_attention(version, GPU)
    assert activated == []


def test_a_torch_whose_kernel_splits_sequences_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None): ...  # type: ignore[no-untyped-def]

    activated = register(monkeypatch, "FA3")
    monkeypatch.setattr(flash_attention, "varlen_attn", of_torch_2_11)
    with pytest.raises(CheckpointError, match=r"needs torch 2\.12 or newer"):
        use_flash_attention(3, GPU)
    assert activated == []


@needs_splits
def test_models_of_one_process_share_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "FA3")
    use_flash_attention(3, GPU)
    with pytest.raises(CheckpointError, match="another model in this process uses 3"):
        use_flash_attention(2, GPU)


def test_a_refused_version_leaves_the_choice_open() -> None:
    with pytest.raises(CheckpointError):
        use_flash_attention(4, GPU)
    use_flash_attention(2, GPU)


def test_a_cpu_ignores_the_version() -> None:
    use_flash_attention(3, CPU)
    use_flash_attention(2, CPU)
