"""Counts the launches and the bytes of a compiled layer on an H100, without a GPU.

    python -m benchmarks.launches [--json benchmarks/results/launches.json]

The engines' own code prepares and compiles a model with the published shapes, and Inductor generates the kernels for
one batch of 16,384 tokens (see `benchmarks/kernels.py`). The bytes are computed from the generated kernels: nothing is
run, so this is no measurement. Bytes of matrix products and of attention are not counted.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from benchmarks.kernels import FakeGpu, Kernel, KernelLister
from benchmarks.provenance import provenance, save_record
from rerank_service.config import Dtype
from rerank_service.engine.device.compile import CompiledLayers
from rerank_service.engine.device.forward import PACKED_ATTENTION, hidden_states
from rerank_service.engine.device.pack import PackedSequences
from rerank_service.engine.device.precision import Precision
from rerank_service.engine.linear.prepare import prepare_linears

__all__ = ["MODELS", "LayerCost", "layer_cost"]

NUM_TOKENS = 16_384
_NUM_SEQUENCES = 32
_PRODUCTS = ("mm", "addmm", "_scaled_mm")
_ATTENTION = "torch_attn._varlen_attn.default"
_ATTENTION_LAUNCHES = 2  # the kernel, and the zeros of a random state that torch never uses

MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "1b": lambda: (
        LlamaModel,
        LlamaConfig(
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=2,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
        ),
    ),
    "4b": lambda: (
        MistralModel,
        MistralConfig(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=2,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
        ),
    ),
    "qwen3-0.6b": lambda: (
        Qwen3Model,
        Qwen3Config(
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=2,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
        ),
    ),
    "bert-base": lambda: (BertModel, BertConfig(num_hidden_layers=2)),
    "xlm-roberta-large": lambda: (
        XLMRobertaModel,
        XLMRobertaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=16),
    ),
}
"""Two layers of each model in its published shape."""


@dataclass(frozen=True)
class LayerCost:
    """What one layer launches, and the memory that its generated kernels move."""

    model: str
    dtype: str
    launches: int
    products: int
    gigabytes: float


def layer_cost(model: str, dtype: Dtype) -> LayerCost:
    """Compiles a model and counts the kernels of one of its layers. All layers must share one compiled function."""
    kernels, *others = _graphs(model, dtype)  # and the norm after the last layer of a decoder
    assert sum(len(other) for other in others) <= 1, "layers were compiled several times"
    launches = sum(_ATTENTION_LAUNCHES if kernel.name == _ATTENTION else 1 for kernel in kernels)
    products = sum(kernel.name in _PRODUCTS for kernel in kernels)
    known = {"fused", _ATTENTION, *_PRODUCTS}
    assert not (unknown := {kernel.name for kernel in kernels} - known), f"operators that are not fused: {unknown}"
    return LayerCost(model, dtype.value, launches, products, sum(kernel.num_bytes for kernel in kernels) / 1e9)


def _graphs(name: str, dtype: Dtype) -> list[list[Kernel]]:
    gpu = FakeGpu()
    model_class, config = MODELS[name]()
    config._attn_implementation = PACKED_ATTENTION
    with torch.device("meta"):
        model: Any = model_class(config).to(torch.bfloat16).eval()
    gpu.move(model)
    lister = KernelLister(NUM_TOKENS)
    torch._dynamo.reset()
    with gpu.active(), torch.inference_mode():
        prepare_linears(model, Precision(torch.bfloat16, dtype if dtype is Dtype.FLOAT8 else None))
        CompiledLayers(model, lister).attach()
        hidden_states(model, _batch(gpu))
    torch._dynamo.reset()
    return lister.graphs


def _batch(gpu: FakeGpu) -> PackedSequences:
    tokens = gpu.empty(1, NUM_TOKENS, dtype=torch.int64)
    length = NUM_TOKENS // _NUM_SEQUENCES
    return PackedSequences(
        token_ids=tokens,
        position_ids=tokens,
        lengths=gpu.empty(_NUM_SEQUENCES, dtype=torch.int64),
        cu_seqlens=gpu.empty(_NUM_SEQUENCES + 1, dtype=torch.int32),
        bounds=tuple(range(0, NUM_TOKENS + 1, length)),
        max_length=length,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    options = parser.parse_args(arguments)
    print(f"one layer, {NUM_TOKENS:,} tokens, torch {torch.__version__}")
    print(f"{'model':<20}{'dtype':<10}{'launches':>9}{'products':>9}{'GB':>8}")
    costs = []
    for model in MODELS:
        for dtype in (Dtype.BFLOAT16, Dtype.FLOAT8):
            costs.append(cost := layer_cost(model, dtype))
            print(f"{cost.model:<20}{cost.dtype:<10}{cost.launches:>9}{cost.products:>9}{cost.gigabytes:>8.3f}")
    if options.json:
        report = {
            **provenance(("torch", "transformers")),
            "num_tokens": NUM_TOKENS,
            "layers": [asdict(cost) for cost in costs],
        }
        save_record(options.json, report)


if __name__ == "__main__":
    main()
