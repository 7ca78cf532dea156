"""Transforms of tensors are those of OpenCV, within rounding."""

import numpy as np
import pytest
import torch

from kit.base import Augmentation, Interpolation
from kit.data import Resize, augmentation, resize_batch, tensor_transforms, transforms

RNG = np.random.default_rng(0)
# Soft shapes, as a microscope shows them: neighbours differ by a few levels.
SOFT = transforms.blur(
    RNG.normal((150, 90, 140), 60, (64, 24, 24, 3)).clip(0, 255).astype(np.uint8), np.full(64, 1.5)
)


def keys(count: int = 64) -> np.ndarray:
    return transforms.tile_keys(0, np.ones(count, int), np.arange(count))


def both(augmentation: transforms.TileAugmentation) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch by OpenCV and by tensors, as integers that can be subtracted."""
    own = tensor_transforms.tile_keys(0, 1, torch.arange(len(SOFT)))
    tensors = tensor_transforms.augment(torch.from_numpy(SOFT), augmentation, own)
    assert tensors.dtype == torch.uint8
    return augmentation(SOFT, keys()).astype(int), tensors.numpy().astype(int)


def test_symmetries_are_the_same() -> None:
    np.testing.assert_array_equal(*both(transforms.TileAugmentation()))


@pytest.mark.parametrize(
    "options",
    [{"stains": True}, {"gain": 0.15, "gray": 1.0}, {"blur": 0.8}],
    ids=["stains", "colours", "blur"],
)
def test_each_transform_is_the_same_within_a_level(options: dict[str, float]) -> None:
    augmentation = transforms.TileAugmentation(**options)  # type: ignore[arg-type]
    by_opencv, by_tensors = both(augmentation)
    assert np.abs(by_opencv - by_tensors).max() <= 1
    assert np.abs(by_opencv - SOFT).max() > 10


@pytest.mark.parametrize(
    ("resize", "differing"),
    [
        (Resize(24, 7, "nearest"), 0.0),
        (Resize(20, 31, "nearest"), 0.0),
        (Resize(24, 56, "bicubic"), 0.001),
        (Resize(24, 13, "area"), 0.001),
        # A quarter of the means of four bytes are halves, which OpenCV rounds up here.
        (Resize(24, 12, "area"), 0.2),
        # Their weights are coarse in OpenCV.
        (Resize(16, 24, "bilinear"), 0.2),
        (Resize(16, 24, "area"), 0.2),
    ],
)
def test_a_batch_is_resized_as_each_image(resize: Resize, differing: float) -> None:
    expected = np.stack([resize(image) for image in SOFT]).astype(int)
    batch = resize_batch(torch.from_numpy(SOFT).permute(0, 3, 1, 2), resize)
    difference = np.abs(batch.permute(0, 2, 3, 1).numpy() - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= differing


def test_turns_and_zooms_are_the_same_within_opencvs_grid() -> None:
    """OpenCV takes the nearest of 32 places between two pixels."""
    by_opencv, by_tensors = both(transforms.TileAugmentation(zoom=0.2))
    steepest = max(np.abs(np.diff(SOFT.astype(int), axis=axis)).max() for axis in (1, 2))
    assert np.abs(by_opencv - by_tensors).max() <= 1 + 2 * steepest / 64
    assert np.abs(by_opencv - by_tensors).mean() < 0.5


@pytest.mark.parametrize("kind", ["d4", "stain", "colour", "full"])
def test_each_kind_is_the_same_but_for_a_few_levels(kind: Augmentation) -> None:
    chosen = augmentation(kind)
    assert chosen is not None
    by_opencv, by_tensors = both(chosen)
    assert np.abs(by_opencv - by_tensors).mean() < 1


def test_draws_are_the_same_to_the_bit() -> None:
    indices = torch.arange(1000)
    for seed, epoch in ((0, 1), (2**32 - 1, 24)):
        expected = transforms.tile_keys(seed, np.full(1000, epoch), np.arange(1000))
        keys = tensor_transforms.tile_keys(seed, epoch, indices)
        assert keys.numpy().view(np.uint64).tolist() == expected.tolist()
        drawn = tensor_transforms.uniforms(keys, 13)
        assert drawn.numpy().tolist() == transforms.uniforms(expected, 13).tolist()


def test_background_keeps_its_densities() -> None:
    white = torch.full((1, 3, 8, 8), 255.0)
    jittered = tensor_transforms.jitter_stains(
        white, torch.full((1, 2), 1.3), torch.full((1, 2), 0.2)
    )
    torch.testing.assert_close(jittered, white, atol=1e-3, rtol=0)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("crop", "size"), [(24, 24), (20, 20), (24, 56), (18, 31)])
def test_enlarging_is_opencvs_within_a_level(
    crop: int, size: int, interpolation: Interpolation
) -> None:
    resize = Resize(crop, size, interpolation)
    expected = np.stack([resize(image) for image in SOFT[:8]]).astype(int)
    enlarged = tensor_transforms.enlarge(torch.from_numpy(SOFT[:8]), resize)
    assert np.abs(enlarged.numpy() - expected).max() <= 1
