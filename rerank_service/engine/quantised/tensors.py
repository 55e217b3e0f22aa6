"""The tensors of a checkpoint under the names that the original checkpoint has, dequantised one by one.

Static scales of activations and of a key-value cache are dropped: the engines quantise activations by themselves, if
at all, and hold no such cache.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rerank_service.engine.quantised.scheme import Layout, Scheme
from rerank_service.engine.quantised.unpack import awq_weight, gptq_weight, scaled_weight, unpack_integers
from rerank_service.errors import CheckpointError

__all__ = ["QuantisedTensors", "is_quantised_type"]

_SCALES = ("weight_scale", "weight_scale_inv")
_PARTS = {
    Layout.SCALED: (*_SCALES, "weight_zero_point", "weight_g_idx", "weight_packed", "weight_shape"),
    Layout.GPTQ: ("qweight", "qzeros", "scales", "g_idx"),
    Layout.AWQ: ("qweight", "qzeros", "scales"),
}
_OF_ACTIVATIONS = (
    *("input_scale", "input_zero_point", "input_scale_ub", "activation_scale", "output_scale", "output_zero_point"),
    *("k_scale", "v_scale", "q_scale", "kv_scale"),
)
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def is_quantised_type(dtype: str) -> bool:
    """Whether numbers of this type, in safetensors' spelling, need a scale."""
    return dtype.startswith(("F8_", "F6_", "F4")) or dtype in ("I8", "U8")


class QuantisedTensors:
    """Reads tensors of a quantised checkpoint."""

    def __init__(self, folder: Path, scheme: Scheme) -> None:
        """Reads only headers. Raises `CheckpointError` if a tensor has 8-bit numbers without a scale."""
        self._folder, self.scheme = folder, scheme
        self._files: dict[str, Any] = {}
        for path in _weight_files(folder):
            file = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)
        self._parts = self._grouped()

    @property
    def names(self) -> Iterable[str]:
        """Names of all tensors, as in the original checkpoint."""
        return self._parts.keys()

    def is_quantised(self, name: str) -> bool:
        """Whether a tensor exists and is quantised."""
        return name in self._parts and self._parts[name].keys() != {"weight"}

    def read(self, name: str) -> torch.Tensor:
        """A tensor: dequantised in float32, or as stored if it is not quantised. Raises `CheckpointError`."""
        parts = self._parts[name]
        if not self.is_quantised(name):
            tensor: torch.Tensor = self._files[parts["weight"]].get_tensor(parts["weight"])
            return tensor
        found = {part: self._files[stored].get_tensor(stored) for part, stored in parts.items()}
        try:
            return self._dequantise(found)
        except (ValueError, KeyError, RuntimeError, IndexError) as error:
            problem = f"lacks {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(
                f"{name} of {self._folder} cannot be dequantised ({self.scheme.name}): it {problem}"
            ) from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor in the original checkpoint."""
        parts, bits = self._parts[name], self.scheme.bits or 8
        if "weight_shape" in parts:
            return tuple(self._files[parts["weight_shape"]].get_tensor(parts["weight_shape"]).tolist())
        if "qweight" in parts:
            rows, columns = self._header(parts["qweight"]).get_shape()
            per_word = 32 // bits
            return (columns, rows * per_word) if self.scheme.layout is Layout.GPTQ else (columns * per_word, rows)
        return tuple(self._header(parts["weight"]).get_shape())

    def _dequantise(self, found: dict[str, torch.Tensor]) -> torch.Tensor:
        scheme = self.scheme
        if scheme.layout is Layout.GPTQ:
            return gptq_weight(found["qweight"], found["qzeros"], found["scales"], found.get("g_idx"), scheme)
        if scheme.layout is Layout.AWQ:
            return awq_weight(found["qweight"], found["qzeros"], found["scales"], scheme)
        scales = next((found[name] for name in _SCALES if name in found), None)
        if scales is None:
            raise KeyError("weight_scale")
        zero_points, stored = found.get("weight_zero_point"), found.get("weight")
        if stored is None:
            rows, columns = map(int, found["weight_shape"])
            stored = _signed(found["weight_packed"], scheme)[:, :columns]
            if stored.size(0) != rows or stored.size(1) != columns:
                raise ValueError(f"has {stored.size(0)} rows and {stored.size(1)} columns, not {rows} and {columns}")
            if zero_points is not None and zero_points.dtype == torch.int32:  # packed along the rows
                zero_points = _signed(zero_points.T, scheme)[:, :rows].T
        return scaled_weight(stored, scales, zero_points, found.get("weight_g_idx"), scheme)

    def _grouped(self) -> dict[str, dict[str, str]]:
        """The stored names of each tensor's parts. A tensor that is not quantised has one part, `weight`."""
        quantised: dict[str, dict[str, str]] = {}
        for stored in self._files:
            stem, _, part = stored.rpartition(".")
            if part in _PARTS[self.scheme.layout]:
                quantised.setdefault(f"{stem}.weight", {})[part] = stored
        taken = {stored for parts in quantised.values() for stored in parts.values()}
        for stored in self._files.keys() - taken:
            if stored.rpartition(".")[2] in _OF_ACTIVATIONS:
                continue
            dtype = self._header(stored).get_dtype()
            if dtype in self.scheme.stored and stored in quantised:
                quantised[stored]["weight"] = stored
            elif is_quantised_type(dtype) or stored in quantised:
                raise CheckpointError(
                    f"{stored} of {self._folder} has numbers of type {dtype}, which do not fit its "
                    f"quantization_config ({self.scheme.name}): use the original weights"
                )
            else:
                quantised[stored] = {"weight": stored}
        return quantised

    def _header(self, stored: str) -> Any:
        return self._files[stored].get_slice(stored)


def _signed(packed: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """compressed-tensors adds half of the range to signed integers before it packs them."""
    if scheme.bits is None:
        raise ValueError("has packed weights, but its quantization_config declares none")
    half_range: int = 2 ** (scheme.bits - 1)
    return unpack_integers(packed, scheme.bits) - half_range


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load: `model.safetensors`, the files in the index, or else all."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        try:
            listed = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / _INDEX} is not a safetensors index: {error}") from None
        return [folder / Path(str(name)).name for name in sorted(listed)]
    return sorted(folder.glob("*.safetensors"))
