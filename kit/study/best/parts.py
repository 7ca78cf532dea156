"""The parts of a search for the best submission, those that bring most for their time first."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from kit.base import KitError, Recipe, Views, read_recipe
from kit.models import cached_weights, create_encoder, find_source, follow_model

MOST_ENCODERS = 4
"""More are not looked at, unless they are named."""
SEEDS = 5
_PROBE_SIZE = 96
# As many maps as `compact` has in all orientations; as good, and different.
_PLAIN_WIDTHS = (48, 96, 192)
# Measured in docs/results.md: a convolutional encoder on tiles of their own size, tuned as a whole.
_TUNED: dict[str, Any] = {
    "size": 96,
    "normalize": "model",
    "augment": "full",
    "epochs": 16,
    "batch_size": 32,
    "lr": 1e-3,
    "ema": 0.995,
    "frozen_epochs": 0,
    "label_smoothing": 0.1,
}


@dataclass(frozen=True)
class EncoderFile:
    """A timm model and the file of its weights."""

    model: str
    weights: Path

    @property
    def short_name(self) -> str:
        """What the folders of its runs are called."""
        return self.model.rstrip("/").rpartition("/")[2]

    @property
    def fixed_size(self) -> int | None:
        """The side of its input, where it takes no other, as vision transformers do."""
        source = find_source(self.model)
        return source.size if source.config.get("fixed_input_size") else None


@dataclass(frozen=True)
class Part:
    """A run, or a run per fold, that may become part of the mean.

    Attributes
    ----------
    name
        Of its folder.
    is_main
        Of those that are tried before further seeds.
    """

    name: str
    recipe: Recipe
    is_main: bool = True


def find_encoders(named: Sequence[str]) -> list[EncoderFile]:
    """Return the encoders that are named, or those whose weights are at hand, small ones first.

    Parameters
    ----------
    named
        MODEL=FILE, or MODEL alone where its weights are in a cache.

    Raises
    ------
    KitError
        If one has no weights here.
    """
    cached = cached_weights()
    if not named:
        found = sorted((EncoderFile(*pair) for pair in cached.items()), key=_size)
        return list(islice(filter(_works, found), MOST_ENCODERS))
    return sorted((_read_encoder(text, cached) for text in named), key=_size)


def _works(encoder: EncoderFile) -> bool:
    """Whether a model takes the weights that a cache holds for it, and its tiles."""
    size = encoder.fixed_size or _PROBE_SIZE
    try:
        recipe = replace(_start_from(read_recipe("probe"), encoder), size=size)
        create_encoder(follow_model(recipe))
    except KitError as error:
        print(f"note: {encoder.model}, which a cache holds, is left out: {error}", file=sys.stderr)
        return False
    return True


def _read_encoder(text: str, cached: Mapping[str, Path]) -> EncoderFile:
    model, _, file = text.partition("=")
    weights = Path(file) if file else cached.get(model)
    if weights is None:
        here = ", ".join(cached) or "of none"
        raise KitError(
            f"--encoder {text}: its weights are not in a cache of this machine (there are those "
            f"{here}): give their file, --encoder {model}=FILE"
        )
    if not weights.is_file():
        raise KitError(f"--encoder {text}: no weights at {weights}")
    find_source(model)
    return EncoderFile(model, weights)


def _size(encoder: EncoderFile) -> int:
    return encoder.weights.stat().st_size


def list_parts(encoders: Sequence[EncoderFile], common: Mapping[str, Any]) -> list[Part]:
    """Return what may be trained, in the order in which time is spent.

    A probe of the smallest encoder is there within a minute or so; the same encoder tuned is the
    best single run that is known; a probe of the largest in all views and `compact` see other
    things, and are worth more beside it than a second seed.

    Parameters
    ----------
    common
        Fields of every recipe: which tiles are held out, and the seed.
    """
    tunable = [one for one in encoders if one.fixed_size is None]
    tuned = [_tuned(one, common) for one in tunable]
    compact = Part("compact-0", replace(read_recipe("compact"), **common))
    plain = replace(compact.recipe, orientations=1, widths=_PLAIN_WIDTHS, views=8)
    return [
        *([_probe(encoders[0], common, views=1)] if encoders else []),
        *tuned[:1],
        *(_probe(one, common, views=8) for one in encoders[-1:]),
        compact,
        *tuned[1:],
        *(_probe(one, common, views=8) for one in encoders[-2::-1]),
        Part("compact-plain-0", plain, is_main=False),
        *(_further_seeds([*tuned[:1], compact]) if common.get("validate_on") else ()),
    ]


def _further_seeds(first: Sequence[Part]) -> Iterator[Part]:
    """Yield other seeds of some parts in turn, where the seed does not choose the holdout."""
    for seed in range(1, SEEDS):
        for part in first:
            name = f"{part.name.removesuffix('-0')}-{seed}"
            recipe = replace(part.recipe, seed=part.recipe.seed + seed)
            yield Part(name, recipe, is_main=False)


def _probe(encoder: EncoderFile, common: Mapping[str, Any], *, views: Views) -> Part:
    recipe = _start_from(read_recipe("probe"), encoder)
    size = encoder.fixed_size or (_PROBE_SIZE if views == 1 else 128)
    name = f"probe-{encoder.short_name}-{size}-{views}"
    return Part(name, replace(recipe, size=size, views=views, **common))


def _tuned(encoder: EncoderFile, common: Mapping[str, Any]) -> Part:
    recipe = _start_from(read_recipe("backbone"), encoder)
    return Part(f"tuned-{encoder.short_name}-0", replace(recipe, **_TUNED, **common))


def _start_from(recipe: Recipe, encoder: EncoderFile) -> Recipe:
    return replace(recipe, model=encoder.model, pretrained=False, weights=encoder.weights)
