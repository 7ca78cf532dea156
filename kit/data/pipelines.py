"""A recipe's random transforms: the kit's own, or any pipeline of albumentations."""

from typing import cast

import numpy as np

from kit.base import Array, Augmentation, KitError, Recipe, explain_custom, load_custom
from kit.data.transforms import Keys, Pipeline, TileAugmentation, augmentation, is_pipeline


class PerTile:
    """Any albumentations pipeline, seeded for each tile by its key.

    Albumentations 2.0.8 gives every loader worker the same draws, and the same again each
    epoch. Seeding each tile by what it is, not by who loads it, makes the draws independent
    of the number of workers, and those of a resumed run the same.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def __call__(self, images: Array, keys: Keys) -> Array:
        """Return the transformed images."""
        return np.stack([self._one(*item) for item in zip(images, keys, strict=True)])

    def _one(self, image: Array, key: np.uint64) -> Array:
        self.pipeline.set_random_seed(int(key >> np.uint64(32)))
        transformed: Array = self.pipeline(image=image)["image"]
        shape, kind = tuple(transformed.shape), transformed.dtype
        if not isinstance(transformed, np.ndarray) or shape[2:] != (3,) or kind != np.uint8:
            raise KitError(
                f"the pipeline turns tiles into {type(transformed).__name__} {shape} {kind}, not "
                "into (height, width, 3) uint8 arrays: leave out ToTensorV2, which the dataset "
                "does, and Normalize, which the training does"
            )
        return transformed


def recipe_augmentation(recipe: Recipe) -> TileAugmentation | PerTile | None:
    """Return the random transforms of a recipe: the kit's, or a person's own pipeline.

    Raises
    ------
    KitError
        If the person's code fails, or is no pipeline of albumentations that keeps a tile's size.
    """
    if "augment" not in recipe.custom:
        return augmentation(cast(Augmentation, recipe.augment), recipe.stain_strength)
    pipeline = load_custom(recipe.augment)
    if not is_pipeline(pipeline):
        raise KitError(
            f"{recipe.augment} is of the type {type(pipeline).__name__}: name a pipeline, "
            "albumentations.Compose([...])"
        )
    augment = PerTile(pipeline)
    tile = np.zeros((1, recipe.size, recipe.size, 3), np.uint8)
    with explain_custom(recipe.augment, "with a black tile"):
        shape = augment(tile, np.zeros(1, np.uint64)).shape[1:]
    if shape != tile.shape[1:]:
        raise KitError(
            f"{recipe.augment} turns tiles of {tile.shape[1:]} into {shape}: the size is the "
            "recipe's, --size, and tiles have it before they are augmented"
        )
    return augment
