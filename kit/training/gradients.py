"""The gradients of a batch, computed kernel by kernel or replayed as a CUDA graph."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kit.base import KitError
from kit.data import Batch, DeviceDataset, EpochSampler
from kit.training import distributed
from kit.training.device import autocast, prefetch, uses_cuda_graphs
from kit.training.state import TrainingState

# Calls before the recording: in them cuDNN chooses its kernels, and caches fill.
WARM_UP_CALLS = 3


def compute_gradients(
    state: TrainingState, network: nn.Module, images: Tensor, labels: Tensor
) -> Tensor:
    """Leave the gradient of a batch's mean loss in the weights.

    Parameters
    ----------
    network
        The state's model, or what wraps it.
    images, labels
        (batch, 3, height, width) uint8, and (batch,), on the state's device.

    Returns
    -------
    Tensor
        (2,): the mean loss, and the number of tiles on the right side of 0.5.
    """
    with autocast(state.device, state.dtype):
        logits = network(state.normalize(images)).squeeze(1)
    loss = state.loss(logits.float(), labels, images)
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    hits = ((logits.detach() > 0) == (labels > 0.5)).sum()
    return torch.stack([loss.detach(), hits.to(loss.dtype)])


class Gradients:
    """The gradients of a training's batches, one epoch after another.

    Where a GPU holds the tiles, a step is recorded as a CUDA graph, see `use_cuda_graphs`: from a
    batch's indices to its gradients the host then has one thing to do, and while the GPU computes
    with a batch, it augments the next one.

    Parameters
    ----------
    loader
        From `data.train_loader`.
    """

    def __init__(self, state: TrainingState, loader: DataLoader[Batch]) -> None:
        assert isinstance(loader.sampler, EpochSampler)
        self.state = state
        self.loader = loader
        self.sampler = loader.sampler
        self._graphed: _GraphedGradients | None = None

    def of_epoch(self) -> Iterator[Tensor]:
        """Compute those of each batch of the sampler's epoch in turn, and yield their figures."""
        state, dataset = self.state, self.loader.dataset
        # New for each epoch: it holds on to the parameters that learn.
        network = distributed.data_parallel(state.model).train()
        is_alone = distributed.world_size() == 1 and state.device.type == "cuda"
        if uses_cuda_graphs() and is_alone and isinstance(dataset, DeviceDataset):
            if self._graphed is None or self._graphed.learning != _learning(network):
                self._graphed = _GraphedGradients(state, dataset)
            yield from self._graphed.of_epoch(self.sampler)
        else:
            for images, labels in prefetch(self.loader, state.device):
                yield compute_gradients(state, network, images, labels)


class _GraphedGradients:
    """The gradients of batches that a GPU holds, as a graph in which the next one is augmented.

    Attributes
    ----------
    learning
        Which parameters learnt when it was recorded.
    """

    def __init__(self, state: TrainingState, dataset: DeviceDataset) -> None:
        self.learning = _learning(state.model)
        self._state = state
        self._dataset = dataset
        self._ready: list[Tensor] = []
        self._augmenting = torch.cuda.Stream(state.device)  # type: ignore[no-untyped-call]
        self._step = GraphedCall(self._compute_and_prepare, state.device)

    def of_epoch(self, sampler: EpochSampler) -> Iterator[Tensor]:
        epoch = torch.tensor(sampler.epoch, device=self._state.device)
        batches = (indices for _, indices in sampler if isinstance(indices, Tensor))
        following = next(batches, None)
        if following is None:
            return
        self._prepare(self._dataset.batch(epoch, following))
        for following in batches:
            yield self._step(epoch, following)
        # Nothing follows the last one, which is augmented once more.
        yield self._step(epoch, following)

    def _compute_and_prepare(self, epoch: Tensor, following: Tensor) -> Tensor:
        computing = torch.cuda.current_stream(self._state.device)
        self._augmenting.wait_stream(computing)
        with torch.cuda.stream(self._augmenting):
            batch = self._dataset.batch(epoch, following)
        figures = compute_gradients(self._state, self._state.model, *self._ready)
        computing.wait_stream(self._augmenting)
        self._prepare(batch)
        return figures

    def _prepare(self, batch: Batch) -> None:
        """Put a batch where the graph reads it."""
        if self._ready:
            torch._foreach_copy_(self._ready, [*batch])
        else:
            self._ready = [part.clone() for part in batch]


def _learning(network: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in network.parameters()]


class GraphedCall:
    """A function of a GPU's tensors that is recorded as a CUDA graph and then replayed.

    A small network's kernels end sooner than a host can launch the next ones one by one; a graph
    launches all of them at once. The function is called as it is at first, then it is recorded.
    What it does beside its kernels happens in these calls alone; inputs keep their shapes, and
    what else it reads and writes keeps its place in memory.

    Parameters
    ----------
    function
        It takes tensors and returns one, which the next call overwrites. It waits for nothing.
    device
        A CUDA GPU.

    References
    ----------
    PyTorch's documentation, "CUDA semantics", section "CUDA Graphs".
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function = function
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._calls = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
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

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Tensor:
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
        try:
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._output = self._function(*self._inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise KitError(
                f"the network cannot be recorded as a CUDA graph: add --no-cuda-graphs ({reason})"
            ) from error
