"""What a training minimises: how far logits are from the labels, or from what teachers say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kit.base import Recipe
from kit.data import Resize, resize_batch
from kit.training.inference import Normalize, forward_logits

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of a batch's logits and labels, (batch,), and its images, (batch, 3, height, width) uint8."""


@dataclass(frozen=True)
class LabelLoss:
    """The binary cross-entropy with labels that are drawn towards 1/2 by a share.

    References
    ----------
    Szegedy et al., Rethinking the inception architecture for computer vision, CVPR 2016.
    """

    smoothing: float

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:  # noqa: ARG002
        """Return the mean over the batch."""
        if self.smoothing:
            labels = labels.lerp(torch.full_like(labels, 0.5), self.smoothing)
        return functional.binary_cross_entropy_with_logits(logits, labels)


@dataclass(frozen=True)
class Teacher:
    """A trained model that is asked about batches as they are augmented for another one.

    Attributes
    ----------
    model
        In evaluation mode, on the batches' device.
    view
        What it sees of a batch's images.
    normalize
        Of its own training.
    dtype
        What it predicts in, see `forward_logits`.
    """

    model: nn.Module
    view: Resize
    normalize: Normalize
    dtype: torch.dtype

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (batch,) of uint8 images (batch, 3, height, width), in one view."""
        pixels = resize_batch(images, self.view)
        return forward_logits(self.model, self.normalize(pixels), self.dtype).float()


@dataclass(frozen=True)
class TeacherLoss:
    """Distillation as matching functions: teacher and student see the very same pixels.

    With the student's logits s, the mean logits t of the teachers, a weight w and a temperature T:
    (1 - w) of the labels' loss, and w T^2 BCE(s / T, sigmoid(t / T)), of which T^2 keeps the
    gradients' size. Where w = 1, labels count for nothing.

    References
    ----------
    Hinton, Vinyals and Dean, Distilling the knowledge in a neural network, arXiv:1503.02531.
    Beyer et al., Knowledge distillation: a good teacher is patient and consistent, CVPR 2022,
    without labels, and in its training on ImageNet with T = 1: the defaults here.
    """

    teachers: Sequence[Teacher]
    weight: float
    temperature: float
    of_labels: LabelLoss

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """Return the mean over the batch."""
        said = torch.stack([teacher(images) for teacher in self.teachers]).mean(0)
        distance = functional.binary_cross_entropy_with_logits(
            logits / self.temperature, (said / self.temperature).sigmoid()
        )
        own = self.of_labels(logits, labels, images)
        return (1 - self.weight) * own + self.weight * self.temperature**2 * distance


def choose_loss(recipe: Recipe, teachers: Sequence[Teacher]) -> Loss:
    """Return what a recipe minimises; teachers of no weight are not asked."""
    of_labels = LabelLoss(recipe.label_smoothing)
    if not recipe.is_taught:
        return of_labels
    if not teachers:
        raise ValueError("the recipe names teachers, and none is given")
    return TeacherLoss(teachers, recipe.teacher_weight, recipe.teacher_temperature, of_labels)
