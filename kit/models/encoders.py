"""Frozen encoders: what a timm model makes of an image, pooled, and a probe on top of it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kit.base import CENTRE_SIZE, CHANNEL_STATISTICS, KitError, Pool, Recipe
from kit.base import Probe as ProbeKind
from kit.models.backbones import create_backbone
from kit.models.cards import CARDS
from kit.models.sources import find_source


class Encoder(nn.Module):
    """A timm model up to its last map, and statistics of that map: an image's features.

    Parameters
    ----------
    network
        Of timm. It stays as it is: in evaluation mode, without gradients.
    pool
        class: the token that stands for the image; mean, max, spread (the standard deviation):
        over the whole map; centre: the mean over the centre that decides the label; stages: mean,
        max, spread and centre of what each earlier stage ends with.
    crop
        Side of the tile's central square that the image shows, in pixels.
    """

    def __init__(self, network: nn.Module, pool: Sequence[Pool], crop: int) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.pool = tuple(pool)
        self.share = min(1.0, CENTRE_SIZE / crop)

    def train(self, mode: bool = True) -> "Encoder":  # noqa: ARG002
        """Stay in evaluation mode, whatever the model around it does."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return features of shape (batch, features) in float32."""
        return torch.cat([part.float() for part in self._parts(images)], 1)

    def _parts(self, images: Tensor) -> Iterator[Tensor]:
        network: Any = self.network
        if "stages" in self.pool:
            count = min(MOST_STAGES, len(network.feature_info))
            last, maps = network.forward_intermediates(images, indices=count)
            for stage in maps[:-1] if maps[-1] is last else maps:
                for name in STAGE_POOL:
                    yield self._pooled(name, stage.float())
        else:
            last = network.forward_features(images)
        grid = _grid(network, last).float()
        for name in self.pool:
            if name == "class":
                yield last[:, 0]
            elif name != "stages":
                yield self._pooled(name, grid)

    def _pooled(self, name: Pool, grid: Tensor) -> Tensor:
        """Return a statistic of a map of shape (batch, channels, height, width)."""
        if name == "mean":
            return grid.mean((2, 3))
        if name == "max":
            return grid.amax((2, 3))
        if name == "spread":
            return grid.var((2, 3), correction=0).sqrt()
        rows, columns = (_central(side, self.share, grid.device) for side in grid.shape[2:])
        return torch.einsum("bchw,h,w->bc", grid, rows, columns)


MOST_STAGES = 5
"""Of a model, from its end: a ViT has dozens of layers, which are alike."""
STAGE_POOL: tuple[Pool, ...] = ("mean", "max", "spread", "centre")
"""What is taken from each earlier stage."""


class Probe(nn.Module):
    """A frozen encoder and a head that is fitted to its features."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the encoder's features, (batch, features)."""
        features: Tensor = self.encoder(images)
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """Return logits of shape (batch, 1)."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, 1)."""
        return self.forward_head(self.forward_features(images))


def create_encoder(recipe: Recipe) -> Encoder:
    """Build a recipe's encoder, from published or given weights, or those that its seed draws.

    Raises
    ------
    KitError
        As `create_backbone` does, or if the model has nothing of the kind to pool.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network: Any = create_backbone(recipe)
    network.reset_classifier(0)
    if "class" in recipe.pool and not _has_class_token(network):
        raise KitError(f"{recipe.model} has no class token: leave class out of --pool")
    encoder = Encoder(network, recipe.pool, recipe.crop).eval()
    feature_count(encoder, recipe.size)
    return encoder


def create_probe(recipe: Recipe) -> Probe:
    """Build a recipe's encoder and the head that a probe will fit, which answers 0 before."""
    encoder = create_encoder(recipe)
    count = feature_count(encoder, recipe.size)
    return Probe(encoder, create_head(recipe.probe, count))


HIDDEN = 256
"""Units of a small network on features."""


def create_head(kind: ProbeKind, count: int) -> nn.Module:
    """Return what maps so many features to a logit: 0 before it is fitted."""
    head: nn.Module = nn.Linear(count, 1)
    if kind == "mlp":
        head = nn.Sequential(nn.Linear(count, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
    for weight in head.parameters():
        nn.init.zeros_(weight)
    return head


def feature_count(encoder: Encoder, size: int) -> int:
    """Return how many numbers an encoder makes of an image."""
    image = next(encoder.parameters()).new_zeros(1, 3, size, size)
    try:
        with torch.inference_mode():
            features: Tensor = encoder(image)
            return features.shape[1]
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise KitError(
            f"{type(encoder.network).__name__} has no map to pool {', '.join(encoder.pool)} of"
        ) from error


def weights_fingerprint(network: nn.Module) -> str:
    """Return the SHA-256 over a network's tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(memoryview(plain.view(torch.uint8).numpy()))
    return digest.hexdigest()


def follow_model(recipe: Recipe) -> Recipe:
    """Return a recipe that says by itself what it leaves to its model: statistics and pooling.

    Raises
    ------
    KitError
        If there is no such model, or it was trained with statistics that have no name here.
    """
    if not recipe.is_backbone:
        return recipe
    if recipe.normalize == "model":
        recipe = replace(recipe, normalize=_statistics_of(recipe.model))
    if recipe.is_probe and not recipe.pool:
        card = CARDS.get(recipe.model)
        pool: tuple[Pool, ...] = card.pool if card else _default_pool(recipe.model)
        recipe = replace(recipe, pool=(*pool, "centre"))
    return recipe


def _statistics_of(model: str) -> Any:
    card = CARDS.get(model)
    if card is not None:
        return card.normalize
    source = find_source(model).config
    own = (tuple(source["mean"]), tuple(source["std"]))
    for name, known in CHANNEL_STATISTICS.items():
        if own == known:
            return name
    raise KitError(
        f"{model} was trained with channel means {own[0]} and deviations {own[1]}, which have no "
        f"name here: choose the nearest with --normalize {', '.join(CHANNEL_STATISTICS)}"
    )


def _default_pool(model: str) -> tuple[Pool, ...]:
    """Return what is pooled of a model without a card."""
    if find_source(model).architecture.startswith(("vit_", "deit", "beit", "eva")):
        return "class", "mean"
    return "stages", "mean"


def _has_class_token(network: Any) -> bool:
    return getattr(network, "cls_token", None) is not None


def _grid(network: Any, features: Tensor) -> Tensor:
    """Return a model's last map as (batch, channels, height, width), without what is no place."""
    if features.ndim == 4:
        is_last = features.shape[-1] == network.num_features != features.shape[1]
        return features.permute(0, 3, 1, 2) if is_last else features
    places = features[:, getattr(network, "num_prefix_tokens", 0) :]
    batch, count, channels = places.shape
    side = round(count**0.5)
    return places.transpose(1, 2).reshape(batch, channels, side, count // side)


def _central(side: int, share: float, device: torch.device) -> Tensor:
    """Return how much of each of a row's cells lies in its central share; the sum is 1."""
    edges = torch.arange(side + 1, device=device) / side
    low, high = (1 - share) / 2, (1 + share) / 2
    inside = edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)
    covered = inside.clamp(min=0)
    return covered / covered.sum()
