"""The jitter of stains as a transform of albumentations, which takes a second to import."""

from typing import Any

import albumentations as A

from kit.base import Array, Floats
from kit.data.stains import jitter_stains, stain_draws


class StainJitter(A.ImageOnlyTransform):  # type: ignore[misc]
    """Jitter haematoxylin and eosin as `jitter_stains` does, for use in `A.Compose`.

    Parameters
    ----------
    strength
        Densities are scaled by up to 30 % and shifted by up to 0.2, both times this.
    p
        Probability of the transform.

    References
    ----------
    Tellez et al., Whole-slide mitosis detection in H&E breast histology, 2018.
    """

    def __init__(self, strength: float = 1.0, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.strength = strength

    def get_params(self) -> dict[str, Any]:
        """Draw the factors and the offsets of both stains."""
        draws = self.random_generator.uniform(size=(1, 4))
        scales, shifts = stain_draws(draws, self.strength)
        return {"scales": scales, "shifts": shifts}

    def apply(self, img: Array, *, scales: Floats, shifts: Floats, **_: Any) -> Array:
        """Return the image with other stains."""
        image: Array = jitter_stains(img[None], scales, shifts)[0]
        return image
