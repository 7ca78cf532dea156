"""A recipe's random transforms: the kit's own, or any pipeline of albumentations."""

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from kit.base import (
    Array,
    Augmentation,
    CustomCode,
    KitError,
    Recipe,
    explain_custom,
    load_code,
    read_custom,
)
from kit.data.transforms import Keys, TileAugmentation, augmentation

if TYPE_CHECKING:
    import albumentations

Pipeline: TypeAlias = "albumentations.Compose"


class PerTile:
    """Any albumentations pipeline, seeded for each tile by its key.

    Albumentations 2.0.8 gives every loader worker the same draws, and the same again each
    epoch. Seeding each tile by what it is, not by who loads it, makes the draws independent
    of the number of workers, and those of a resumed run the same.

    Parameters
    ----------
    code
        A person's own that the pipeline comes from, if it does.
    """

    def __init__(self, pipeline: Pipeline, code: CustomCode | None = None) -> None:
        self.pipeline = pipeline
        self.code = code

    def __reduce__(self) -> Any:
        """Send a worker that is not forked the code itself: no pickle holds its functions."""
        return (PerTile, (self.pipeline,)) if self.code is None else (_per_tile, (self.code,))

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


def _per_tile(code: CustomCode) -> PerTile:
    return PerTile(load_code(code), code)


def recipe_augmentation(recipe: Recipe) -> TileAugmentation | PerTile | None:
    """Return the random transforms of a recipe: the kit's, or a person's own pipeline.

    Raises
    ------
    KitError
        If the person's code fails, or is no pipeline of albumentations that keeps a tile's size.
    """
    if "augment" not in recipe.custom:
        return augmentation(cast(Augmentation, recipe.augment), recipe.stain_strength)
    code = read_custom(recipe.augment)
    pipeline = load_code(code)
    # It takes a second to import, which whoever brings no pipeline can do without.
    from albumentations import Compose

    if not isinstance(pipeline, Compose):
        raise KitError(
            f"{recipe.augment} is of the type {type(pipeline).__name__}: name a pipeline, "
            "albumentations.Compose([...])"
        )
    augment = PerTile(pipeline, code)
    tile = np.zeros((1, recipe.size, recipe.size, 3), np.uint8)
    with explain_custom(recipe.augment, "with a black tile"):
        shape = augment(tile, np.zeros(1, np.uint64)).shape[1:]
    if shape != tile.shape[1:]:
        raise KitError(
            f"{recipe.augment} turns tiles of {tile.shape[1:]} into {shape}: the size is the "
            "recipe's, --size, and tiles have it before they are augmented"
        )
    return augment
