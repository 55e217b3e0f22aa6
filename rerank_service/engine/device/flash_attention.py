"""Chooses the version of FlashAttention behind torch's variable-length kernel.

Version 2 is part of torch. Newer versions come from other packages, and torch calls them for the whole process. cuDNN
is not offered: `varlen_attn` of torch 2.11 and 2.13 has code for it, which the function `_should_use_cudnn` turns off.
"""

import inspect
import logging
import threading

import torch
from torch.nn import attention
from torch.nn.attention.varlen import varlen_attn

from rerank_service.config import FlashAttention
from rerank_service.errors import CheckpointError

__all__ = ["use_flash_attention"]

logger = logging.getLogger(__name__)

_IN_TORCH: FlashAttention = 2
_NAMES = {3: "FA3", 4: "FA4"}
"""Names in torch's registry."""
_CAPABILITIES = {3: (9,), 4: (9, 10)}  # as `torch.nn.attention` checks in every call
_lock = threading.Lock()  # models of a pool may load at the same time
_chosen: FlashAttention | None = None


def use_flash_attention(version: FlashAttention, device: torch.device) -> None:
    """Makes all models of this process use `version` on a GPU; does nothing for a CPU.

    Raises `CheckpointError` if torch, the GPU or the installed packages lack this version, or if another model of this
    process uses another version.
    """
    global _chosen
    if device.type != "cuda":
        return
    with _lock:
        if _chosen is not None and _chosen != version:
            raise CheckpointError(
                f"engine.flash_attention is {version}, but another model in this process uses {_chosen}, and torch has "
                "one version per process: set the same version for all models of a pool"
            )
        if version != _IN_TORCH and _chosen is None:
            _activate(version, device)
        _chosen = version
    logger.info("attention on %s runs in FlashAttention %d", device, version)


def _activate(version: FlashAttention, device: torch.device) -> None:
    asked, name = f"engine.flash_attention: {version}", _NAMES[version]
    if "num_splits" not in inspect.signature(varlen_attn).parameters:
        # Without this argument, the newer versions split long sequences by the longest one of the batch.
        raise CheckpointError(f"{asked} needs torch 2.12 or newer, and torch {torch.__version__} is installed")
    if name not in attention.list_flash_attention_impls():
        raise CheckpointError(f"torch {torch.__version__} cannot run {asked}; set 2")
    major, minor = torch.cuda.get_device_capability(device)
    if major not in _CAPABILITIES[version]:
        needed = " or ".join(f"{number}.x" for number in _CAPABILITIES[version])
        raise CheckpointError(f"{asked} needs a GPU of compute capability {needed}, and {device} has {major}.{minor}")
    try:
        attention.activate_flash_attention_impl(name)
    except (ImportError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{asked} cannot be loaded ({type(error).__name__}: {error}): install its package, or set 2"
        ) from error
