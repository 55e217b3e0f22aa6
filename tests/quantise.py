"""Quantises small checkpoints into published formats, written from the formats' definitions.

For each format, `quantise` also writes a plain checkpoint with the numbers that the quantised tensors stand for. The
packing follows the loops of the packages that write the format (compressed-tensors, GPTQModel); no code is shared with
`rerank_service.engine.quantised`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

__all__ = ["FORMATS", "quantise", "quantise_weight"]

Parts = dict[str, torch.Tensor]
Quantiser = Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]
GROUP, BLOCK = 32, (48, 40)
"""Input features that share a scale, and the size of a block, which does not divide the weights' shapes."""
_NOT_QUANTISED = ("embed", "score", "classifier", "pooler", "lm_head", "bias")


def _float8(by: str, scale_name: str = "weight_scale", dtype: torch.dtype = torch.float32, **extra: float) -> Quantiser:
    def quantiser(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        rows, columns = weight.shape
        stored, expected = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
        high, wide = {"tensor": (rows, columns), "channel": (1, columns), "block": BLOCK}[by]
        scales = torch.empty(-(-rows // high), -(-columns // wide), dtype=dtype)
        for row in range(0, rows, high):
            for column in range(0, columns, wide):
                part = (slice(row, row + high), slice(column, column + wide))
                scale = (weight[part].abs().max() / 448).to(dtype)
                scales[row // high, column // wide] = scale
                stored[part] = (weight[part] / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
                expected[part] = stored[part].float() * scale.float()
        if by == "tensor":
            scales = scales.reshape(())
        parts = {"weight": stored, scale_name: scales}
        return parts | {name: torch.tensor(value) for name, value in extra.items()}, expected

    return quantiser


def _int8(*, symmetric: bool) -> Quantiser:
    def quantiser(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
        if symmetric:
            scales, zeros = weight.abs().amax(1, keepdim=True) / 127, torch.zeros_like(low)
        else:
            scales = (high - low) / 255
            zeros = (-128 - low / scales).round()
        scales = scales.bfloat16()
        stored = (weight / scales.float() + zeros).round().clamp(-128, 127).to(torch.int8)
        parts = {"weight": stored, "weight_scale": scales}
        if not symmetric:
            parts["weight_zero_point"] = zeros.to(torch.int8)
        return parts, (stored.float() - zeros) * scales.float()

    return quantiser


def _integers(
    weight: torch.Tensor, bits: int, group_of: torch.Tensor, *, symmetric: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unsigned integers `[N, K]`, their zero points and scales `[N, G]`, and the weight that they stand for."""
    most, num_groups = 2**bits - 1, int(group_of.max()) + 1
    integers, expected = torch.empty_like(weight, dtype=torch.int64), torch.empty_like(weight)
    zeros = torch.empty(weight.size(0), num_groups, dtype=torch.int64)
    scales = torch.empty(weight.size(0), num_groups, dtype=dtype)
    for group in range(num_groups):
        columns = weight[:, group_of == group]
        low, high = columns.amin(1).clamp(max=-1e-6), columns.amax(1).clamp(min=1e-6)
        scale = (2 * columns.abs().amax(1) if symmetric else high - low).div(most).to(dtype).float()
        zero = torch.full_like(scale, (most + 1) // 2) if symmetric else (-low / scale).round().clamp(1, most)
        values = (columns / scale[:, None] + zero[:, None]).round().clamp(0, most)
        integers[:, group_of == group] = values.long()
        zeros[:, group], scales[:, group] = zero.long(), scale.to(dtype)
        expected[:, group_of == group] = (values - zero[:, None]) * scale[:, None]
    return integers, zeros, scales, expected


def _pack(values: torch.Tensor, bits: int, order: list[int] | None = None) -> torch.Tensor:
    """Packs `[R, C]` along columns into int32; `order` names the column at each place of eight."""
    per_word = 32 // bits
    padding = -values.size(1) % per_word
    words = torch.nn.functional.pad(values, (0, padding)).reshape(values.size(0), -1, per_word)
    packed = torch.zeros(words.shape[:2], dtype=torch.int64)
    for place in range(per_word):
        packed |= words[..., order[place] if order else place] << (bits * place)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def _in_order(columns: int, size: int = GROUP) -> torch.Tensor:
    return torch.tensor([column // size for column in range(columns)])


def _shuffled(columns: int) -> torch.Tensor:
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
    return _in_order(columns)[order]


def _packed_compressed(bits: int, *, symmetric: bool, reordered: bool = False, by: str = "group") -> Quantiser:
    def quantiser(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        group_of = (
            _shuffled(weight.size(1)) if reordered else _in_order(weight.size(1), GROUP if by == "group" else 10**6)
        )
        integers, zeros, scales, expected = _integers(weight, bits, group_of, symmetric=symmetric, dtype=torch.bfloat16)
        parts = {
            "weight_packed": _pack(integers, bits),
            "weight_scale": scales,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            parts["weight_zero_point"] = _pack(zeros.T, bits).T.contiguous()
        if reordered:
            parts["weight_g_idx"] = group_of.to(torch.int32)
        return parts, expected

    return quantiser


def _gptq(bits: int, *, symmetric: bool = True, reordered: bool = False, stored_minus: int = 1) -> Quantiser:
    def quantiser(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        group_of = _shuffled(weight.size(1)) if reordered else _in_order(weight.size(1))
        integers, zeros, scales, expected = _integers(weight, bits, group_of, symmetric=symmetric, dtype=torch.float16)
        parts = {
            "qweight": _pack(integers, bits).T.contiguous(),
            "qzeros": _pack(zeros.T - stored_minus, bits),
            "scales": scales.T.contiguous(),
            "g_idx": group_of.to(torch.int32),
        }
        return parts, expected

    return quantiser


def _awq(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    integers, zeros, scales, expected = _integers(
        weight, 4, _in_order(weight.size(1)), symmetric=False, dtype=torch.float16
    )
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    parts = {
        "qweight": _pack(integers.T, 4, order),
        "qzeros": _pack(zeros.T, 4, order),
        "scales": scales.T.contiguous(),
    }
    return parts, expected


def _compressed(form: str, bits: int, kind: str, strategy: str, **weights: Any) -> dict[str, Any]:
    arguments = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True} | weights
    group = {"targets": ["Linear"], "weights": arguments, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
    }


_GROUPS = {"group_size": GROUP}
FORMATS: dict[str, tuple[dict[str, Any], Quantiser]] = {
    "float8 by tensor": (_compressed("float-quantized", 8, "float", "tensor"), _float8("tensor")),
    "float8 by channel": (
        _compressed("float-quantized", 8, "float", "channel"),
        _float8("channel", dtype=torch.bfloat16),
    ),
    "float8 with static activations": (
        _compressed("float-quantized", 8, "float", "tensor"),
        _float8("tensor", input_scale=0.25),
    ),
    "float8 by block": (
        _compressed("float-quantized", 8, "float", "block", block_structure=list(BLOCK)),
        _float8("block"),
    ),
    "int8": (_compressed("int-quantized", 8, "int", "channel"), _int8(symmetric=True)),
    "int8 with zero points": (
        _compressed("int-quantized", 8, "int", "channel", symmetric=False),
        _int8(symmetric=False),
    ),
    "packed int4": (_compressed("pack-quantized", 4, "int", "group", **_GROUPS), _packed_compressed(4, symmetric=True)),
    "packed int4 with zero points": (
        _compressed("pack-quantized", 4, "int", "group", symmetric=False, **_GROUPS),
        _packed_compressed(4, symmetric=False),
    ),
    "packed int4 reordered": (
        _compressed("pack-quantized", 4, "int", "group", actorder="group", **_GROUPS),
        _packed_compressed(4, symmetric=True, reordered=True),
    ),
    "packed int4 by channel": (
        _compressed("pack-quantized", 4, "int", "channel"),
        _packed_compressed(4, symmetric=True, by="channel"),
    ),
    "packed int8": (_compressed("pack-quantized", 8, "int", "group", **_GROUPS), _packed_compressed(8, symmetric=True)),
    "fp8 by block": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)},
        _float8("block", "weight_scale_inv"),
    ),
    "fp8 by tensor": (
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
        _float8("tensor", "weight_scale_inv", activation_scale=0.25),
    ),
    "fbgemm fp8": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, _float8("channel")),
    "modelopt fp8": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8}},
        _float8("tensor", input_scale=0.5),
    ),
    "gptq int4": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True}, _gptq(4)),
    "gptq int8": ({"quant_method": "gptq", "bits": 8, "group_size": GROUP, "sym": True}, _gptq(8)),
    "gptq int4 reordered": (
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
        _gptq(4, symmetric=False, reordered=True),
    ),
    "gptq_v2 int4": (
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
        _gptq(4, symmetric=False, stored_minus=0),
    ),
    "awq int4": (
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
        _awq,
    ),
}
"""Every format: its quantization_config, and a function that quantises a weight."""


def quantise_weight(weight: torch.Tensor, form: str) -> tuple[Parts, torch.Tensor]:
    """The stored parts of a weight `[N, K]`, and the float32 weight that they stand for."""
    return FORMATS[form][1](weight)


def quantise(source: Path, target: Path, form: str, **settings: Any) -> tuple[Path, Path]:
    """Writes two copies of the checkpoint in `source`: quantised, and with the same numbers in float32. `settings`
    are added to quantization_config."""
    config, quantiser = FORMATS[form]
    stored: Parts = {}
    plain: Parts = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if tensor.dim() != 2 or any(part in name for part in _NOT_QUANTISED):
            stored[name] = plain[name] = tensor
            continue
        parts, plain[name] = quantiser(tensor.float())
        stem = name.removesuffix(".weight")
        stored |= {f"{stem}.{part}": value.contiguous() for part, value in parts.items()}
    raw = json.loads((source / "config.json").read_text())
    for folder, tensors, more in (
        (target / "quantised", stored, {"quantization_config": config | settings}),
        (target / "plain", plain, {}),
    ):
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(raw | more))
    return target / "quantised", target / "plain"
