"""What a GPU does, recorded as a CUDA graph and replayed."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from kit.base import KitError, tells_of_full_memory
from kit.training import distributed
from kit.training.device import uses_cuda_graphs

# Calls before the recording: in them cuDNN chooses its kernels, and caches fill.
WARM_UP_CALLS = 3

_Output = TypeVar("_Output")


def records_graphs(device: torch.device) -> bool:
    """Return whether a training on a device records CUDA graphs: alone on a GPU, unless told not.

    See `use_cuda_graphs`.
    """
    return uses_cuda_graphs() and device.type == "cuda" and distributed.world_size() == 1


class GraphedCall(Generic[_Output]):
    """A function of a GPU's tensors that is recorded as a CUDA graph and then replayed.

    A small network's kernels end sooner than a host can launch the next ones one by one; a graph
    launches all of them at once. The function is called as it is at first, then it is recorded.
    What it does beside its kernels happens in these calls alone; inputs keep their shapes, and
    what else it reads and writes keeps its place in memory.

    Parameters
    ----------
    function
        It takes tensors and returns one or several, which the next call overwrites. It waits for
        nothing.
    device
        A CUDA GPU.

    References
    ----------
    PyTorch's documentation, "CUDA semantics", section "CUDA Graphs".
    """

    def __init__(self, function: Callable[..., _Output], device: torch.device) -> None:
        self._function: Callable[..., _Output] = function
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._calls = 0

    def __call__(self, *inputs: Tensor) -> _Output:
        """Call the function, or replay what it did."""
        self._calls += 1
        if self._calls <= WARM_UP_CALLS:
            return self._warm_up(inputs)
        if self._calls == WARM_UP_CALLS + 1:
            self._record(inputs)
        if inputs:
            torch._foreach_copy_(self._inputs, list(inputs))
        self._graph.replay()
        return self._output

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> _Output:
        """Call the function where it will be recorded: not on the default stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = self._function(*inputs)
        current.wait_stream(self._stream)
        return output

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        self._output: _Output
        try:
            # What another thread does meanwhile, such as to pin the next batch, is no part of it.
            with torch.cuda.graph(
                self._graph, stream=self._stream, capture_error_mode="thread_local"
            ):
                self._output = self._function(*self._inputs)
        except RuntimeError as error:
            # CUDA ends a recording that has failed with another error.
            errors = _with_contexts(error)
            for one in errors:
                if tells_of_full_memory(one):
                    raise one from error
            reason = str(errors[-1]).partition("\n")[0]
            raise KitError(
                f"the network cannot be recorded as a CUDA graph: add --no-cuda-graphs ({reason})"
            ) from error


def _with_contexts(error: BaseException) -> list[BaseException]:
    """Return an error and those while which it was raised, the first one last."""
    errors = [error]
    while errors[-1].__context__ is not None:
        errors.append(errors[-1].__context__)
    return errors
