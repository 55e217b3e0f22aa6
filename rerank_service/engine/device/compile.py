"""Compiles a model's layers with torch.compile while the model loads, so that no request waits for a compiler.

The compiler fuses the operations between a layer's matrix products: norms, rotation, activation, residuals. All layers
share one compiled function, which serves any number of tokens. If no compiler can run, or if compiled layers compute
other states, the layers run as before, and a warning tells why.
"""

import logging
import os
import shutil
import sysconfig
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from rerank_service.config import EngineConfig
from rerank_service.engine.device import cuda
from rerank_service.engine.device.kernel_cache import use_kernel_cache
from rerank_service.engine.device.pack import PackedSequences
from rerank_service.engine.device.precision import Precision
from rerank_service.engine.device.residuals import FinalNorm

__all__ = [
    "Backend",
    "CompiledLayers",
    "batch_like",
    "compile_layers",
    "compiler_problem",
    "inductor",
    "prepare_compiler",
    "wants_compile",
]

logger = logging.getLogger(__name__)

Backend: TypeAlias = Callable[[torch.fx.GraphModule, list[torch.Tensor]], Callable[..., Any]]
"""Turns a traced graph into a function."""

_SHARED_LIMIT = 64
"""Number of compiled variants that torch keeps. Its default, 8, is for one model; the architectures of a pool share it,
and a model that is loaded again uses the variants of before."""
_TRITON_CAPABILITY = (7, 0)
_COMPILED_LENGTHS = ((24, 40, 9), (200,), (30,) * 20)
"""Lengths of the sequences in the batches that trigger the compilation. The first batch compiles; the others show that
no other number of tokens or sequences compiles again. In the first batch, the numbers of tokens and of bounds differ
from each other and from the longest length: torch treats sizes that are equal as one size."""
_TOLERANCE = 0.25
"""Largest accepted difference between a token's states with and without compilation, as a share of the state's largest
component, averaged over a batch. Rounding to bfloat16 causes up to 4% in single tokens (see `graphs`), and 8-bit floats
about seven times as much (`tools.verify.verdict`); states of another batch differ by 130% (median)."""


def wants_compile(options: EngineConfig, precision: Precision, *, is_packed: bool) -> bool:
    """Whether a model's layers are compiled on a GPU. By default, they are in half precision and in float8, if the
    model runs packed: rectangular batches and float32 have not been tried."""
    if options.compile is None:
        return is_packed and precision.states in (torch.bfloat16, torch.float16)
    return options.compile


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile cannot work on this machine; null if no reason is known."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if torch.cuda.get_device_capability(device) < _TRITON_CAPABILITY:
        return "Triton needs a GPU of compute capability 7.0 or newer"
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["clang", "gcc"]  # the order in which Triton searches
    if not any(map(shutil.which, compilers)):
        return f"Triton needs a C compiler, and {' and '.join(compilers)} cannot be found: install gcc and libc6-dev"
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        return f"Triton needs Python's headers, and {headers} has no Python.h: install python3-dev"
    return None


def inductor(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    """Compiles a graph with torch's own compiler."""
    from torch._inductor.compile_fx import compile_fx  # takes seconds, and only compiled layers need it

    compiled: Any = compile_fx(graph, inputs)
    return cast(Callable[..., Any], compiled)


class CompiledLayers:
    """The compiled layers of a model: the backend that torch calls for every new variant of a layer."""

    def __init__(self, model: torch.nn.Module, backend: Backend) -> None:
        self.num_graphs = 0
        """Number of variants compiled so far; one for each class of layer if it serves all batches, and none if an
        earlier model has compiled the same layers."""
        # torch keeps this object as long as its compiled code, even after the model has been unloaded.
        self._model = weakref.ref(model)
        self._backend = backend
        self._is_sealed = False

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        """Compiles a variant, or, once sealed, lets it run as it was traced."""
        if not self._is_sealed:
            compiled = self._backend(graph, inputs)  # may raise, and torch then traces the layer again
            self.num_graphs += 1
            return compiled
        self.num_graphs += 1
        logger.warning(
            "a batch needs layers that were not compiled at start, and runs slower num_graphs=%d", self.num_graphs
        )
        return graph.forward

    def __eq__(self, other: object) -> bool:
        """Whether torch may use variants that `other` has compiled. Weights are arguments of a variant, so models of
        the same architecture share it."""
        return isinstance(other, CompiledLayers) and self._backend is other._backend

    def __hash__(self) -> int:
        return hash(self._backend)

    def attach(self) -> None:
        """Makes the layers compile at their next call."""
        torch._dynamo.config.recompile_limit = max(_SHARED_LIMIT, torch._dynamo.config.recompile_limit)
        # Numbers such as a norm's epsilon are the same in all layers. As arguments, they would be tensors on the host
        # that every kernel reads before its launch.
        torch._dynamo.config.specialize_float = True
        for layer in _layers(self._loaded_model()):
            layer.compile(backend=self, dynamic=True)

    def detach(self) -> None:
        """Makes the layers run without compilation."""
        for module in self._loaded_model().modules():
            module._compiled_call_impl = None

    def _loaded_model(self) -> torch.nn.Module:
        model = self._model()
        if model is None:
            raise RuntimeError("the model of these layers has been unloaded")
        return model

    def seal(self) -> None:
        """Ends compilation: a compiler would stop requests for seconds."""
        self._is_sealed = True


@torch.inference_mode()
def compile_layers(
    model: torch.nn.Module,
    run: Callable[[PackedSequences], torch.Tensor],
    example: PackedSequences | None,
    longest: int,
    backend: Backend = inductor,
) -> CompiledLayers | None:
    """Compiles the layers of `model`, and compares the states `[T, H]` that `run` returns with and without compilation.

    `example` is any batch of this model, and `longest` the length of its longest sequence. Without `example`, the next
    batch compiles the layers. Returns null if the layers cannot be compiled. Raises errors that lose the device.
    """
    if example is None:
        layers = CompiledLayers(model, backend)
        layers.attach()
        return layers
    batches = [batch_like(example, [min(length, longest) for length in lengths]) for lengths in _COMPILED_LENGTHS]
    expected = [run(batch).clone() for batch in batches]
    layers = CompiledLayers(model, backend)
    layers.attach()
    try:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # otherwise, torch would compile nothing
            for batch, states in zip(batches, expected, strict=True):
                error = _mean_row_error(run(batch), states)
                if not error <= _TOLERANCE:  # also refuses NaN
                    raise RuntimeError(f"compiled layers change the states by {error:.3g} times their largest part")
    except Exception as problem:  # compilers raise errors of many classes
        if cuda.is_final(problem):
            raise
        layers.detach()
        cause = getattr(problem, "inner_exception", problem)  # torch wraps the errors of a compiler
        reason = str(cause).strip().splitlines() or [""]
        logger.warning("layers are not compiled: %s: %s", type(cause).__name__, reason[0][:300])
        return None
    if layers.num_graphs > len({type(layer) for layer in _layers(model)}):
        logger.warning(
            "layers were compiled for some batches each, not once for all batches num_graphs=%d", layers.num_graphs
        )
    return layers


def prepare_compiler(device: torch.device, num_threads: int) -> Path:
    """Sets the compiler's folder, and its number of processes, which is otherwise the number of the machine's CPUs."""
    from torch._inductor import config  # takes a second, and only compiled layers need it

    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        config.compile_threads = num_threads
    return use_kernel_cache(torch.cuda.get_device_name(device))


def batch_like(example: PackedSequences, lengths: Sequence[int]) -> PackedSequences:
    """A batch with these lengths, made of the tokens of `example` in turn. May wait for the device."""
    device, num_tokens = example.token_ids.device, sum(lengths)
    bounds = (0, *np.cumsum(lengths).tolist())
    starts = np.repeat(np.asarray(bounds[:-1], dtype=np.int64), lengths)
    offsets = torch.from_numpy(np.arange(num_tokens, dtype=np.int64) - starts).to(device)

    def repeated(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.repeat(1, -(-num_tokens // tokens.size(1)))[:, :num_tokens]

    longest = max(lengths)
    return PackedSequences(
        token_ids=repeated(example.token_ids),
        position_ids=offsets[None] + example.position_ids[:, :1],  # the first position of this model
        lengths=torch.from_numpy(np.asarray(lengths, dtype=np.int64)).to(device),
        cu_seqlens=torch.from_numpy(np.asarray(bounds, dtype=np.int32)).to(device),
        bounds=bounds,
        max_length=longest if device.type == "cpu" else max(128, 1 << (longest - 1).bit_length()),
        type_ids=None if example.type_ids is None else repeated(example.type_ids),
    )


def _layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules that are compiled, each on its own."""
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            yield from module
        elif isinstance(module, FinalNorm):
            yield module


def _mean_row_error(states: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean over the rows of the largest difference, as a share of the row's largest component; NaN if any is NaN."""
    expected = expected.float()
    differences = (states.float() - expected).abs().amax(1)
    return float((differences / expected.abs().amax(1).clamp_min(1e-6)).mean())
