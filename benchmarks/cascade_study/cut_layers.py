"""Makes a checkpoint from the first layers of a BERT-like encoder: a cheaper model with the same tokenizer and head.

Nothing is trained: the cut model reads the token states after its last layer.
"""

import json
import re
from pathlib import Path
from shutil import copyfile

from safetensors.torch import load_file, save_file

__all__ = ["cut_layers"]

_WEIGHTS = "model.safetensors"
_LAYER = re.compile(r"(?:^|\.)encoder\.layer\.(\d+)\.")


def cut_layers(checkpoint: Path, num_layers: int, output: Path) -> Path:
    """Writes the first `num_layers` layers of a checkpoint to the folder `output` and returns this folder."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if not 0 < num_layers <= config["num_hidden_layers"]:
        raise ValueError(f"{checkpoint} has {config['num_hidden_layers']} layers; it cannot be cut to {num_layers}")
    output.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.is_file() and file.name not in {_WEIGHTS, "config.json"}:
            copyfile(file, output / file.name)
    config["num_hidden_layers"] = num_layers
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = load_file(checkpoint / _WEIGHTS)
    kept = {name: tensor for name, tensor in weights.items() if _is_kept(name, num_layers)}
    save_file(kept, output / _WEIGHTS, {"format": "pt"})
    return output


def _is_kept(name: str, num_layers: int) -> bool:
    layer = _LAYER.search(name)
    return layer is None or int(layer[1]) < num_layers
