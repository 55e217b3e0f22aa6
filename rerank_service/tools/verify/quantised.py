"""Loads the model of a reference run, also from weights that others have quantised.

transformers reads most quantised formats only with the format's own package and a GPU. The reference therefore reads
these weights as the engines do; tests compare the weights with the numbers of those packages.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from rerank_service.engine.loading import quantised_tensors

__all__ = ["load_any"]


def load_any(model_class: Any, folder: Path, settings: dict[str, Any]) -> Any:
    """`from_pretrained` of a folder whose weights may be quantised. Raises `CheckpointError` for unreadable formats."""
    quantised = quantised_tensors(folder)
    if quantised is None:
        files = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
        return model_class.from_pretrained(folder, **files, **settings)
    config = settings.pop("config", None) or AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    if hasattr(config, "quantization_config"):  # else transformers looks for the format's package
        del config.quantization_config
    weights = {name: quantised.read(name).float() for name in quantised.names}
    with torch.device("meta"):  # transformers' automatic classes load only from a folder
        concrete = type(model_class.from_config(config)) if hasattr(model_class, "from_config") else model_class
    return concrete.from_pretrained(None, config=config, state_dict=weights, **settings)
