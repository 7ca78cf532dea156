"""Which type of numbers a network trains faster in on a CPU, measured on a few steps.

Depthwise convolutions train slower in bf16 than in fp32 even where the CPU computes in bf16, other
layers faster: what is right for one model is wrong for the next.
"""

import sys
import time
from collections.abc import Iterable
from dataclasses import replace

import torch

from kit import models
from kit.base import CHANNELS, OWN_ONLY, Precision, Recipe
from kit.training import distributed
from kit.training.device import choose_device, choose_precision, explain_full_memory
from kit.training.gradients import compute_gradients
from kit.training.state import TrainingState

# Tiles of a step, steps in each type, and the seconds after which two are enough.
_TILES, _STEPS, _ENOUGH = 8, 3, 1.0
_TYPES: tuple[Precision, ...] = ("fp32", "bf16")
# What a step costs depends on these options, and on no others of a recipe.
_COSTLY = ("model", "size", "batch_size", "lora", "checkpoint_blocks", *OWN_ONLY)


def leaves_precision_open(recipe: Recipe) -> bool:
    """Whether a recipe trains a timm model in whatever type is faster."""
    return recipe.precision == "auto" and recipe.is_backbone and not recipe.is_probe


def settle_precision(recipes: Iterable[Recipe], *, device: str) -> Precision:
    """Return what `auto` is for these recipes together, and say so where it was measured.

    Parameters
    ----------
    recipes
        All of them leave it open, see `leaves_precision_open`.

    Returns
    -------
    str
        fp32 or bf16; auto where `step_seconds` measures nothing.

    Raises
    ------
    KitError
        As `step_seconds`.
    """
    seconds = step_seconds(recipes, device=device)
    if not seconds:
        return "auto"
    fastest = min(seconds, key=seconds.__getitem__)
    told = ", ".join(f"{1000 * value:.3g} ms in {name}" for name, value in seconds.items())
    print(
        f"note: trains in {fastest}, which is faster here ({told} per tile, of this process's own "
        "time), and records it. Where both are about as fast, another training may measure "
        f"otherwise: --precision {fastest} fixes it",
        file=sys.stderr,
    )
    return fastest


def step_seconds(recipes: Iterable[Recipe], *, device: str) -> dict[Precision, float]:
    """Measure what a training step of these recipes takes per tile, in fp32 and in bf16.

    The time counted is this process's own, so that other programs count for nothing; that of
    several processes (see `distributed`) is summed. Nothing follows from what is computed, and no
    random number is drawn from it.

    Returns
    -------
    dict
        Seconds, over all recipes together; empty on a GPU and on CPUs that have no bf16, where
        there is no question.

    Raises
    ------
    KitError
        If a model cannot be built, or the memory is full.
    """
    chosen = choose_device(device)
    is_open = chosen.type == "cpu" and choose_precision("auto", chosen) != torch.float32
    if not all(distributed.all_reduce(is_open, operation="min")):
        return {}
    networks = {
        replace(
            Recipe(**{name: getattr(recipe, name) for name in _COSTLY}),
            batch_size=min(recipe.batch_size, _TILES),
        )
        for recipe in recipes
    }
    with explain_full_memory(chosen, "measuring a step", "choose a smaller --size"):
        times = [_time(network) for network in networks]
    sums = distributed.all_reduce(*(sum(one[name] for one in times) for name in _TYPES))
    return dict(zip(_TYPES, sums, strict=True))


def with_precision(recipe: Recipe, precision: Precision) -> Recipe:
    """Return a recipe that computes in what `auto` was found to be, where it left that open."""
    return replace(recipe, precision=precision) if leaves_precision_open(recipe) else recipe


def _time(recipe: Recipe) -> dict[Precision, float]:
    """Return the seconds of a training step per tile in each type, the least after a first try."""
    times: dict[Precision, list[float]] = {name: [] for name in _TYPES}
    with torch.random.fork_rng(devices=[]):
        state = TrainingState(models.create_model(recipe), recipe)
        models.freeze_backbone(state.model, frozen=False)
        state.model.train()
        side = recipe.size
        images = torch.randint(256, (recipe.batch_size, CHANNELS, side, side), dtype=torch.uint8)
        batch = images.contiguous(memory_format=torch.channels_last), torch.zeros(len(images))
        begun = time.perf_counter()
        for step in range(_STEPS):
            if step > 1 and time.perf_counter() - begun > _ENOUGH:
                break
            for name in _TYPES:
                state.dtype = choose_precision(name, state.device)
                start = time.process_time()
                compute_gradients(state, state.model, *batch)
                times[name].append(time.process_time() - start)
    return {name: min(tries[1:]) / len(images) for name, tries in times.items()}
