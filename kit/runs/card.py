"""A run's model card: Markdown for a person, with the metadata that the Hugging Face hub reads."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

from kit import stats
from kit.base import Recipe, competition, recipe_words
from kit.models import CARDS, find_source, is_elsewhere
from kit.runs.folder import read_config, refit_of
from kit.runs.predictions import read_metrics, read_valid
from kit.runs.trained import TrainedModel
from kit.stats import Interval

_TEXT = Template("""\
---
$metadata
---

# $name

`$model`, trained on tiles of PatchCamelyon$standin: its one logit is that of tumour in a tile's
central 32x32 pixels.

**For research and teaching only: this is not a medical device. Do not use it for diagnosis.**

## Load it

$loading

## Data

96x96 RGB tiles of lymph node sections, stained with haematoxylin and eosin, from Kaggle's
competition Histopathologic Cancer Detection: PatchCamelyon (Veeling et al., 2018) without its
duplicates, cut from the slides of CAMELYON16. The tiles are in the public domain (CC0).
$train_tiles tiles were trained on and $valid_tiles held out. $holdout$refit$teachers

## Figures

On the $valid_tiles held-out tiles, with $views:

| figure | value [95 % interval] | the interval is for |
|---|---|---|
$figures

No interval here is for other hospitals, scanners or stains.$optimistic

## Limits

- One run: another seed gives other figures, and no interval here says by how much.
- It knows tiles of 96x96 pixels at 0.97 micrometres a pixel. For any other image it answers,
  too, and its answer means nothing.
- Tiles of the competition's test split were not trained on. Where its slides were in the data that
  a pretrained model saw, figures on them are too high.

## Licence

$licence

## How it was made

Histopathologic cancer kit $kit, PyTorch $torch; SHA-256 of the tiles' ids and labels $fingerprint.

    python kernels/train.py $options
""")


_REFIT = """
The weights are those of a refit, trained on the held-out tiles as well. All figures are those of
the run before it, which was not."""


_TEACHERS = """
It was trained towards what other models of this kit say of these tiles: $teachers. Their licences,
and those of what they began with, may hold for it."""


@dataclass(frozen=True)
class CardFacts:
    """What a model card says that the run's folder alone does not.

    Attributes
    ----------
    licence
        Of the weights, by the hub's name; by default what is known of those it began with.
    over_slides
        The AUC with an interval for new slides, from `auc_over_slides`.
    """

    licence: str | None = None
    over_slides: Interval | None = None


def model_card(folder: Path, trained: TrainedModel, loading: str, facts: CardFacts) -> str:
    """Return a model's README.md for the hub.

    Parameters
    ----------
    folder
        Of the run.
    loading
        Markdown: how to load the model, and how near that is to the run.
    """
    config, figures = read_config(folder), read_metrics(folder)
    recipe = _without_folders(trained.recipe)
    licence = facts.licence or _licence_of_start(recipe)
    return _TEXT.substitute(
        {name: config.get(name) for name in ("kit", "torch")},
        metadata=_metadata(trained.name, figures, licence),
        name=trained.name,
        model=recipe.model,
        standin=" (synthetic ones: it says nothing of real tiles)" if trained.is_standin else "",
        loading=loading.strip("\n"),
        train_tiles=f"{config['data']['train_tiles']:,}",
        valid_tiles=f"{figures['tiles']:,}",
        holdout=_holdout(recipe),
        refit="" if refit_of(folder) is None else _REFIT,
        teachers=_teachers(recipe, config.get("teachers", {})),
        figures="\n".join(_rows(folder, figures, facts)),
        views="the mean over eight views of each" if recipe.views == 8 else "one view of each",
        optimistic=_optimistic(recipe, figures),
        licence=_licence_text(recipe, licence),
        fingerprint=config["data"]["fingerprint"],
        options=shlex.join(recipe_words(recipe)),
    )


def _without_folders(recipe: Recipe) -> Recipe:
    """Return a recipe whose files have no folders: where they lie here is nobody else's concern."""
    kind, found, place = recipe.model.partition("local-dir:")
    return replace(
        recipe,
        model=f"{kind}{found}{Path(place).name}",
        weights=recipe.weights and Path(recipe.weights.name),
        slides=recipe.slides and Path(recipe.slides.name),
        teacher=tuple(Path(run.name) for run in recipe.teacher),
    )


def _teachers(recipe: Recipe, fingerprints: dict[str, str]) -> str:
    """Name the teachers that a run listened to, and the SHA-256 of their weights."""
    if not recipe.is_taught:
        return ""
    named = [f"{Path(run).name} (SHA-256 of weights {sha})" for run, sha in fingerprints.items()]
    return Template(_TEACHERS).substitute(teachers=", ".join(named))


def _metadata(name: str, figures: dict[str, Any], licence: str | None) -> str:
    # Its import takes half a second.
    from huggingface_hub import EvalResult, ModelCardData

    measured = {
        "AUC": ("roc_auc", figures["auc"]["estimate"]),
        "accuracy": ("accuracy", figures["accuracy"]),
    }
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=competition.SLUG,
            dataset_name="Histopathologic Cancer Detection (PatchCamelyon), held-out tiles",
            metric_type=kind,
            metric_name=metric,
            metric_value=value,
        )
        for metric, (kind, value) in measured.items()
    ]
    data = ModelCardData(
        license=licence or "unknown",
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["timm", "image-classification", "histopathology", "patchcamelyon"],
        datasets=[competition.SLUG],
        metrics=["roc_auc", "accuracy"],
        model_name=name,
        eval_results=results,
    )
    return data.to_yaml().strip()


def _holdout(recipe: Recipe) -> str:
    if recipe.slides is not None:
        return "No slide is on both sides."
    return (
        "Tiles of one slide look alike and are on both sides, so the figures are too high: on "
        "other slides they will be lower."
    )


def _rows(folder: Path, figures: dict[str, Any], facts: CardFacts) -> Iterator[str]:
    valid = read_valid(folder)
    counts = stats.confusion(valid["label"].to_numpy(), valid["probability"].to_numpy(), 0.5)
    of_tiles = "new tiles of these slides"
    yield f"| AUC | {Interval(**figures['auc'])} | {of_tiles} |"
    if facts.over_slides is not None:
        yield f"| AUC | {facts.over_slides} | new slides (jackknife over slides) |"
    shares = {name: getattr(counts, name) for name in ("sensitivity", "specificity", "accuracy")}
    for name, share in shares.items():
        yield f"| {name} at a probability of 0.5 | {share} | {of_tiles} |"
    yield f"| log loss | {figures['log_loss']:.4f} | |"
    yield f"| calibration error | {figures['expected_calibration_error']:.4f} | |"


def _optimistic(recipe: Recipe, figures: dict[str, Any]) -> str:
    if recipe.keep != "best":
        return ""
    return (
        f" The weights are those after epoch {figures['kept_epoch']}, which did best on these "
        "tiles, so the figures are optimistic."
    )


def _licence_of_start(recipe: Recipe) -> str | None:
    """Return the licence of the published weights that a run began with, if it says."""
    if not recipe.pretrained:
        return None
    if recipe.model in CARDS:
        return CARDS[recipe.model].licence.lower().replace(" ", "-")
    if is_elsewhere(recipe.model):
        # Its page says, which is not asked for here.
        return None
    licence = find_source(recipe.model).config.get("license")
    return str(licence) if licence else None


def _licence_text(recipe: Recipe, licence: str | None) -> str:
    named = f"{licence}." if licence else "Not said: ask whoever published this model."
    if recipe.pretrained:
        begun = "published weights"
    elif recipe.weights:
        begun = f"the weights of {recipe.weights.name}"
    else:
        return f"{named} The training began from random weights."
    return f"{named} The training began from {begun}, and their terms hold for these as well."
