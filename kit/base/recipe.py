"""Recipes: the typed options that decide what a run becomes, read from TOML."""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from kit.base import competition
from kit.base.custom import is_custom
from kit.base.errors import KitError
from kit.base.values import describe_errors

Bn = Literal["before", "after"]
Norm = Literal["batch", "group", "layer", "instance", "none"]
Interpolation = Literal["nearest", "bilinear", "area", "bicubic"]
Normalization = Literal[
    "unit", "competition", "imagenet", "half", "clip", "bioptimus", "lunit", "model"
]
Augmentation = Literal["none", "d4", "stain", "colour", "full"]
Orientations = Literal[1, 8]
Init = Literal["keras", "torch"]
Optimizer = Literal["adam", "muon"]
Schedule = Literal["constant", "one-cycle"]
Keep = Literal["last", "best"]
Probe = Literal["none", "linear", "mlp"]
Pool = Literal["class", "mean", "max", "spread", "centre", "stages"]
Views = Literal[1, 8]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

# Options that shape the kit's own networks and mean nothing to another one.
OWN_ONLY = ("norm", "bn", "widths", "orientations", "bn_momentum", "bn_eps", "init")
# Options that only a timm backbone takes.
_TUNING_ONLY = ("layer_decay", "drop_path", "lora", "checkpoint_blocks", "frozen_epochs")
BACKBONE_ONLY = ("pretrained", "weights", "probe", "pool", *_TUNING_ONLY)
# Options of training in steps, which a probe does not: it is fitted to all tiles at once.
STEPS_ONLY = (
    "augment",
    "stain_strength",
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "schedule",
    "weight_decay",
    "label_smoothing",
    "ema",
    "keep",
    *_TUNING_ONLY,
)
_LAST_SEED = 2**32 - 1


CHANNEL_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "competition": (competition.CHANNEL_MEAN, competition.CHANNEL_STD),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "bioptimus": ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
    "lunit": ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464)),
}
"""Mean and standard deviation of red, green and blue in [0, 1], by the name in a recipe."""


class RecipeError(KitError, ValueError):
    """Options of a recipe that exclude each other."""


@dataclass(frozen=True)
class Recipe:
    """What a run's result depends on, besides the data."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    per_class: Count | None = 25_000
    """Most tiles of a class to draw, the same number of each; None takes every tile."""
    holdout: Fraction = 0.3
    """Share of the tiles (with --slides: of the slides) kept for validation."""
    slides: Path | None = None
    """CSV of id,slide: no slide is on both sides of the holdout."""
    validate_on: tuple[str, ...] = ()
    """Slides of --slides to validate on, in place of a random share."""
    leave_out: tuple[str, ...] = ()
    """Slides of --slides to leave out altogether."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: train this many runs, each of which holds another part out."""
    fold: Annotated[int, Field(ge=0)] | None = None
    """Of --folds: train only the run that holds this part out, from 0."""
    train_tiles: Count | None = None
    """Of the training side draw so many tiles, as if no others were labelled; None takes all."""

    crop: Annotated[int, Field(ge=1, le=competition.TILE_SIZE)] = competition.TILE_SIZE
    """Side of the central square that is cut out before resizing, in pixels."""
    size: Annotated[int, Field(ge=1, le=1024)] = 32
    """Side of the network's input, in pixels."""
    interpolation: Interpolation = "nearest"
    """How the crop is resized to the input."""
    normalize: Normalization = "unit"
    """unit: inputs / 255; competition, imagenet, half, clip, bioptimus, lunit: those channel
    statistics as well; model: those that the timm model was trained with."""
    augment: str = "none"
    """d4: the eight symmetries of the square; stain: jittered H&E stains as well; colour: jittered
    channels and saturation as well; full: any angle, zoom and blur as well; FILE.py:NAME: any
    pipeline of albumentations, see docs/own-parts.md."""
    stain_strength: Annotated[float, Field(gt=0, le=3)] = 1.0
    """Of stain and colour: a factor on how far the stains' densities are jittered."""

    model: str = "small"
    """small (the study's network), compact (a deeper one), the name of any timm model,
    hf-hub:OWNER/NAME, local-dir:FOLDER, a pathology model's short name (encode.py --list), or
    FILE.py:NAME, a network of your own (docs/own-parts.md)."""
    norm: Norm = "batch"
    """Of the kit's own networks: over a batch's tiles, or of each tile by itself over groups of at
    most 16 channels, all channels (layer) or each (instance); none leaves norms out."""
    bn: Bn = "before"
    """The norm before or after each activation of the kit's own networks."""
    widths: Annotated[tuple[Count, ...], Field(min_length=2)] = (32, 64, 128)
    """small: channels of the convolutions, then units of the dense layer; compact: channels of
    the stages, in each orientation."""
    orientations: Orientations = 1
    """Of compact: 8 holds each filter in all orientations of the square (p4m), so that all eight
    views have one answer; 1 is a plain network."""
    bn_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Keras' sense: the share of a running statistic kept each step (PyTorch's is 1 minus it)."""
    bn_eps: Positive = 1e-3
    """Added to a norm's variance."""
    init: Init = "keras"
    """keras: Glorot-uniform weights, zero biases; torch: PyTorch's own, and He's for compact."""
    pretrained: bool = False
    """Start a timm model from its published weights."""
    weights: Path | None = None
    """Start a timm model from this .safetensors or .pth file; needs no network."""
    probe: Probe = "none"
    """Of a timm model: linear, mlp leave it as it is and fit a logistic regression, or a small
    network, to what it makes of the tiles; none trains it."""
    pool: tuple[Pool, ...] = ()
    """Of a probe: what is taken from the model's last map, one after the other; by default what the
    model's card says, and the mean over the centre that decides the label."""

    epochs: Count = 20
    """Passes over the training tiles."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Tiles in a training step."""
    optimizer: Optimizer = "adam"
    """adam: AdamW for all; muon: Muon for convolutions' filters, AdamW for the rest."""
    lr: Positive = 1e-3
    """The optimizer's learning rate; one-cycle's peak."""
    schedule: Schedule = "constant"
    """one-cycle: the learning rate rises for a quarter of the steps, then falls to nothing."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decoupled from the gradient (AdamW), sparing biases and norms; 0 is plain Adam."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share by which labels are drawn towards 1/2."""
    teacher: tuple[Path, ...] = ()
    """Finished runs, their mean logits, or a cross-validation, fold by fold: train towards what
    they say of each augmented batch. They may not know tiles that this run holds out."""
    teacher_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of the teacher in the loss; the labels have the rest."""
    teacher_temperature: Positive = 1.0
    """What the logits of both are divided by: the higher, the more alike all distances count."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of an average of the weights, which the run ends with; 0 keeps none."""
    keep: Keep = "last"
    """last keeps the weights after the last epoch; best those after the epoch with the highest AUC
    on the holdout, which makes the run's own figures optimistic. With ema each epoch then costs a
    pass over the training tiles more."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of a timm model: a layer's learning rate over that of the layer above it."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of a timm model: the chance, at its last layer, that a tile skips a layer in training."""
    lora: Annotated[int, Field(ge=0)] = 0
    """Of a timm model with attention: leave it as it is, and train additions of this rank to its
    attention, and the classifier; for models of hundreds of millions of parameters. 0: none."""
    checkpoint_blocks: bool = False
    """Of a timm model: compute activations again in the backward pass in place of holding them: a
    fraction of the memory for a third more time."""
    frozen_epochs: Annotated[int, Field(ge=0)] = 0
    """Of a timm model: first epochs that train the classifier alone."""
    precision: Precision = "auto"
    """auto takes bf16 (or fp16) where the hardware computes in it, else fp32; of a timm model on a
    CPU, train.py and studies measure which is faster, and record it."""
    views: Views = 1
    """8 averages the probabilities of the eight symmetries of the square when predicting."""
    seed: Annotated[int, Field(ge=0, le=_LAST_SEED)] = 0
    """Decides the split, the initial weights, the data order and the augmentation."""

    def __post_init__(self) -> None:
        """Refuse options that contradict each other, and seeds that no generator takes."""
        if not 0 <= self.seed <= _LAST_SEED:
            raise RecipeError(f"seed = {self.seed}: a seed is a number from 0 to {_LAST_SEED}")
        if (self.validate_on or self.leave_out) and self.slides is None:
            raise RecipeError(
                "validate_on and leave_out name slides: give their table with slides as well"
            )
        if self.validate_on and self.folds:
            raise RecipeError("validate_on and folds exclude each other: choose one holdout")
        if self.fold is not None and self.fold >= (self.folds or 0):
            raise RecipeError("fold is one of the folds, from 0 on: give their number with folds")
        if self.pretrained and self.weights is not None:
            raise RecipeError("pretrained and weights exclude each other: choose one start")
        if not self.is_backbone and (self.pretrained or self.weights is not None):
            raise RecipeError("pretrained and weights need a timm model, such as resnet18")
        if not self.is_backbone and self.is_probe:
            raise RecipeError("a probe needs a timm model, such as resnet18")
        if self.augment not in get_args(Augmentation) and not is_custom(self.augment):
            known = ", ".join(get_args(Augmentation))
            raise RecipeError(
                f"augment = {self.augment}: it is one of {known}, or a pipeline of your own, "
                "FILE.py:NAME"
            )
        if self.orientations > 1 and self.model != "compact" and not is_custom(self.model):
            raise RecipeError("orientations needs the model compact")
        if self.teacher and self.is_probe:
            raise RecipeError("a probe is fitted to labels alone: leave out teacher")
        self._check_tuning()

    def _check_tuning(self) -> None:
        """Refuse options of tuning for a model that is not tuned."""
        fields = type(self).__dataclass_fields__
        changed = [name for name in _TUNING_ONLY if getattr(self, name) != fields[name].default]
        if changed and not self.is_backbone:
            raise RecipeError(f"{' and '.join(changed)} need a timm model, such as resnet18")

    @property
    def is_built_in(self) -> bool:
        """Whether the model is one of the kit's own."""
        return self.model in ("small", "compact")

    @property
    def is_backbone(self) -> bool:
        """Whether the model is timm's."""
        return not self.is_built_in and not is_custom(self.model)

    @property
    def custom(self) -> dict[str, str]:
        """The options that name a person's own code, see `is_custom`, and what they name."""
        named = {"model": self.model, "augment": self.augment}
        return {name: reference for name, reference in named.items() if is_custom(reference)}

    @property
    def is_taught(self) -> bool:
        """Whether the training listens to teachers: to those of no weight it does not."""
        return bool(self.teacher and self.teacher_weight)

    @property
    def is_probe(self) -> bool:
        """Whether a probe is fitted to a model that stays as it is."""
        return self.probe != "none"

    @property
    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the channels that inputs are normalised with.

        Raises
        ------
        RecipeError
            If they are the model's, which `kit.models.follow_model` knows.
        """
        if self.normalize == "model":
            raise RecipeError("normalize = model stands for statistics that are not known here")
        return CHANNEL_STATISTICS[self.normalize]

    def unused_options(self) -> dict[str, str]:
        """Return the options that this recipe makes nothing of, and for each one why."""
        names = [*(() if self.is_built_in else OWN_ONLY)]
        names += () if self.is_backbone else BACKBONE_ONLY
        unused = dict.fromkeys(names, f"for --model {self.model}")
        if self.is_built_in and self.norm != "batch":
            without = ("bn", "bn_eps") if self.norm == "none" else ()
            unused |= dict.fromkeys(("bn_momentum", *without), f"for --norm {self.norm}")
        if self.is_probe:
            unused |= dict.fromkeys(STEPS_ONLY, f"for --probe {self.probe}")
        elif self.is_backbone:
            unused["pool"] = "without --probe"
        if not self.teacher:
            unused |= dict.fromkeys(("teacher_weight", "teacher_temperature"), "without --teacher")
        if self.folds or self.validate_on:
            unused["holdout"] = f"beside {'--folds' if self.folds else '--validate-on'}"
        if (self.augment in ("none", "d4") or "augment" in self.custom) and not self.is_probe:
            unused["stain_strength"] = f"for --augment {self.augment}"
        return unused

    def reject_unused(self, given: set[str]) -> None:
        """Refuse options that were given by name and that the recipe does not use.

        Raises
        ------
        KitError
            Naming the options, and what makes nothing of them.
        """
        unused = self.unused_options()
        for why in dict.fromkeys(unused.values()):
            refuse_unused(given, [name for name in unused if unused[name] == why], why)


def refuse_unused(given: set[str], names: Iterable[str], why: str) -> None:
    """Refuse options that were given by name and mean nothing where they stand.

    Raises
    ------
    KitError
        Naming those of `names` that were given.
    """
    unused = sorted(given.intersection(names))
    if unused:
        options = ", ".join("--" + name.replace("_", "-") for name in unused)
        verb, them = ("has", "it") if len(unused) == 1 else ("have", "them")
        raise KitError(f"{options} {verb} no meaning {why}: leave {them} out")


_RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the kit."""
    folder = resources.files("kit.recipes")
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".toml"))


def recipe_summaries() -> dict[str, str]:
    """Return what each of the kit's recipes is for, by its name: the first sentence of its file."""
    summaries = {}
    for name in recipe_names():
        comment = takewhile(lambda line: line.startswith("# "), _recipe_text(name).splitlines())
        summaries[name] = " ".join(line[2:] for line in comment).partition(". ")[0].rstrip(".")
    return summaries


def read_recipe(name: str) -> Recipe:
    """Read a recipe by its name, or from a TOML file.

    Raises
    ------
    KitError
        If there is no such recipe, or its text is not TOML, or a key is unknown, or a value
        has the wrong type or range; every such key is named.
    """
    try:
        text = _recipe_text(name)
        return parse_recipe(tomllib.loads(text), source=name)
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"cannot read the recipe {name}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise KitError(f"{name} is not a TOML file: {error}") from error
    except RecursionError as error:
        raise KitError(f"{name} is not a recipe: its values are nested too deeply") from error


def parse_recipe(values: dict[str, Any], *, source: str) -> Recipe:
    """Build a recipe from plain values, as TOML or JSON hold them.

    TOML has no null: there None is written as on the command line, "None".

    Raises
    ------
    KitError
        Naming `source` and every key that is unknown or has a wrong value.
    """
    values = {name: None if value == "None" else value for name, value in values.items()}
    try:
        return _RECIPE.validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise KitError(f"{source}: {describe_errors(error)}") from error


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain values, as JSON holds them."""
    values: dict[str, Any] = _RECIPE.dump_python(recipe, mode="json")
    return values


def _recipe_text(name: str) -> str:
    if name in recipe_names():
        return resources.files("kit.recipes").joinpath(f"{name}.toml").read_text("utf-8")
    if not Path(name).is_file():
        known = ", ".join(recipe_names())
        raise KitError(f"no recipe {name}: give a TOML file, or one of {known}")
    return Path(name).read_text("utf-8")
