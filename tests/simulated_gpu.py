"""A GPU for tests, on machines without one: tensors that say `cuda` and compute on the CPU.

Inside `simulated_gpu()` a tensor that is put on `cuda` holds real numbers. An operation that mixes
it with a tensor of the host raises, as on a GPU, and whatever makes the host wait for the device
or copies between both is counted. To PyTorch's C++ core the tensors are the CPU's, so autograd
needs no driver; to Python they are on `cuda:0`.

A CUDA graph holds the calls of its recording, and refuses what would wait in it or asks for the
device's random state.

Not simulated: streams, memory, time, and kernels that round otherwise than the CPU's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
# The host reads a number, or a shape that depends on numbers.
WAITS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
}
# What these return stays on the host.
TO_HOST = {"_local_scalar_dense", "is_nonzero", "equal"}


class Counts:
    """Waits of the host for the device and copies between them, by name; bytes by direction.

    Attributes
    ----------
    launches
        What the host has the device do one by one; a graph's replay is none, views are none.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.uploaded = 0
        self.downloaded = 0
        self.launches = 0

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]


class DeviceTensor(Tensor):
    """A tensor on the simulated device; `host` holds its numbers."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> DeviceTensor:
        is_inference = torch.is_inference_mode_enabled()
        with torch.inference_mode(False) if is_inference else nullcontext():
            return torch.Tensor._make_wrapper_subclass(
                cls,
                host.shape,
                strides=host.stride(),
                storage_offset=host.storage_offset(),
                dtype=host.dtype,
                device=CPU,
            )

    def __init__(self, host: Tensor) -> None:
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    device = property(lambda _: CUDA)
    is_cuda = property(lambda _: True)
    is_cpu = property(lambda _: False)

    def __repr__(self) -> str:
        return f"DeviceTensor({self.host})"

    def get_device(self) -> int:
        return 0

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, layout = _parse_to(*args, **kwargs)
        tensor: Tensor = self.clone() if kwargs.get("copy") else self
        if device is not None and device.type == "cpu":
            tensor = _download(tensor)
        options = {"memory_format": layout} if layout is not None else {}
        if dtype is None and layout is None:
            return tensor
        return Tensor.to(tensor, dtype or tensor.dtype, **options)

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return _download(self)

    def record_stream(self, _: Any) -> None:
        pass

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self

    def storage(self) -> Any:
        return self.host.storage()

    def untyped_storage(self) -> Any:
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def tolist(self) -> Any:
        return _download(self).tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _download(self).detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied


class SimulatedGraph:
    """The calls of a recording, with the tensors that they read and write.

    They are computed while they are recorded, as autograd needs their results, and so the first
    replay, which has the same inputs, does nothing.
    """

    recording: ClassVar[SimulatedGraph | None] = None

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.replays = 0

    @classmethod
    @contextmanager
    def record(cls, graph: SimulatedGraph, **_: Any) -> Iterator[None]:
        before = _COUNTS.waits.total()
        cls.recording = graph
        try:
            yield
        except Exception as error:
            # What has failed leaves a recording that CUDA cannot end.
            message = "operation failed due to a previous error during capture"
            raise RuntimeError(message) from error
        finally:
            cls.recording = None
        if _COUNTS.waits.total() > before:
            raise RuntimeError(f"not permitted when stream is capturing: {_COUNTS.waits}")

    @classmethod
    def keep(cls, kernel: Any, args: Any, kwargs: Any, result: Any) -> None:
        if cls.recording is not None:
            cls.recording.calls.append((kernel, args, kwargs, result))

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for kernel, args, kwargs, result in self.calls if self.replays > 1 else ():
            again = kernel(*args, **kwargs)
            for old, new in zip(_leaves(result), _leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Download(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        _COUNTS.waits["download"] += 1
        _COUNTS.downloaded += tensor.numel() * tensor.element_size()
        return tensor.host.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.to(CUDA)


class _Upload(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        _count_upload(tensor)
        return DeviceTensor(tensor.clone())

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.cpu()


class _Functions(TorchFunctionMode):
    """Turn what Python puts on `cuda` into device tensors, before PyTorch looks for a driver."""

    # Whether the calls that run now, from the outermost on, were given device tensors: what the
    # core makes on its own in such a call is on their device.
    given: ClassVar[list[bool]] = []

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.given.append(any(isinstance(x, DeviceTensor) for x in _leaves((args, kwargs))))
        try:
            return self._call(func, args, kwargs)
        finally:
            self.given.pop()

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is Tensor.to and not isinstance(args[0], DeviceTensor):
            device, dtype, layout = _parse_to(*args[1:], **kwargs)
            if device is not None and device.type == "cuda":
                options = {} if layout is None else {"memory_format": layout}
                moved = _Upload.apply(args[0])
                return (
                    moved if not (dtype or options) else moved.to(dtype or moved.dtype, **options)
                )
        if func is torch._C._nn._parse_to and args and isinstance(args[0], DeviceTensor):
            return func(CUDA, args[0].dtype, *args[1:], **kwargs)
        if func == Tensor.data.__set__ and isinstance(args[1], DeviceTensor):
            return _replace_data(*args)
        if func is Tensor.cuda and not isinstance(args[0], DeviceTensor):
            return _Upload.apply(args[0])
        if func is Tensor.new_tensor and isinstance(args[0], DeviceTensor):
            return _Upload.apply(func(args[0].host, *args[1:], **kwargs))
        if _is_cuda(kwargs.get("device")):
            made = func(*args, **kwargs | {"device": CPU})
            if func in (torch.tensor, torch.as_tensor):
                return _Upload.apply(made)
            SimulatedGraph.keep(func, args, kwargs | {"device": CPU}, made)
            return _map(_device, made)
        return func(*args, **kwargs)


def _replace_data(tensor: Tensor, data: DeviceTensor) -> None:
    moved: Tensor = DeviceTensor(data.host)
    if isinstance(tensor, torch.nn.Parameter):
        moved = torch.nn.Parameter(moved, tensor.requires_grad)
    torch.utils.swap_tensors(tensor, moved)


def _parse_to(*args: Any, device: Any = None, **kwargs: Any) -> tuple[Any, ...]:
    """Return the device, type and layout that the arguments of `Tensor.to` ask for."""
    kwargs.pop("copy", None)
    if args and isinstance(args[0], DeviceTensor):
        args = (CUDA, args[0].dtype, *args[1:])
    with torch._C.DisableTorchFunction():
        parsed, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    return parsed if device is None else torch.device(device), dtype, layout


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_COUNTS = Counts()


def _download(tensor: DeviceTensor) -> Tensor:
    return _Download.apply(tensor)  # type: ignore[no-any-return]


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    on_host = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
    asked = kwargs.get("device")
    to_device = asked is not None and torch.device(asked).type == "cuda"
    if to_device:
        kwargs = kwargs | {"device": CPU}
    if not tensors and _Functions.given and _Functions.given[-1]:
        to_device = True
    if not on_device and not to_device:
        return func(*args, **kwargs)
    if SimulatedGraph.recording is None and not func.is_view:
        _COUNTS.launches += 1
    _count(name, args, on_device, on_host, to_device)
    host_args, host_kwargs = _map(_host, (args, kwargs))
    kernel = _KERNELS.get(name, func)
    result = kernel(*host_args, **host_kwargs)
    SimulatedGraph.keep(kernel, host_args, host_kwargs, result)
    if name in TO_HOST:
        return result
    result = _map(_device, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if on_device else result


def _count(
    name: str, args: Any, on_device: list[Tensor], on_host: list[Tensor], to_device: bool
) -> None:
    """Count what waits or copies; refuse what mixes devices."""
    if name in WAITS:
        _COUNTS.waits[name] += 1
    if name == "copy_" and on_host:
        if isinstance(args[0], DeviceTensor):
            _count_upload(args[1])
        else:
            _COUNTS.waits["download"] += 1
    elif name == "_to_copy" and to_device and on_host:
        _count_upload(args[0])
    elif on_device and any(tensor.ndim for tensor in on_host):
        if name.startswith("index") and not isinstance(args[0], DeviceTensor):
            raise RuntimeError("indices should be either on cpu or on the same device")
        if name in ("index.Tensor", "index"):
            for tensor in on_host:
                _count_upload(tensor)
            return
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({name})"
        )


def _count_upload(tensor: Tensor) -> None:
    kind = "pinned" if tensor.is_pinned() else "pageable"
    _COUNTS.uploads[kind] += 1
    _COUNTS.uploaded += tensor.numel() * tensor.element_size()
    if kind == "pageable":
        _COUNTS.waits["pageable upload"] += 1


def _leaves(tree: Any) -> Iterator[Any]:
    """Yield what the arguments of a call hold; PyTorch's own function takes ten times as long."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        yield tree
        return
    for branch in tree:
        yield from _leaves(branch)


def _map(change: Callable[[Any], Any], tree: Any) -> Any:
    """Change what the arguments of a call hold, as `_leaves` yields it."""
    if isinstance(tree, dict):
        return {key: _map(change, branch) for key, branch in tree.items()}
    if isinstance(tree, list):
        return [_map(change, branch) for branch in tree]
    if isinstance(tree, tuple):
        branches = [_map(change, branch) for branch in tree]
        # A named one takes its parts, PyTorch's own a sequence of them.
        return tree._make(branches) if hasattr(tree, "_make") else type(tree)(branches)
    return change(tree)


def _host(leaf: Any) -> Any:
    return leaf.host if isinstance(leaf, DeviceTensor) else leaf


def _device(leaf: Any) -> Any:
    is_plain = isinstance(leaf, Tensor) and not isinstance(leaf, DeviceTensor)
    return DeviceTensor(leaf) if is_plain else leaf


# Kernels that only a GPU has, by the CPU's.
_KERNELS: dict[str, Any] = {}


def _pin(tensor: Tensor, *_: Any) -> Tensor:
    pinned = tensor.clone()
    pinned.simulated_pin = True  # type: ignore[attr-defined]
    return pinned


def _group(lists: Any, with_indices: bool = False) -> Any:
    """Group an optimiser's tensors, as the core does by what it takes for their device."""
    groups = _GROUP(lists, with_indices)
    on_device = isinstance(lists[0][0], DeviceTensor)
    return {(CUDA if on_device else CPU, dtype): group for (_, dtype), group in groups.items()}


_GROUP = torch._C._group_tensors_by_device_and_dtype


def _get_rng_state(*_: Any) -> Tensor:
    if SimulatedGraph.recording is not None:
        raise RuntimeError("Cannot call CUDAGeneratorImpl::current_seed during CUDA graph capture")
    return torch.zeros(16, dtype=torch.uint8)


def _set_rng_state(*_: Any) -> None:
    _get_rng_state()


@contextmanager
def simulated_gpu(*, memory: int = 16 * 2**30) -> Iterator[Counts]:
    """Put a simulated GPU into the process; yield the counts of its waits and copies."""
    plain_autocast = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return plain_autocast("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    properties = mock.Mock(total_memory=memory, major=9, minor=0)
    properties.name = "simulated"
    patches = {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda._initialized": True,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.device": lambda _: nullcontext(),
        "torch.cuda.manual_seed_all": lambda _: None,
        "torch.cuda.get_device_properties": lambda _=None: properties,
        "torch.cuda.mem_get_info": lambda _=None: (memory, memory),
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.cuda.get_rng_state": _get_rng_state,
        "torch.cuda.set_rng_state": _set_rng_state,
        "torch.cuda.synchronize": lambda *_: None,
        "torch.cuda.Stream": lambda *_: mock.Mock(),
        "torch.cuda.stream": lambda _: nullcontext(),
        "torch.cuda.current_stream": mock.Mock(),
        "torch.cuda.CUDAGraph": SimulatedGraph,
        "torch.cuda.graph": SimulatedGraph.record,
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.is_current_stream_capturing": lambda: False,
        "torch.accelerator.current_device_index": lambda: 0,
        "torch.accelerator.set_device_index": lambda _: None,
        "torch.accelerator.current_stream": lambda *_: mock.Mock(is_capturing=lambda: False),
        "torch.autocast": autocast,
        "torch._C._group_tensors_by_device_and_dtype": _group,
        "torch.Tensor.pin_memory": _pin,
        "torch.Tensor.is_pinned": lambda tensor, *_: hasattr(tensor, "simulated_pin"),
    }
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    kernels = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.__future__.set_swap_module_params_on_conversion(True)
    _COUNTS.clear()
    try:
        with ExitStack() as stack:
            for name, value in patches.items():
                stack.enter_context(mock.patch(name, value))
            stack.enter_context(_Mode())
            stack.enter_context(_Functions())
            yield _COUNTS
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
        # What the process has chosen for a GPU.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = kernels
        torch.use_deterministic_algorithms(deterministic)
