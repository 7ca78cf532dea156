"""The study's small CNN, and the seam to timm's backbones."""

import copy
import difflib
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from kit.base import competition
from kit.base.config import Bn, Init, Orientations, Recipe
from kit.base.errors import KitError
from kit.models.equivariance import GroupConv2d
from kit.models.layers import (
    BatchNorm2d,
    Block,
    FrozenNorm,
    GroupBatchNorm1d,
    GroupBatchNorm2d,
    Remember,
)

BatchNorm = nn.modules.batchnorm._BatchNorm
Norm = TypeVar("Norm", bound=BatchNorm)

# Sides of an input, in pixels, from which on CompactCNN's first convolution halves it.
HALVED_SIZE = 64


class SmallCNN(nn.Module):
    """The study's network, with BatchNorm before or after each activation.

    Convolutions 3x3 without padding, each with max pooling 3x3, then a dense layer and one
    logit. `before` is layer, norm, act, pool; `after` is layer, act, norm, pool. Both have
    the same state dict, and biases in front of a norm stay, so that the two arms differ in
    nothing but the order.

    Parameters
    ----------
    bn
        Where BatchNorm stands.
    momentum
        In Keras' sense: the share of a running statistic that is kept at each step. PyTorch's
        momentum is 1 minus it.
    eps
        Added to the variance.
    widths
        Channels of each convolution, then the units of the dense layer.
    size
        Height and width of the input in pixels.
    init
        `keras`: Glorot-uniform weights and zero biases; `torch`: PyTorch's own.

    Raises
    ------
    KitError
        If the input is too small for that many convolutions.
    """

    def __init__(
        self,
        bn: Bn = "before",
        *,
        momentum: float = 0.99,
        eps: float = 1e-3,
        widths: tuple[int, ...] = (32, 64, 128),
        size: int = 32,
        init: Init = "keras",
    ) -> None:
        super().__init__()
        self.bn = bn
        *channels, hidden = widths
        self.features = nn.Sequential()
        inputs, side = competition.CHANNELS, size
        for outputs in channels:
            norm = _norm(BatchNorm2d, outputs, momentum, eps)
            self.features.append(Block(nn.Conv2d(inputs, outputs, 3), norm, bn, pool=3))
            inputs, side = outputs, (side - 2) // 3
        if side < 1:
            raise KitError(
                f"an input of {size} pixels is too small for {len(channels)} convolutions with "
                "pooling: take fewer --widths or a larger --size"
            )
        dense_norm = _norm(nn.BatchNorm1d, hidden, momentum, eps)
        self.flatten = nn.Flatten()
        self.dense = Block(nn.Linear(inputs * side**2, hidden), dense_norm, bn)
        self.head = nn.Linear(hidden, 1)
        if init == "keras":
            self.apply(_init_keras)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, 1) for images of shape (batch, 3, size, size)."""
        features: Tensor = self.dense(self.flatten(self.features(images)))
        logits: Tensor = self.head(features)
        return logits


class CompactCNN(nn.Module):
    """A small CNN for scores, whose answer need not depend on how a tile is turned.

    Stages of two 3x3 convolutions with padding, with max pooling 2x2 in between; an input of 64
    pixels or more is halved by the first convolution, which is 4x4 then. BatchNorm stands before
    or after each activation, as in `SmallCNN`. The logit is a linear function of what
    `tile_statistics` says of each stage: fine textures count as much as what lies deep.

    Parameters
    ----------
    widths
        Channels of each stage, in each orientation.
    orientations
        8: filters stand in all orientations of the square, see `GroupConv2d`. Where the input
        halves without a rest, all eight views of a tile have one logit, within rounding.

    Raises
    ------
    KitError
        If the input is too small for that many stages.
    """

    def __init__(
        self,
        bn: Bn = "before",
        *,
        momentum: float = 0.9,
        eps: float = 1e-5,
        widths: tuple[int, ...] = (6, 12, 24),
        orientations: Orientations = 8,
        size: int = 96,
        init: Init = "torch",
    ) -> None:
        super().__init__()
        if size < 2 ** (len(widths) - 1):
            raise KitError(
                f"an input of {size} pixels is too small for {len(widths)} stages: take fewer "
                "--widths or a larger --size"
            )
        self.orientations = orientations
        self.stages = nn.ModuleList()
        inputs = competition.CHANNELS
        for number, outputs in enumerate(widths):
            lift = number == 0
            halve = lift and size >= HALVED_SIZE
            first = GroupConv2d(
                inputs,
                outputs,
                4 if halve else 3,
                orientations=orientations,
                lift=lift,
                stride=2 if halve else 1,
                padding=1,
            )
            second = GroupConv2d(outputs, outputs, 3, orientations=orientations, padding=1)
            norms = [
                GroupBatchNorm2d(_norm(GroupBatchNorm1d, outputs, momentum, eps)) for _ in range(2)
            ]
            pool = 2 if number + 1 < len(widths) else None
            blocks = Block(first, norms[0], bn), Block(second, norms[1], bn, pool=pool)
            self.stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.norm = _norm(nn.BatchNorm1d, 3 * sum(widths), momentum, eps)
        self.head = nn.Linear(3 * sum(widths), 1)
        if init == "keras":
            self.apply(_init_keras)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (batch, 1) for images of shape (batch, 3, size, size)."""
        statistics = []
        for stage in self.stages:
            images = stage(images)
            statistics.append(tile_statistics(images, self.orientations))
        logits: Tensor = self.head(self.norm(torch.cat(statistics, 1)))
        return logits


def tile_statistics(maps: Tensor, orientations: int) -> Tensor:
    """Return each channel's mean and standard deviation over a tile, and its mean in the centre.

    Parameters
    ----------
    maps
        (batch, orientations * channels, height, width).

    Returns
    -------
    Tensor
        (batch, 3 * channels); the centre is the middle third of height and width.
    """
    # Sums of many pixels in half precision would be worth little.
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    batch, _, height, width = maps.shape
    pixels = maps.permute(0, 2, 3, 1).reshape(batch, height * width * orientations, -1)
    mean = pixels.mean(1)
    variance = (pixels.square().mean(1) - mean.square()).clamp_min(0)
    rows, columns = height // 3, width // 3
    centre = maps[:, :, rows : height - rows, columns : width - columns].mean((2, 3))
    centre = centre.view(batch, orientations, -1).mean(1)
    # Its gradient is without bound at 0.
    return torch.cat([mean, (variance + 1e-4).sqrt(), centre], 1)


def create_model(recipe: Recipe) -> nn.Module:
    """Build a recipe's network with one logit, its weights drawn from the recipe's seed.

    The caller's random state is left as it was.

    Raises
    ------
    KitError
        If the name is unknown, or the weights cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.is_backbone:
            return _create_backbone(recipe)
        options: dict[str, Any] = {
            "momentum": recipe.bn_momentum,
            "eps": recipe.bn_eps,
            "widths": recipe.widths,
            "size": recipe.size,
            "init": recipe.init,
        }
        if recipe.model == "small":
            return SmallCNN(recipe.bn, **options)
        return CompactCNN(recipe.bn, orientations=recipe.orientations, **options)


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return the optimiser's groups of parameters.

    Parameters
    ----------
    weight_decay
        Spares biases and norms, which have one dimension.
    layer_decay
        Of a timm model: each layer's learning rate is that of the layer above times this, up to
        `lr` at the classifier (Clark et al., arXiv:2003.10555).
    """
    if layer_decay < 1:
        from timm.optim._param_groups import param_groups_layer_decay

        return [
            {"params": group["params"], "weight_decay": group["weight_decay"], "lr": lr * scale}
            for group in param_groups_layer_decay(model, weight_decay, layer_decay=layer_decay)
            for scale in [group["lr_scale"]]
        ]
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay, "lr": lr},
        {"params": vectors, "weight_decay": 0.0, "lr": lr},
    ]


def freeze_backbone(model: nn.Module, *, frozen: bool) -> None:
    """Hold all but a timm model's classifier, or let everything learn."""
    model.requires_grad_(not frozen)
    if frozen:
        model.get_classifier().requires_grad_(True)  # type: ignore[operator]


def fold_norms(model: nn.Module) -> nn.Module:
    """Return a copy for evaluation that does less: norms in front of ReLU are folded away.

    Only the kit's own networks have blocks to fold. Where it is the same, maxima are pooled first
    and they alone normalised; logits agree within rounding.
    """
    folded = copy.deepcopy(model).eval()
    for name, block in folded.named_modules():
        if isinstance(block, Block):
            folded.set_submodule(name, _fold(block))
    return folded


def _fold(block: Block) -> nn.Module:
    layer: Any = block.layer
    norm: Any = block.norm
    if isinstance(layer, GroupConv2d):
        layer, norm = layer.as_conv2d(), norm.as_batch_norm2d(layer.orientations)
    act = nn.ReLU()
    pool = [nn.MaxPool2d(block.pooling)] if block.pooling else []
    increases = isinstance(norm, BatchNorm2d) and norm.is_increasing()
    if block.bn == "after":
        return nn.Sequential(layer, *pool, act, norm) if increases else block
    if pool and increases:
        # On the maxima it costs next to nothing, and the layer is the same for all statistics.
        return nn.Sequential(layer, *pool, FrozenNorm(norm), act)
    fuse = fuse_conv_bn_eval if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval
    return nn.Sequential(fuse(layer, norm), *pool, act)


def share_stem(folded: Sequence[nn.Module]) -> None:
    """Let networks compute but once what comes before their first norm.

    Parameters
    ----------
    folded
        From `fold_norms`, of models that differ in their running statistics alone.
    """
    first = [_first_block(model) for model in folded]
    is_norm = [isinstance(part, FrozenNorm | BatchNorm2d) for part in first[0]]
    if any(is_norm):
        stop = is_norm.index(True)
        stem = Remember(first[0][:stop])
        for model, block in zip(folded, first, strict=True):
            model.set_submodule("features.0", nn.Sequential(stem, *block[stop:]))


def _first_block(folded: nn.Module) -> nn.Sequential:
    """Return what a folded network of the kit begins with; of others nothing."""
    features = getattr(folded, "features", None)
    first = features[0] if isinstance(features, nn.Sequential) else None
    return first if isinstance(first, nn.Sequential) else nn.Sequential()


def batch_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """Return a model's BatchNorm layers by name, those without running statistics left out."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.running_var is not None
    }


def synchronize_batch_norms(model: nn.Module) -> nn.Module:
    """Return the model with norms that normalise by the batches of all processes; GPUs only."""
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    if not isinstance(model, SmallCNN):
        # PyTorch's would drop the activations that timm's norms hold.
        from timm.layers.norm_act import convert_sync_batchnorm as convert
    synchronized: nn.Module = convert(model)
    return synchronized


def min_running_var(model: nn.Module) -> float:
    """Return the smallest running variance of all BatchNorm channels; infinity without any.

    After a ReLU a dead channel's variance decays to nothing, and when the channel comes back
    to life its output in evaluation is a hundred times its neighbours'.
    """
    variances = [norm.running_var for norm in batch_norms(model).values()]
    return min((float(v.min()) for v in variances if v is not None), default=float("inf"))


def layer_table(model: nn.Module, size: int) -> str:
    """Return the layers with their output shapes and parameters, counted as Keras does.

    Keras counts BatchNorm's running mean and variance as non-trainable parameters.
    """
    rows: list[tuple[str, str, str]] = []

    def record(name: str, layer: nn.Module, output: Tensor) -> None:
        shape = ", ".join(str(extent) for extent in output.shape[1:])
        kind = f"{name} ({type(layer).__name__})"
        rows.append((kind, f"({shape})", f"{sum(_parameter_counts(layer)):,}"))

    leaves = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: record(name, layer, output))
        for name, layer in leaves
    ]
    was_training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, competition.CHANNELS, size, size))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    trainable, running = _parameter_counts(model)
    lines = [f"{kind:40} {shape:>18} {count:>12}" for kind, shape, count in rows]
    return "\n".join(
        [
            f"{'layer':40} {'output shape':>18} {'parameters':>12}",
            *lines,
            f"{trainable + running:,} parameters: {trainable:,} trainable, "
            f"{running:,} running statistics",
        ]
    )


def _norm(kind: type[Norm], channels: int, momentum: float, eps: float) -> Norm:
    """Build a BatchNorm whose momentum is given in Keras' sense."""
    return kind(channels, eps=eps, momentum=1 - momentum)


def _init_keras(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear | GroupConv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _parameter_counts(module: nn.Module) -> tuple[int, int]:
    """Count trainable parameters and running statistics."""
    running = [buffer for name, buffer in module.named_buffers() if "running" in name]
    return sum(p.numel() for p in module.parameters()), sum(b.numel() for b in running)


def _create_backbone(recipe: Recipe) -> nn.Module:
    # timm brings torchvision and seconds of imports, which the small CNN can do without.
    import timm

    if not timm.is_model(recipe.model):
        close = ", ".join(difflib.get_close_matches(recipe.model, timm.list_models()))
        hint = f"; did you mean {close}?" if close else ""
        raise KitError(f"no model {recipe.model}: give small or the name of a timm model{hint}")
    model: nn.Module = _timm_model(recipe)
    for layer in model.get_classifier().modules():  # type: ignore[operator]
        # timm draws some from a range that grows as classes get few: one logit starts at tens.
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    if recipe.weights is not None:
        _load_weights(model, recipe.weights)
    return model


def _timm_model(recipe: Recipe) -> Any:
    import timm

    try:
        return timm.create_model(recipe.model, pretrained=recipe.pretrained, num_classes=1)
    except (OSError, RuntimeError) as error:
        if not recipe.pretrained:
            raise
        source = timm.get_pretrained_cfg(recipe.model)
        repository = getattr(source, "hf_hub_id", None) or getattr(source, "url", "its hub")
        raise KitError(
            f"cannot fetch the weights of {recipe.model}: bring model.safetensors of {repository} "
            "here by other means and give it with --weights FILE in place of --pretrained"
        ) from error


def _load_weights(model: nn.Module, path: Path) -> None:
    """Load a backbone's weights without its classifier, unpickling nothing but tensors."""
    if not path.is_file():
        raise KitError(f"no weights at {path}")
    classifier = str(model.default_cfg["classifier"])  # type: ignore[index]
    state = {
        name: tensor
        for name, tensor in _read_weights(path).items()
        if not name.startswith(f"{classifier}.")
    }
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise KitError(f"{path} does not fit the model: {error}") from error
    missing = [name for name in missing if not name.startswith(f"{classifier}.")]
    if missing or unexpected:
        first = (missing + unexpected)[0]
        raise KitError(
            f"{path} does not fit the model: {len(missing)} tensors are missing and "
            f"{len(unexpected)} are unknown, first {first}"
        )


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, from safetensors or from a PyTorch file that holds nothing else."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if not zipfile.is_zipfile(path):
            raise KitError(f"{path} is neither a .safetensors file nor one written by torch.save")
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError) as error:
        raise KitError(f"cannot read weights from {path}: {error}") from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise KitError(f"{path} holds no table of tensors: give a state dict")
    return dict(tensors)
