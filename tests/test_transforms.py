"""The kit's own transforms are those of albumentations, drawn in another way."""

from collections import Counter

import albumentations as A
import cv2
import numpy as np
import pytest
from albumentations.augmentations.pixel import functional as reference
from scipy import stats

from kit.base import Augmentation, Interpolation
from kit.data import Resize, StainJitter, augmentation, stains, transforms

RNG = np.random.default_rng(0)
# Purple tissue with white background, as tiles have them.
TISSUE = RNG.normal((180, 110, 170), 45, (64, 24, 24, 3)).clip(0, 255).astype(np.uint8)
TISSUE[:, :8] = RNG.integers(215, 256, (64, 8, 24, 3))
# One bright pixel, so that each of the eight symmetries of the square looks different.
MARKED = np.zeros((4, 4, 3), np.uint8)
MARKED[0, 1] = 255


def keys(count: int, *, epoch: int = 1, seed: int = 0) -> np.ndarray:
    return transforms.tile_keys(seed, np.full(count, epoch), np.arange(count))


def mean_colours(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1, 3).mean(1)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "area", "bicubic"])
@pytest.mark.parametrize(("crop", "size"), [(24, 24), (24, 9), (20, 20), (17, 31)])
def test_resize_is_albumentations(crop: int, size: int, interpolation: Interpolation) -> None:
    codes = {
        "nearest": cv2.INTER_NEAREST_EXACT,
        "bilinear": cv2.INTER_LINEAR,
        "area": cv2.INTER_AREA,
        "bicubic": cv2.INTER_CUBIC,
    }
    theirs = A.Compose(
        [A.CenterCrop(crop, crop), A.Resize(size, size, interpolation=codes[interpolation])]
    )
    ours = Resize(crop, size, interpolation)
    for image in TISSUE[:4]:
        np.testing.assert_array_equal(ours(image), theirs(image=image)["image"])


def test_symmetries_are_the_eight_of_the_square() -> None:
    expected = {
        np.rot90(flipped, turns).tobytes()
        for flipped in (MARKED, MARKED[:, ::-1])
        for turns in range(4)
    }
    assert {transforms.symmetry(MARKED, element).tobytes() for element in range(8)} == expected


def test_d4_draws_each_symmetry_equally_often() -> None:
    augment = augmentation("d4")
    assert augment is not None
    images = augment(np.repeat(MARKED[None], 1600, axis=0), keys(1600))
    seen = Counter(image.tobytes() for image in images)
    assert len(seen) == 8
    assert stats.chisquare(list(seen.values())).pvalue > 0.001


def test_stains_are_jittered_as_albumentations_does() -> None:
    scales, shifts = RNG.uniform(0.7, 1.3, (64, 2)), RNG.uniform(-0.2, 0.2, (64, 2))
    jittered = stains.jitter_stains(TISSUE, scales, shifts).astype(int)
    preset = reference.STAIN_MATRICES["ruifrok"]
    for image, scale, shift, ours in zip(TISSUE, scales, shifts, jittered, strict=True):
        theirs = reference.apply_he_stain_augmentation(image, preset, scale, shift, False)
        # At 85 % of white itself, rounding decides what is background.
        certain = np.abs(image @ (0.299, 0.587, 0.114) - 0.85 * 255) > 1e-6
        assert np.abs(theirs.astype(int) - ours)[certain].max() <= 1


def test_background_keeps_its_densities() -> None:
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    jittered = stains.jitter_stains(white, np.full((1, 2), 1.3), np.full((1, 2), 0.2))
    np.testing.assert_array_equal(jittered, white)


def test_stains_have_the_same_distribution_as_in_albumentations() -> None:
    """Colours of one tile, many times jittered: three ways to draw, one distribution."""
    count = 400
    theirs = A.Compose(
        [A.HEStain(method="preset", preset="ruifrok", augment_background=False, p=1)], seed=1
    )
    ours = A.Compose([StainJitter()], seed=2, strict=True)
    batch = augmentation("stain")
    assert batch is not None
    expected = mean_colours(np.stack([theirs(image=TISSUE[0])["image"] for _ in range(count)]))
    for drawn in (
        np.stack([ours(image=TISSUE[0])["image"] for _ in range(count)]),
        batch(np.repeat(TISSUE[:1], count, axis=0), keys(count)),
    ):
        colours = mean_colours(drawn)
        for channel in range(3):
            test = stats.ks_2samp(colours[:, channel], expected[:, channel])
            assert test.pvalue > 0.001


def test_colours_are_jittered_by_the_written_out_formula() -> None:
    gains, grays = RNG.uniform(0.85, 1.15, (64, 3)), RNG.uniform(0, 1, 64)
    jittered = transforms.jitter_colours(TISSUE, gains, grays)
    scaled = TISSUE * gains[:, None, None]
    share = grays[:, None, None, None]
    expected = (1 - share) * scaled + share * scaled.mean(-1, keepdims=True)
    # OpenCV multiplies uint8 in fixed point.
    assert np.abs(jittered - expected.clip(0, 255)).max() <= 1


def test_all_grey_leaves_no_colour() -> None:
    grey = transforms.jitter_colours(TISSUE[:1], np.ones((1, 3)), np.ones(1))
    assert np.ptp(grey.astype(int), axis=-1).max() == 0


def test_strength_widens_the_jitter() -> None:
    spreads = []
    for strength in (0.5, 1.0, 2.0):
        augment = augmentation("stain", strength)
        assert augment is not None
        spreads.append(mean_colours(augment(np.repeat(TISSUE[:1], 200, axis=0), keys(200))).std())
    assert spreads == sorted(spreads)


@pytest.mark.parametrize("kind", ["d4", "stain", "colour"])
def test_a_tile_alone_is_the_tile_in_a_batch(kind: Augmentation) -> None:
    augment = augmentation(kind)
    assert augment is not None
    batch = augment(TISSUE, keys(64))
    alone = [augment(TISSUE[[index]], keys(64)[[index]])[0] for index in range(64)]
    np.testing.assert_array_equal(batch, np.stack(alone))


def test_uniforms_are_splitmix64() -> None:
    """The generator's published first numbers for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    expected = [(number >> 11) / 2**53 for number in published]
    drawn = transforms.uniforms(np.array([1234567], np.uint64), 3)
    assert drawn.tolist() == [expected]


def test_uniforms_are_uniform_and_uncorrelated_over_tiles_and_epochs() -> None:
    drawn = np.stack([transforms.uniforms(keys(2000, epoch=epoch), 2) for epoch in (1, 2)])
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 0.001
    columns = drawn.transpose(0, 2, 1).reshape(4, -1)
    # The correlation of 2,000 independent pairs has a standard deviation of 0.022.
    assert np.abs(np.corrcoef(columns) - np.eye(4)).max() < 0.1


def test_keys_differ_by_seed_epoch_and_index() -> None:
    drawn = [keys(500, epoch=epoch, seed=seed) for epoch in (1, 2) for seed in (0, 1)]
    assert len(np.unique(drawn)) == 2000


def test_turning_by_a_quarter_is_that_of_the_square() -> None:
    images = TISSUE[:4]
    turned = transforms.turn_and_zoom(images, np.full(4, 90.0), np.ones(4))
    np.testing.assert_array_equal(turned, np.rot90(images, 1, (1, 2)))


def test_zooming_enlarges_about_the_centre_that_stays_in_place() -> None:
    ramp = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], 24, 0).repeat(3, 2)
    zoomed, shrunk = transforms.turn_and_zoom(
        np.stack([ramp, ramp]), np.zeros(2), np.array([2.0, 0.8])
    )
    # Beside the centre, half a pixel either way: 115 less or more half a step times the scale.
    np.testing.assert_allclose(zoomed[12, 11:13, 0], [112.5, 117.5], atol=1)
    np.testing.assert_allclose(shrunk[12, 11:13, 0], [108.75, 121.25], atol=1)


def test_blurring_is_opencvs_and_spares_what_it_should() -> None:
    blurred = transforms.blur(TISSUE[:2], np.array([0.0, 0.9]))
    np.testing.assert_array_equal(blurred[0], TISSUE[0])
    np.testing.assert_array_equal(blurred[1], cv2.GaussianBlur(TISSUE[1], (0, 0), 0.9))


def test_the_full_augmentation_follows_from_the_keys_alone() -> None:
    augment = augmentation("full")
    assert augment is not None
    together = augment(TISSUE, keys(len(TISSUE)))
    one_by_one = [augment(TISSUE[i : i + 1], keys(len(TISSUE))[i : i + 1]) for i in range(8)]
    np.testing.assert_array_equal(together[:8], np.concatenate(one_by_one))
    assert not np.array_equal(together, augment(TISSUE, keys(len(TISSUE), epoch=2)))
