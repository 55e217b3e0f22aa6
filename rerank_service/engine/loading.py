"""Loads a model from a checkpoint's folder, strictly as config.json says, without running code from the folder.

Refuses pickles, unknown architectures, and tensors that are missing, unexpected or of the wrong shape: with wrong
tensors, a model would load without an error and rank wrongly.
"""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from rerank_service.checkpoints.origin import other_formats
from rerank_service.config import EngineConfig
from rerank_service.engine.device.precision import Precision
from rerank_service.engine.foreign_configs import FOREIGN_CLASSIFIERS
from rerank_service.engine.quantised.scheme import READABLE, read_scheme
from rerank_service.engine.quantised.tensors import QuantisedTensors, is_quantised_type
from rerank_service.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "class_of_family",
    "classifier_config",
    "first_position",
    "has_tensor",
    "load_weights",
    "max_positions",
    "native_config",
    "num_linear_weights",
    "quantised_tensors",
    "read_json",
    "read_model_config",
    "read_rows",
    "refuse_pickles",
    "resolve_window",
    "tensor_files",
    "tensor_shapes",
    "transformers_config",
]

logger = logging.getLogger(__name__)

_NOT_MODEL_SETTINGS = frozenset(
    {
        "auto_map",
        "architectures",
        "model_type",
        "_name_or_path",
        "transformers_version",
        "pooling",
        "temperature",
        "prompt_template",
        "dtype",
        "torch_dtype",
        "quantization_config",
        "compression_config",
    }
)
"""Keys of config.json that are not passed to transformers' own configuration classes."""

_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text")
"""Families whose first position is pad_token_id + 1, which leaves fewer positions for tokens."""


class Checkpoint(NamedTuple):
    """A checkpoint to load, and the options for loading it."""

    folder: Path
    raw: dict[str, Any]
    """The contents of config.json."""
    options: EngineConfig
    window_tokens: int | None
    """The configured window; null: the window that the checkpoint specifies."""
    device: torch.device
    """Device of all tensors."""
    precision: Precision = Precision(torch.float32)
    """Number types of the model (see `choose_precision`)."""


def native_config(config_class: Any, raw: dict[str, Any]) -> Any:
    """The contents of config.json as an instance of a transformers class, with the key-value cache turned off."""
    kept = {key: value for key, value in raw.items() if key not in _NOT_MODEL_SETTINGS}
    config = config_class(**deepcopy(kept))  # the configuration classes write into the dicts they are given
    config.use_cache = False
    return config


def transformers_config(folder: Path) -> Any:
    """A checkpoint's configuration as transformers reads it. Raises `CheckpointError` if transformers has no class for
    this checkpoint."""
    raw = read_model_config(folder)
    if foreign := FOREIGN_CLASSIFIERS.get(str(raw.get("model_type"))):
        return foreign(raw)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"transformers has no model class for {folder} ({error}). Code that ships with a checkpoint is never run"
        ) from error


def classifier_config(folder: Path) -> Any:
    """The configuration of a sequence classifier. Raises `CheckpointError` unless it has one label."""
    config = transformers_config(folder)
    if config.num_labels != 1:
        raise CheckpointError(f"{folder} has {config.num_labels} labels; a reranker has only one")
    return config


def class_of_family(checkpoint: Checkpoint, classes: Mapping[str, Any], engine: str) -> Any:
    """The class for the checkpoint's `model_type`. Raises `CheckpointError` if `engine` has none for it."""
    family: Any = checkpoint.raw.get("model_type")
    if family not in classes:
        raise CheckpointError(
            f"{checkpoint.folder} has model_type {family!r}; a {engine} supports only {', '.join(classes)}"
        )
    return classes[family]


def read_model_config(folder: Path) -> dict[str, Any]:
    """The contents of config.json, including `auto_map`; no code is executed."""
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a checkpoint. Raises `CheckpointError` if the file is missing or not a JSON object."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return settings


def has_tensor(folder: Path, name: str) -> bool:
    """Whether the checkpoint has a tensor of this name, perhaps quantised. Raises `CheckpointError`."""
    quantised = quantised_tensors(folder)
    return name in (tensor_files(folder) if quantised is None else quantised.names)


def read_rows(folder: Path, name: str, row: int | None = None) -> torch.Tensor:
    """Returns a matrix `[rows, columns]` of the checkpoint in float32. With `row`, only that row is read and returned.
    Raises `CheckpointError` if the tensor or the row does not exist.
    """
    quantised = quantised_tensors(folder)
    if quantised is not None and quantised.is_quantised(name):
        matrix = quantised.read(name)
        return matrix if row is None else matrix[row : row + 1]
    path = tensor_files(folder).get(name)
    if path is None:
        raise CheckpointError(f"{folder} has no tensor {name}")
    with safe_open(path, framework="pt") as tensors:
        matrix = tensors.get_slice(name)
        num_rows = matrix.get_shape()[0]
        if row is not None and row >= num_rows:
            raise CheckpointError(f"{name} in {folder} has {num_rows} rows; the tokenizer refers to row {row}")
        rows: torch.Tensor = matrix[:] if row is None else matrix[row : row + 1]
    return rows.float()


def tensor_files(folder: Path) -> dict[str, Path]:
    """The safetensors file of each tensor. Reads only headers. Raises `CheckpointError` if the weights are pickled,
    missing or damaged."""
    refuse_pickles(folder)
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                files = dict.fromkeys(tensors.keys(), path) | files
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): fetch the file again") from error
    return files


def num_linear_weights(folder: Path, ignored_prefixes: tuple[str, ...] = ()) -> int:
    """Number of weights by which each token is multiplied: all matrices except the input and output embeddings, and
    those whose names start with one of `ignored_prefixes`."""
    matrices = {name: shape for name, shape in tensor_shapes(folder).items() if len(shape) == 2}
    return sum(
        math.prod(shape)
        for name, shape in matrices.items()
        if not (_is_vocabulary(name) or name.startswith(ignored_prefixes))
    )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor; of a quantised tensor, its shape before it was quantised. Raises `CheckpointError`."""
    quantised = quantised_tensors(folder)
    if quantised is not None:
        return {name: quantised.shape(name) for name in quantised.names}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def _is_vocabulary(name: str) -> bool:
    return "embed" in name or name.startswith("lm_head")


def quantised_tensors(folder: Path) -> QuantisedTensors | None:
    """The tensors of a checkpoint that others have quantised; null if config.json declares no quantisation.

    Raises `CheckpointError` if the format cannot be read.
    """
    raw = read_model_config(folder)
    try:
        scheme = read_scheme(raw)
    except ValueError as error:
        raise CheckpointError(f"{folder} {error}") from None
    return None if scheme is None else QuantisedTensors(folder, scheme)


def load_weights(
    model_class: Any,
    folder: Path,
    config: PreTrainedConfig,
    *,
    precision: Precision,
    device: torch.device,
    attention: str | None,
    ignored_prefixes: Iterable[str] = (),
) -> Any:
    """Returns a model of `model_class` with all tensors of the checkpoint, on `device`, in evaluation mode.

    If `attention` is null, transformers chooses its fastest attention for the class. A tensor may remain unused, or be
    missing, if its name starts with one of `ignored_prefixes`. Raises `CheckpointError`.
    """
    refuse_pickles(folder)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # `_refuse_mismatches` reports mismatches more briefly
    settings = {
        "config": config,
        "attn_implementation": attention,
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # reported, then refused below
    }
    quantised = quantised_tensors(folder)
    try:
        if quantised is None:
            _refuse_undeclared(folder)
            # Quantising needs the weights as published.
            dtype = "auto" if precision.quantised else precision.states
            model, report = model_class.from_pretrained(folder, dtype=dtype, **settings)
        else:
            model, report = _load_dequantised(model_class, quantised, precision, settings)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot load {folder}: {error}") from error
    _refuse_mismatches(folder, report, tuple(ignored_prefixes))
    for parameter in model.parameters():
        if parameter.dim() == 1:  # a bias that views the mapped file would keep the whole file mapped
            parameter.data = parameter.data.clone()
    return model.to(device).eval().requires_grad_(False)


def _load_dequantised(
    model_class: Any, tensors: QuantisedTensors, precision: Precision, settings: dict[str, Any]
) -> Any:
    """`from_pretrained` with dequantised weights in the type of states, from which layers may be quantised again."""
    config, dtype = settings["config"], precision.states
    if hasattr(config, "quantization_config"):  # else transformers would look for the format's own package
        del config.quantization_config
    weights = {name: tensors.read(name).to(dtype) for name in tensors.names}
    logger.info("dequantised format=%r num_tensors=%d dtype=%s", tensors.scheme.name, len(weights), dtype)
    with torch.device("meta"):  # transformers' automatic classes load only from a folder
        concrete = type(model_class.from_config(config)) if hasattr(model_class, "from_config") else model_class
    return concrete.from_pretrained(None, state_dict=weights, dtype=dtype, **settings)


def _refuse_undeclared(folder: Path) -> None:
    """Raises `CheckpointError` if tensors have numbers that need a scale, but config.json declares no quantisation."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                dtype = tensors.get_slice(name).get_dtype()
                if is_quantised_type(dtype) or name.endswith(".qweight"):
                    raise CheckpointError(
                        f"{name} in {path} is quantised ({dtype}), but config.json has no quantization_config that "
                        f"says how; the engines read {READABLE}. Use the original weights"
                    )


def max_positions(model_config: dict[str, Any]) -> int | None:
    """Length of the longest sequence for which the model has positions; null if config.json does not specify it."""
    positions = model_config.get("max_position_embeddings")
    if positions is None:
        return None
    return int(positions) - first_position(model_config)


def first_position(model_config: dict[str, Any]) -> int:
    """Position of a sequence's first token: 0, or pad_token_id + 1 in RoBERTa and related families."""
    if model_config.get("model_type") not in _OFFSET_POSITIONS:
        return 0
    pad_id = model_config.get("pad_token_id")
    return (1 if pad_id is None else int(pad_id)) + 1


def resolve_window(configured: int | None, from_tokenizer: int | None, positions: int | None) -> int:
    """Window in tokens: the configured window, else the smaller limit of tokenizer and model.

    Raises `CheckpointError` if the configured window exceeds the model's positions, or if no window is known.
    """
    if configured is not None:
        if positions is not None and configured > positions:
            raise CheckpointError(f"window_tokens {configured} is above the model's {positions} positions")
        return configured
    known = [length for length in (from_tokenizer, positions) if length is not None]
    if not known:
        raise CheckpointError("the checkpoint does not say how long a pair may be; set window_tokens")
    return min(known)


def refuse_pickles(folder: Path) -> None:
    """Raises `CheckpointError` unless the folder has weights as safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
    if pickles:
        raise CheckpointError(
            f"{folder} has only pickled weights ({', '.join(pickles)}), which can run code when opened. Convert "
            "them on an isolated machine: AutoModel...from_pretrained(folder).save_pretrained(folder)"
        )
    raise CheckpointError(f"{folder} has no *.safetensors file{other_formats(path.name for path in folder.iterdir())}")


def _refuse_mismatches(folder: Path, report: dict[str, Any], ignored_prefixes: tuple[str, ...]) -> None:
    found = {
        "missing": [key for key in report["missing_keys"] if not key.startswith(ignored_prefixes)],
        "unexpected": [key for key in report["unexpected_keys"] if not key.startswith(ignored_prefixes)],
        "of the wrong shape": [key[0] for key in report["mismatched_keys"]],
    }
    problems = [f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}...)" for what, keys in found.items() if keys]
    if problems:
        raise CheckpointError(
            f"the tensors of {folder} do not fit its config.json: {'; '.join(problems)}. Check that the "
            "checkpoint is complete, that it is a reranker with one output, and that engine.kind is right"
        )
