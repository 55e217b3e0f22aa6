"""The kernels of torch whose arguments differ between releases, called as the installed release requires.

If a release changes a kernel's signature, the meaning of its arguments may have changed too. On a GPU, a signature is
therefore refused until it is recorded here and in `tests/gpu_less/releases`, whose tests run every engine with it.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from rerank_service.config import Dtype
from rerank_service.engine.device import cuda
from rerank_service.engine.device.precision import Precision
from rerank_service.errors import CheckpointError

__all__ = ["attention_kernel", "multiply_float8", "refuse_unknown_kernels", "signature_of", "variable_length_kernel"]

_ATTENTION_SIGNATURES = {
    "(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1))": (
        "torch 2.11"
    ),
    "(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1), "
    "enable_gqa=False, seqused_k=None, block_table=None, num_splits=None)": "torch 2.12 to 2.14",
}
_FLOAT8_SIGNATURES = {
    "aten::_scaled_mm(Tensor self, Tensor mat2, Tensor scale_a, Tensor scale_b, Tensor? bias=None, "
    "Tensor? scale_result=None, ScalarType? out_dtype=None, bool use_fast_accum=False) -> Tensor": "torch 2.11 to 2.14",
}
"""Tested signatures, and the releases that have them."""

_ATTENTION_OPTIONS = {
    # Without this argument, torch 2.12 and later refuse a query with more heads than the keys. In torch 2.11,
    # FlashAttention 2 takes any multiple.
    "enable_gqa": True,
    # With one split, the kernel's sums do not depend on the other sequences. FlashAttention 2 in torch 2.11 never
    # splits packed sequences.
    "num_splits": 1,
}
"""Arguments of the attention kernel that not every release has."""

_PROBED_ROWS = (1, 17, 2048)
_PROBED_SIZE = 256


def attention_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which has the signature of some release's `varlen_attn`, with this service's options."""
    parameters = inspect.signature(function).parameters
    return partial(function, **{name: value for name, value in _ATTENTION_OPTIONS.items() if name in parameters})


variable_length_kernel = attention_kernel(varlen_attn)
"""Attention over packed sequences, in one kernel; for a GPU in half precision."""


def multiply_float8(
    rows: torch.Tensor,  # [M, K] e4m3
    weight: torch.Tensor,  # [N, K] e4m3
    row_scales: torch.Tensor,  # [M, 1] float32
    column_scales: torch.Tensor,  # [1, N] float32
    bias: torch.Tensor | None = None,  # [N] bfloat16
) -> torch.Tensor:
    """`rows @ weight.T` times both scales, plus the bias, `[M, N]` in bfloat16, the only result type with a scale for
    each row. The kernel reads the transposed weights without a copy, and adds the bias before it rounds."""
    product: torch.Tensor = torch._scaled_mm(
        rows, weight.T, row_scales, column_scales, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return product


def refuse_unknown_kernels(device: torch.device, precision: Precision, *, is_packed: bool) -> None:
    """Raises `CheckpointError` if the installed torch or the GPU lacks a kernel in the form in which it was tested.

    Does nothing for a CPU. `is_packed` says whether the model uses `variable_length_kernel`.
    """
    if device.type != "cuda":
        return
    if is_packed and precision.states in (torch.bfloat16, torch.float16):
        _refuse_unless_recorded("varlen_attn", signature_of(varlen_attn), _ATTENTION_SIGNATURES)
    if precision.quantised is Dtype.FLOAT8:
        schema = str(torch.ops.aten._scaled_mm.default._schema)
        _refuse_unless_recorded("_scaled_mm", schema, _FLOAT8_SIGNATURES)
        _probe_float8(device)


def signature_of(function: Callable[..., Any]) -> str:
    """Names, kinds and defaults of a function's parameters, without annotations."""
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _refuse_unless_recorded(name: str, signature: str, recorded: dict[str, str]) -> None:
    if signature not in recorded:
        raise CheckpointError(
            f"torch {torch.__version__} has a signature of {name} that was not tested: {signature}. On a GPU, install "
            f"{' or '.join(recorded.values())}"
        )


def _probe_float8(device: torch.device) -> None:
    """Multiplies known numbers. A GPU may have 8-bit floats but no kernel with a scale for each row: compute capability
    12.0, for example (pytorch/pytorch#192707)."""
    try:
        for num_rows in _PROBED_ROWS:
            rows, weight = (
                torch.ones(size, _PROBED_SIZE, device=device).to(torch.float8_e4m3fn)
                for size in (num_rows, _PROBED_SIZE)
            )
            row_scales = 2.0 ** (torch.arange(num_rows, device=device) % 7)[:, None].float()
            column_scales = 2.0 ** -(torch.arange(_PROBED_SIZE, device=device) % 5)[None].float()
            expected = _PROBED_SIZE * row_scales * column_scales  # powers of two, so that nothing is rounded
            bias = expected[0].to(torch.bfloat16)
            for added, sums in ((None, expected), (bias, expected + bias)):
                product = multiply_float8(rows, weight, row_scales, column_scales, added)
                if not torch.equal(product, sums.to(torch.bfloat16)):
                    raise RuntimeError("the product of known numbers is wrong")
    except (RuntimeError, NotImplementedError) as error:
        if cuda.is_out_of_memory(error) or cuda.is_final(error):
            raise
        raise CheckpointError(
            f"{cuda.name(device)} cannot multiply 8-bit floats with a scale for each row "
            f"({str(error).splitlines()[0][:200]}); set dtype: bfloat16"
        ) from error
