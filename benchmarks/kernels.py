"""Lists the kernels that Inductor generates for an H100, on a machine without a GPU, a driver or Triton.

Compiled layers run on fake CUDA tensors, which have shapes and no numbers. Inductor then schedules and generates the
code as for a real device, and nothing is run. `_for_an_h100` answers what Inductor asks about the device.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import sympy
import torch
import torch._inductor.scheduler as inductor_scheduler
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx
from torch._inductor.dependencies import MemoryDep
from torch._inductor.fx_passes import joint_graph
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import MultiOutput
from torch._inductor.virtualized import V
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._sympy.functions import Identity
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

__all__ = ["FakeGpu", "Kernel", "KernelLister"]

_H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
    total_memory=80 << 30,
    warp_size=32,
    gcnArchName="",
)


@dataclass(frozen=True)
class Kernel:
    """One launch, or several launches of an operator that is not generated."""

    name: str
    """`fused` for generated code, else the operator's name."""
    num_bytes: int
    """Bytes of the distinct elements that a generated kernel reads and writes. A second pass over the same row is not
    counted, because the L2 cache serves it. Zero for other operators."""


class FakeGpu:
    """Makes tensors that claim to be on the first GPU and hold no numbers."""

    device = torch.device("cuda:0")

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        return FakeTensor(self.mode, torch.empty(*shape, dtype=dtype, device="meta"), self.device)

    def move(self, model: torch.nn.Module) -> torch.nn.Module:
        """Replaces all tensors of a model on the `meta` device, in place."""
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    fake = self.empty(*parameter.shape, dtype=parameter.dtype)
                    module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self.empty(*buffer.shape, dtype=buffer.dtype)
        return model

    @contextmanager
    def active(self) -> Iterator[None]:
        """Operators within this context work on these tensors."""
        with self.mode, mock.patch.object(torch.Tensor, "__getitem__", _item_through_operators):
            yield


class KernelLister:
    """A backend for `torch.compile` that records the kernels of each graph and then runs the graph uncompiled."""

    def __init__(self, num_tokens: int) -> None:
        """`num_tokens` is the number of rows of a batch; no other dimension may have this size."""
        self._num_tokens = num_tokens
        self.graphs: list[list[Kernel]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        copied = torch.fx.GraphModule(graph, deepcopy(graph.graph))
        lister = self

        def record(lowering: GraphLowering) -> Any:
            code, _ = lowering.codegen()
            kernels = lister._kernels(lowering.scheduler.nodes)
            num_generated = sum(kernel.name == "fused" for kernel in kernels)
            assert num_generated == str(getattr(code, "value", code)).count(".run("), "the code has other launches"
            lister.graphs.append(kernels)
            return SimpleNamespace(call=graph.forward, __file__="", key="")

        with _for_an_h100(), mock.patch.object(GraphLowering, "compile_to_module", record):
            compile_fx(copied, inputs)
        return graph.forward

    def _kernels(self, nodes: list[Any]) -> list[Kernel]:
        kernels = []
        for node in nodes:
            if isinstance(node, inductor_scheduler.NopKernelSchedulerNode) or isinstance(node.node, MultiOutput):
                continue
            if isinstance(node, inductor_scheduler.ExternKernelSchedulerNode):
                name = node.node.python_kernel_name or str(node.node.op_overload)
                kernels.append(Kernel(name.removeprefix("extern_kernels.").removeprefix("torch.ops."), 0))
            else:
                kernels.append(Kernel("fused", self._num_bytes(node)))
        return kernels

    def _num_bytes(self, node: Any) -> int:
        """Bytes at two small numbers of tokens, extrapolated: every size is linear in the number of tokens."""
        few, more = 4, 8
        at_few, at_more = (_num_bytes_at(node, {self._num_tokens: count}) for count in (few, more))
        return at_few + (at_more - at_few) * (self._num_tokens - few) // (more - few)


def _num_bytes_at(node: Any, replaced: dict[int, int]) -> int:
    elements = defaultdict(set)
    inner = set(node.snodes if isinstance(node, inductor_scheduler.FusedSchedulerNode) else [node])
    internal = {buffer.get_name() for buffer in node.get_outputs() if not {user.node for user in buffer.users} - inner}
    for access in (*node.read_writes.reads, *node.read_writes.writes):
        if isinstance(access, MemoryDep) and access.name not in internal:
            elements[access.name].update(_elements(access, replaced).tolist())
    return sum(len(indices) * V.graph.get_dtype(name).itemsize for name, indices in elements.items())


def _elements(access: MemoryDep, replaced: dict[int, int]) -> np.ndarray:
    """Distinct indices of the elements that one expression of a kernel reads or writes."""
    free = {*access.index.free_symbols, *(symbol for size in access.size for symbol in size.free_symbols)}
    hints = {symbol: _hint(symbol) for symbol in free - set(access.var_names)}
    values = {symbol: replaced.get(hint, hint) for symbol, hint in hints.items()}
    sizes = [int(sympy.sympify(size).subs(values)) for size in access.size]
    grid = dict(zip(access.var_names, np.ogrid[tuple(map(slice, sizes))], strict=True))
    index = sympy_interp(
        PythonReferenceAnalysis, {**values, **grid}, access.index.replace(Identity, lambda inner: inner)
    )
    return np.unique(np.broadcast_to(index, sizes or (1,)))


def _hint(symbol: sympy.Symbol) -> int:
    sizes = V.graph.sizevars
    return int(sizes.optimization_hint(symbol) if hasattr(sizes, "optimization_hint") else sizes.size_hint(symbol))


@contextmanager
def _for_an_h100() -> Iterator[None]:
    """Lets Inductor find an H100 and Triton."""
    answers: list[tuple[Any, dict[str, Any]]] = [
        (torch.cuda, {"_exchange_device": lambda _: 0, "_maybe_exchange_device": lambda _: 0}),
        (torch.cuda, {"is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0}),
        (torch.cuda, {"get_device_properties": lambda _=None: _H100, "get_device_capability": lambda _=None: (9, 0)}),
        (torch.cuda, {"get_rng_state": lambda _=None: torch.empty(0), "set_rng_state": lambda *_: None}),
        (torch.version, {"cuda": torch.version.cuda or "13.0"}),
        (CudaInterface, {"is_available": lambda: True, "current_device": lambda: 0}),
        (CudaInterface, {"get_device_properties": lambda _=None: _H100, "get_compute_capability": lambda _=None: 90}),
        (CudaInterface, {"is_triton_capable": lambda _=None: True, "raise_if_triton_unavailable": lambda _=None: None}),
        (CudaInterface.Worker, {"get_device_properties": lambda _=None: _H100, "current_device": lambda: 0}),
        (inductor_scheduler, {"has_triton": lambda *_: True}),
        (torch.utils._triton, {"triton_hash_with_backend": lambda: ""}),
        (fake_tensor, {"init_gpu_context": lambda _: None}),
        # The patterns of attention and of padded products, which no layer contains, are found with real tensors.
        (joint_graph, {"lazy_init": lambda *_: None}),
    ]
    with ExitStack() as patches:
        patches.enter_context(inductor_config.patch(force_disable_caches=True))
        for owner, replacements in answers:
            for name, answer in replacements.items():
                value = staticmethod(answer) if isinstance(owner, type) else answer
                patches.enter_context(mock.patch.object(owner, name, value, create=True))
        yield


_item = torch.Tensor.__getitem__


def _item_through_operators(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """Indexing without torch's C++ code, which asks the driver for the tensor's device."""
    if tensor.device.type != "cuda":
        return _item(tensor, index)
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        num_indexed = sum(part is not None and part is not Ellipsis for part in parts)
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (tensor.dim() - num_indexed)
    dimension = 0
    for part in parts:
        if isinstance(part, int | torch.SymInt):
            tensor = torch.ops.aten.select.int(tensor, dimension, part)
            continue
        if part is None:
            tensor = torch.ops.aten.unsqueeze(tensor, dimension)
        elif part != slice(None):
            tensor = torch.ops.aten.slice.Tensor(tensor, dimension, part.start, part.stop, part.step or 1)
        dimension += 1
    return tensor
