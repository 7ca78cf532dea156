"""Training as public kits first write it: NCHW, float32, eager, Adam as it comes."""

from collections.abc import Iterable

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional


def create_network(model: str) -> nn.Module:
    """Build the study's network, or a timm model, with one logit."""
    if model != "small":
        network: nn.Module = timm.create_model(model, num_classes=1)
        return network
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.BatchNorm2d(32, eps=1e-3, momentum=0.01),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Conv2d(32, 64, 3),
        nn.BatchNorm2d(64, eps=1e-3, momentum=0.01),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Linear(256, 128),
        nn.BatchNorm1d(128, eps=1e-3, momentum=0.01),
        nn.ReLU(),
        nn.Linear(128, 1),
    )


class Trainer:
    """The network, its optimiser, and a pass over batches.

    Parameters
    ----------
    model
        `small`, or the name of a timm model.
    device
        `cpu` or `cuda`.
    """

    def __init__(self, model: str, device: str) -> None:
        self.device = torch.device(device)
        self.network = create_network(model).to(self.device).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)

    def train(self, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
        """Take a step a batch of (batch, 3, height, width) floats; return the tiles taken."""
        tiles, loss_sum = 0, 0.0
        for images, labels in batches:
            images, labels = images.to(self.device), labels.to(self.device).float()
            loss = functional.binary_cross_entropy_with_logits(
                self.network(images).squeeze(1), labels
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.item()
            tiles += len(labels)
        return tiles
