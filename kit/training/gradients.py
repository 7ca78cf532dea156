"""The gradients of a batch, computed kernel by kernel or replayed as a CUDA graph."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kit.data import Batch, DeviceDataset, EpochSampler
from kit.training import distributed
from kit.training.device import autocast, prefetch
from kit.training.graphs import GraphedCall, records_graphs
from kit.training.state import TrainingState


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
        # What computes blocks again puts the GPU's random state back, which no recording allows.
        may_record = records_graphs(state.device) and not state.recipe.checkpoint_blocks
        if may_record and isinstance(dataset, DeviceDataset):
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
