"""Reads `quantization_config` of config.json, and refuses every format that the engines cannot read exactly.

Sources: compressed-tensors 0.20 (`QuantizationConfig`), transformers 5.23 (`FineGrainedFP8Config`, `FbgemmFp8Config`),
NVIDIA ModelOpt's export, GPTQModel 7.7 (`QuantizeConfig`, also for AWQ). Must not import torch.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

__all__ = ["READABLE", "Layout", "Scheme", "read_scheme"]

READABLE = (
    "compressed-tensors with 8-bit floats, 8-bit integers or packed 4-bit integers; fp8 of transformers, FBGEMM and "
    "ModelOpt; GPTQ with 4 or 8 bits; AWQ (gemm) with 4 bits"
)
"""List of readable formats, as it appears in messages."""

_COMPRESSED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "dense")
_STRATEGIES = ("tensor", "channel", "group", "block")
_FLOAT8, _INT8 = "F8_E4M3", "I8"


class Layout(StrEnum):
    """How tensors are stored."""

    SCALED = "scaled"
    """`weight` in 8 bits or `weight_packed`, with `weight_scale` or `weight_scale_inv`, all `[N, ...]`."""
    GPTQ = "gptq"
    """`qweight [K / p, N]`, `qzeros [G, N / p]`, `scales [G, N]`, `g_idx [K]`, with p numbers in an int32."""
    AWQ = "awq"
    """`qweight [K, N / 8]`, `qzeros [G, N / 8]`, `scales [G, N]`, in AWQ's order of columns."""


class Scheme(NamedTuple):
    """A readable format."""

    name: str
    """The format for people, for example `AWQ int4`."""
    layout: Layout
    stored: frozenset[str] = frozenset()
    """Types of `weight` in safetensors' spelling, for `SCALED`."""
    bits: int | None = None
    """Width of packed integers; null: nothing is packed."""
    group_size: int | None = None
    """Input features that share a scale; null: not stated, or the scales' shape decides."""
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale, if scales form a grid."""
    zero_offset: int = 0
    """Number to add to stored zero points: 1 in GPTQ's first format."""


def read_scheme(raw: Mapping[str, Any]) -> Scheme | None:
    """The format of a checkpoint's weights; null if config.json declares none. Raises `ValueError` with the reason why
    the format cannot be read."""
    config = raw.get("quantization_config") or raw.get("compression_config")
    if not config:
        return None
    try:
        method = str(config.get("quant_method") or ("compressed-tensors" if "config_groups" in config else "unknown"))
        read = _METHODS.get(method.lower())
        if read is None:
            raise _unreadable(method)
        return read(config)
    except (AttributeError, IndexError, KeyError, TypeError):
        raise _unreadable("its quantization_config is malformed") from None


def _unreadable(what: str) -> ValueError:
    return ValueError(
        f"is already quantised ({what}), which no engine reads: use the original weights, or weights in one of these "
        f"formats: {READABLE}"
    )


def _compressed_tensors(config: Mapping[str, Any]) -> Scheme:
    _refuse_more_than_weights(config)
    groups = _groups(config)
    for weights, form in groups:
        _check_weights(weights, form)
    forms = sorted({form for _, form in groups} - {"dense"})
    packed = [weights["num_bits"] for weights, form in groups if form == "pack-quantized"]
    return Scheme(
        f"compressed-tensors {' and '.join(forms) or 'dense'}",
        Layout.SCALED,
        frozenset(_FLOAT8 if weights["type"] == "float" else _INT8 for weights, _ in groups),
        bits=_one_of(packed, "several widths of packed integers"),
        group_size=_one_of((weights["group_size"] for weights, _ in groups if weights.get("group_size")), None),
        block=_one_of(
            (tuple(weights["block_structure"]) for weights, _ in groups if weights.get("block_structure")),
            "several sizes of blocks",
        ),
    )


def _refuse_more_than_weights(config: Mapping[str, Any]) -> None:
    """Refuses configurations whose weights are not all there is to restore."""
    if (config.get("transform_config") or {}).get("config_groups"):
        raise _unreadable("compressed-tensors with rotations, transform_config")
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise _unreadable(f"compressed-tensors {sparsity}")


def _groups(config: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """The arguments of each group that quantises weights, with the group's format."""
    groups = config.get("config_groups") or {}
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise _unreadable("compressed-tensors with presets instead of config_groups")
    default = str(config.get("format"))
    return [(one["weights"], str(one.get("format") or default)) for one in groups.values() if one.get("weights")]


def _check_weights(weights: Mapping[str, Any], form: str) -> None:
    bits, kind, strategy = weights.get("num_bits"), weights.get("type", "int"), str(weights.get("strategy"))
    if form not in _COMPRESSED_FORMATS:
        raise _unreadable(f"compressed-tensors {form}")
    if kind not in ("int", "float") or bits not in ((4, 8) if form == "pack-quantized" and kind == "int" else (8,)):
        raise _unreadable(f"compressed-tensors {form}, {kind} with {bits} bits")
    if strategy not in _STRATEGIES:
        raise _unreadable(f"compressed-tensors {form}, strategy {strategy}")


def _one_of(values: Iterable[Any], problem: str | None) -> Any:
    """The only value; null if there is none. Several values are refused, or count as none if `problem` is null."""
    distinct = set(values)
    if len(distinct) > 1 and problem is not None:
        raise _unreadable(f"compressed-tensors with {problem}")
    return distinct.pop() if len(distinct) == 1 else None


def _fine_grained_fp8(config: Mapping[str, Any]) -> Scheme:
    block = config.get("weight_block_size")
    sized = (int(block[0]), int(block[1])) if block else None
    return Scheme("fp8", Layout.SCALED, frozenset({_FLOAT8}), block=sized)


def _fbgemm_fp8(_: Mapping[str, Any]) -> Scheme:
    return Scheme("FBGEMM fp8", Layout.SCALED, frozenset({_FLOAT8}))


def _modelopt(config: Mapping[str, Any]) -> Scheme:
    algorithm = str((config.get("quantization") or config).get("quant_algo"))
    if algorithm != "FP8":
        raise _unreadable(f"ModelOpt {algorithm}")
    return Scheme("ModelOpt FP8", Layout.SCALED, frozenset({_FLOAT8}))


def _gptq(config: Mapping[str, Any]) -> Scheme:
    bits, form = config.get("bits"), str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
    if bits not in (4, 8) or form not in ("gptq", "gptq_v2"):
        raise _unreadable(f"GPTQ {form} with {bits} bits")
    if config.get("dynamic"):
        raise _unreadable("GPTQ with other settings for single layers, `dynamic`")
    return Scheme(
        f"GPTQ int{bits}",
        Layout.GPTQ,
        bits=bits,
        group_size=_group_size(config),
        zero_offset=1 if form == "gptq" else 0,
    )


def _awq(config: Mapping[str, Any]) -> Scheme:
    bits, form = config.get("bits", config.get("w_bit")), str(config.get("version") or config.get("format") or "gemm")
    if bits != 4 or form.lower() != "gemm":
        raise _unreadable(f"AWQ {form.lower()} with {bits} bits")
    return Scheme("AWQ int4", Layout.AWQ, bits=4, group_size=_group_size(config))


def _group_size(config: Mapping[str, Any]) -> int | None:
    size = int(config.get("group_size", config.get("q_group_size", -1)))
    return size if size > 0 else None


_METHODS: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "compressed-tensors": _compressed_tensors,
    "fp8": _fine_grained_fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "modelopt": _modelopt,
    "gptq": _gptq,
    "awq": _awq,
}
