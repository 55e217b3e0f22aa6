"""Tensors that claim to be on a GPU while their numbers are in the CPU's memory, and the modes that make torch accept
them on a machine without a GPU.

Operations compute real numbers, so logits can be compared with those of a CPU. As on a GPU, the tensors of an operation
must be on one device, and a copy to pinned memory arrives only when the host waits for it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._dynamo.eval_frame import skip_code
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.fake_cuda import FakeCuda
from tests.gpu_less import operators
from tests.gpu_less.watch import Watch

__all__ = ["GpuTensor", "SoftwareGpu"]

aten = torch.ops.aten

_COPIES = {aten._to_copy.default, aten.copy_.default}
_MAY_MIX = _COPIES | {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
"""Operators that accept tensors of several devices; an index on the CPU is copied to the GPU first."""


class GpuTensor(torch.Tensor):
    """A tensor on a software GPU; `host` has its numbers."""

    host: torch.Tensor
    holder: object

    @staticmethod
    def __new__(cls, host: torch.Tensor, device: torch.device) -> "GpuTensor":
        tensor: GpuTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            requires_grad=host.requires_grad,
            device=device,
        )
        tensor.host = host
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return SoftwareGpu.active().dispatch(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["host"], self.device

    @staticmethod
    def __tensor_unflatten__(parts: Any, device: torch.device, size: Any, stride: Any) -> "GpuTensor":
        return GpuTensor(parts["host"], device)

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({tuple(self.shape)}, {self.dtype}, {self.device})"


class SoftwareGpu:
    """One or several GPUs. While it is entered, tensors and streams on `cuda` devices are this object's."""

    _active: "SoftwareGpu | None" = None

    def __init__(self, runtime: FakeCuda) -> None:
        self.runtime = runtime
        self.watch = Watch(runtime)
        self._pinned: list[torch.Tensor] = []
        self._mode = _Dispatch(self)
        self._stack = ExitStack()

    @classmethod
    def active(cls) -> "SoftwareGpu":
        assert cls._active is not None, "a tensor of a software GPU is used outside of it"
        return cls._active

    def __enter__(self) -> "SoftwareGpu":
        SoftwareGpu._active = self
        # Compiled layers call torch's functions, and torch would compile this one as if it were a layer.
        skip_code(_Functions.__torch_function__.__code__)
        # The engines need no gradients, and torch's code for gradients asks the CUDA library for the current device.
        self._stack.enter_context(torch._C._AutoDispatchBelowADInplaceOrView())
        self._stack.enter_context(self._mode)
        self._stack.enter_context(_Functions(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        SoftwareGpu._active = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context, whatever makes the host wait for a device raises `HostWaited`."""
        self.watch.is_on = True
        try:
            yield
        finally:
            self.watch.is_on = False

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in pinned memory."""
        self._pinned.append(pinned := tensor.clone())
        return pinned

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        storage = tensor.untyped_storage().data_ptr()
        return any(pinned.untyped_storage().data_ptr() == storage for pinned in self._pinned)

    def dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operator of which an argument or the result is on a GPU."""
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self._mode:  # in inference mode, torch leaves it to the tensor to take such an operator apart
                return func.decompose(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_gpu = [tensor for tensor in inputs if isinstance(tensor, GpuTensor)]
        is_traced = any(isinstance(_host(tensor), FakeTensor) for tensor in inputs)
        if kwargs.pop("pin_memory", None):
            return self.pin(func(*args, **kwargs))
        device = self._device(func, on_gpu, inputs, kwargs)
        if not on_gpu and device.type != "cuda":
            return func(*args, **kwargs)
        if self.runtime.broken is not None:
            raise self.runtime.broken
        if not is_traced:
            self.watch.check(func, args, kwargs, inputs, self.is_pinned)
        if func is aten.copy_.default and not isinstance(args[0], GpuTensor) and not is_traced:
            return self._copy_to_host(args[0], args[1], non_blocking=(*args[2:], False)[0])
        if device.type == "cuda" and "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        run: Callable[..., Any] = operators.OPERATORS.get(func, func)
        host_args, host_kwargs = tree_map(_host, (args, kwargs))
        outputs = run(*host_args, **host_kwargs)
        if device.type != "cuda":
            return outputs
        if not is_traced:
            self.runtime.record(run, host_args, host_kwargs, outputs)
        return self._wrap(outputs, on_gpu, device)

    def _device(self, func: Any, on_gpu: list[GpuTensor], inputs: list[torch.Tensor], kwargs: Any) -> torch.device:
        """The device of the results. Raises torch's error if the inputs are on different devices."""
        devices = {tensor.device for tensor in on_gpu}
        stray = [tensor for tensor in inputs if not isinstance(tensor, GpuTensor) and tensor.dim() > 0]
        if len(devices) > 1 or (devices and stray and func not in _MAY_MIX):
            found = sorted({str(tensor.device) for tensor in inputs})
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {found} in {func}")
        if kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
        elif func is aten.copy_.default and not isinstance(inputs[0], GpuTensor):
            device = torch.device("cpu")
        else:
            device = next(iter(devices), torch.device("cpu"))
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", self.runtime.current_device)
        return device

    def _wrap(self, outputs: Any, inputs: list[GpuTensor], device: torch.device) -> Any:
        known = {id(tensor.host): tensor for tensor in inputs}  # an operator in place returns its own input

        def wrap(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return known[id(leaf)] if id(leaf) in known else self._new(leaf, device)

        return tree_map(wrap, outputs)

    def _new(self, host: torch.Tensor, device: torch.device) -> GpuTensor:
        tensor = GpuTensor(host, device)
        if not isinstance(host, FakeTensor):
            tensor.holder = self.runtime.memory.hold(host)
        return tensor

    def _copy_to_host(self, target: torch.Tensor, source: GpuTensor, non_blocking: bool) -> torch.Tensor:
        """Copies at once; a copy into pinned memory arrives when the host waits for the source's stream."""
        if not (non_blocking and self.is_pinned(target)):
            return target.copy_(source.host)
        numbers = source.host.clone()
        if target.is_floating_point():
            target.fill_(torch.nan)  # the host must not read this memory yet
        self.runtime.current_stream(source.device).launch(lambda: target.copy_(numbers))
        return target


class _Dispatch(TorchDispatchMode):
    """Receives operators without a tensor on a GPU, such as `zeros(device="cuda")` and copies from the CPU.

    It takes the place of a `FakeTensorMode`: torch then does not initialise CUDA.
    """

    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self, gpu: SoftwareGpu) -> None:
        super().__init__()
        self._gpu = gpu

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._gpu.dispatch(func, args, dict(kwargs or {}))


class _Functions(TorchFunctionMode):
    """Replaces the functions of torch's Python interface that need a GPU in C++ code."""

    def __init__(self, gpu: SoftwareGpu) -> None:
        super().__init__()
        self._replaced: dict[Any, Callable[..., Any]] = {
            torch.Tensor.pin_memory: lambda tensor, *_: gpu.pin(tensor),
            torch.Tensor.is_pinned: lambda tensor, *_: gpu.is_pinned(tensor),
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._replaced:
            return self._replaced[func](*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and str(kwargs.get("device")).startswith("cuda"):
            return _from_numbers(*args, **kwargs)
        if func in operators.FUNCTIONS and isinstance(args[0], GpuTensor):
            return operators.FUNCTIONS[func](*args, **kwargs)
        return func(*args, **kwargs)


def _from_numbers(numbers: Any, *, device: Any, **options: Any) -> torch.Tensor:
    if isinstance(numbers, torch.Tensor):
        return numbers.to(device)
    return torch.tensor(numbers, **options).to(device)


def _host(leaf: Any) -> Any:
    return leaf.host if isinstance(leaf, GpuTensor) else leaf
