"""What each recipe takes on Kaggle's T4, estimated: kaggle_hours.py.

Claim: every recipe fits into a free account's 12 hours, and into its 30 GPU hours a week. Nothing
was measured on a T4. Training was measured on an H100 (benchmarks/README.md), whose peak in half
precision is 15 times a T4's (989 and 65 TFLOP/s by NVIDIA's data sheets). What was not measured,
evaluating, is in proportion to its operations (torch.utils.flop_counter). Takes some seconds and
prints 1.7 hours for a run of `backbone`, 5.6 for five folds on two T4.
"""

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from kit import models
from kit.base import Recipe, read_recipe, recipe_names

TRAIN_TILES, TEST_TILES = 220_025, 57_458
# Tiles/s on the H100, in the recipes' own batches.
MEASURED = {"small": 160_601, "compact": 18_294, "resnet50": 3_186}
SLOWER = 989 / 65
BATCH = 4


def operations(recipe: Recipe) -> tuple[int, int]:
    """Return those of a tile in a training step, and in an evaluation."""
    model = models.create_model(replace(recipe, pretrained=False, probe="none"))
    images = torch.rand(BATCH, 3, recipe.size, recipe.size)
    with FlopCounterMode(display=False) as step:
        model(images).sum().backward()
    with FlopCounterMode(display=False) as evaluation, torch.no_grad():
        model.eval()(images)
    return step.get_total_flops() // BATCH, evaluation.get_total_flops() // BATCH


def hours(recipe: Recipe) -> tuple[float, float]:
    """Return the hours of a run on the competition's tiles, and of predicting the test tiles."""
    step, evaluation = operations(recipe)
    train = SLOWER / MEASURED[recipe.model] / 3600
    evaluate = train * evaluation / step
    drawn = min(TRAIN_TILES, 2 * (recipe.per_class or TRAIN_TILES))
    predicting = TEST_TILES * recipe.views * evaluate
    if recipe.probe != "none":
        return drawn * evaluate, predicting
    held_out = drawn * recipe.holdout
    epoch = (drawn - held_out) * train + held_out * evaluate
    return recipe.epochs * epoch + held_out * recipe.views * evaluate, predicting


print(
    "recipe      GFLOP of a step, per tile   one run, h   predicting, h   five folds on two T4, h"
)
for name in recipe_names():
    recipe = read_recipe(name)
    run, predicting = hours(recipe)
    # Two T4 take three turns. A probe encodes each tile once, for all folds.
    turns = 1 if recipe.probe != "none" else 3
    print(
        f"{name:12}{operations(recipe)[0] / 1e9:25.3f}{run:13.2f}{predicting:16.2f}"
        f"{turns * (run + predicting):26.2f}"
    )
