"""Records weights that the formats' own packages quantised and dequantised, so that tests need no such package.

    python tests/unit/engine/quantised/record.py PACKAGES PACKING

`PACKAGES` is a folder with compressed-tensors and loguru (`pip install --no-deps --target`). `PACKING` is
gptqmodel/quantization/awq/utils/packing_utils.py from GPTQModel's source distribution, which imports only torch. The
expected weights are computed in float32 (compressed-tensors) and from float32 scales (AWQ).
"""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RECORDED = Path(__file__).with_name("recorded.safetensors")
SHAPE, GROUP = (32, 64), 32
SCHEMES: dict[str, dict[str, Any]] = {
    "float8 by tensor": {"num_bits": 8, "type": "float", "strategy": "tensor"},
    "float8 by channel": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "float8 by block": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]},
    "int8": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "int8 with zero points": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False},
    "packed int4": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP},
    "packed int4 with zero points": {
        "num_bits": 4,
        "type": "int",
        "strategy": "group",
        "group_size": GROUP,
        "symmetric": False,
    },
    "packed int4 by channel": {"num_bits": 4, "type": "int", "strategy": "channel"},
}
FORMATS = {"float8": "float-quantized", "int8": "int-quantized", "packed": "pack-quantized"}


def compressed(name: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, Any]]:
    """Stored tensors, the weight that they stand for, and the quantization_config, by compressed-tensors."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    arguments = QuantizationArgs(**SCHEMES[name])
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    parts = weight
    if arguments.strategy == "group":
        parts = weight.unflatten(1, (-1, GROUP))
    elif arguments.strategy == "block":
        high, wide = arguments.block_structure
        parts = weight.unflatten(0, (-1, high)).unflatten(2, (-1, wide)).transpose(1, 2).flatten(2)
    dims = tuple(range(parts.dim())) if arguments.strategy == "tensor" else (-1,)
    keep = arguments.strategy == "channel"
    scale, zero_point = calculate_qparams(parts.amin(dims, keepdim=keep), parts.amax(dims, keepdim=keep), arguments)
    form = FORMATS[name.split()[0]]
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress({"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point}, scheme)
    expected = compressor.decompress(stored, scheme)["weight"]
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=form, quantization_status="compressed")
    return stored, expected.float(), json.loads(config.model_dump_json())


def awq(packing: Path, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, Any]]:
    """The same by GPTQModel's code for AWQ."""
    spec = importlib.util.spec_from_file_location("packing_utils", packing)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    columns, groups = weight.size(1), weight.size(1) // GROUP
    low, high = weight.unflatten(1, (groups, -1)).aminmax(dim=2)
    scales = ((high - low) / 15).half().float()  # [N, G]
    zeros = (-low / scales).round().clamp(0, 15)
    of_column = torch.arange(columns) // GROUP
    integers = (weight / scales[:, of_column] + zeros[:, of_column]).round().clamp(0, 15)
    qweight, qzeros = module.pack_awq(integers.T.contiguous().int(), zeros.T.contiguous().int(), 4)
    stored = {"qweight": qweight, "qzeros": qzeros, "scales": scales.T.contiguous().half()}
    expected = module.dequantize_gemm(qweight, qzeros, scales.T.contiguous(), 4, GROUP).T.contiguous()
    return stored, expected, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}


def main(packages: str, packing: str) -> None:
    sys.path.append(packages)
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(22)) * 0.05
    tensors, configs = {}, {}
    made = {name: compressed(name, weight) for name in SCHEMES} | {"awq int4": awq(Path(packing), weight)}
    for name, (stored, expected, config) in made.items():
        configs[name] = config
        tensors |= {f"{name}/{part}": tensor.contiguous() for part, tensor in stored.items()}
        tensors[f"{name}/expected"] = expected.contiguous()
    made_by = f"compressed-tensors {importlib.metadata.version('compressed-tensors')}, {Path(packing).parents[4].name}"
    save_file(tensors, RECORDED, metadata={"made_by": made_by, "configs": json.dumps(configs)})


if __name__ == "__main__":
    main(*sys.argv[1:])
