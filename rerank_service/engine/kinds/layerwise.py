"""Layer-wise decoders, which have a head after each of their later layers: fewer layers cost less and rank worse."""

from typing import NamedTuple

from transformers import PreTrainedConfig

from rerank_service.engine.foreign_configs import LAYERWISE_MINICPM, layerwise_minicpm
from rerank_service.engine.loading import Checkpoint
from rerank_service.errors import CheckpointError

__all__ = ["Layers", "layers_to_run"]


class Layers(NamedTuple):
    """The layers of a checkpoint that run, and the head after the last one."""

    config: PreTrainedConfig
    head: str
    """Name of the head's tensor `[1, H]`."""
    unused_prefixes: tuple[str, ...]
    """Prefixes of the names of all other tensors, and of the heads."""


def layers_to_run(checkpoint: Checkpoint) -> Layers | None:
    """The layers that `engine.num_layers` asks for; null if the checkpoint is not layer-wise.

    Raises `CheckpointError` if there is no head after that layer, or if a checkpoint without heads is to be cut.
    """
    raw, wanted = checkpoint.raw, checkpoint.options.num_layers
    if LAYERWISE_MINICPM not in (raw.get("architectures") or []):
        if wanted is not None:
            raise CheckpointError(
                f"engine.num_layers is {wanted}, but {checkpoint.folder} has one head, after its last layer: leave the "
                "setting out"
            )
        return None
    first, last = int(raw["start_layer"]), int(raw["num_hidden_layers"])
    num_layers = last if wanted is None else wanted
    if not first <= num_layers <= last:
        raise CheckpointError(
            f"engine.num_layers is {wanted}, but {checkpoint.folder} has heads only after the layers {first} to {last}"
        )
    unused = tuple(f"model.layers.{layer}." for layer in range(num_layers, last))
    head = f"lm_head.{num_layers - first}.linear_head.weight"
    return Layers(layerwise_minicpm(raw, num_layers), head, ("lm_head.", *unused))
