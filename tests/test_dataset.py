from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from conftest import Forked
from PIL import Image
from torch.utils.data import DataLoader

from kit.base import KitError, Recipe
from kit.data import (
    DeviceDataset,
    EpochSampler,
    Resize,
    TileDataset,
    augmentation,
    eval_loader,
    fits_on_device,
    recipe_dataset,
    train_loader,
)

TILES = np.random.default_rng(0).integers(0, 256, (64, 96, 96, 3), dtype=np.uint8)
LABELS = np.arange(64) % 2
# One bright quarter, so that each of the eight symmetries of the square looks different.
MARKED = np.zeros((32, 8, 8, 3), np.uint8)
MARKED[:, 0, 1] = 255
AUGMENTATIONS = {
    "d4": augmentation("d4"),
    "stain": augmentation("stain"),
    "albumentations": A.Compose([A.D4(p=1), A.ColorJitter(p=1)], strict=True),
}


def epochs(workers: int, augment: str = "d4", tiles: np.ndarray = MARKED) -> list[list[bytes]]:
    """Return each tile's augmented bytes in three epochs, in the order of the tiles."""
    data = TileDataset(tiles, augment=AUGMENTATIONS[augment], seed=3)
    loader = train_loader(data, batch_size=4, workers=workers)
    seen = []
    for epoch in (1, 2, 3):
        loader.sampler.epoch = epoch  # type: ignore[attr-defined]
        steps = range(len(loader))
        order = [tile for step in steps for tile in loader.sampler.batch(step)]  # type: ignore[attr-defined]
        images = torch.cat([images for images, _ in loader]).numpy()
        seen.append([images[order.index(tile)].tobytes() for tile in range(len(tiles))])
    return seen


def test_item_is_the_tile_channels_first() -> None:
    image, label = TileDataset(TILES, LABELS)[5]
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), TILES[5].transpose(2, 0, 1))
    assert label == 1


def test_batch_is_its_items() -> None:
    data = TileDataset(TILES, LABELS, rows=np.array([9, 3, 4]))
    images, labels = data[[2, 0]]
    np.testing.assert_array_equal(images.numpy(), TILES[[4, 9]].transpose(0, 3, 1, 2))
    assert labels.tolist() == [0, 1]
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_plain_data_loader_takes_it() -> None:
    images, labels = next(iter(DataLoader(TileDataset(TILES, LABELS), batch_size=8)))
    assert images.shape == (8, 3, 96, 96)
    assert labels.tolist() == [0, 1] * 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", ["d4", "albumentations"])
def test_a_plain_data_loader_augments_differently_each_epoch(augment: str, workers: int) -> None:
    data = TileDataset(np.repeat(TILES[:1], 32, axis=0), augment=AUGMENTATIONS[augment])

    def train() -> list[bytes]:
        torch.manual_seed(1)
        loader = DataLoader(data, batch_size=8, num_workers=workers)
        return [torch.cat([images for images, _ in loader]).numpy().tobytes() for _ in range(3)]

    first, again = train(), train()
    assert len(set(first)) == 3
    assert first == again


def test_a_loader_that_nobody_tells_the_epoch_takes_the_next_one() -> None:
    loader = train_loader(TileDataset(TILES, LABELS, augment=AUGMENTATIONS["d4"]), batch_size=8)
    told = []
    for epoch in (1, 2, 3):
        loader.sampler.epoch = epoch  # type: ignore[attr-defined]
        told.append(torch.cat([images for images, _ in loader]))
    loader.sampler.epoch = 1  # type: ignore[attr-defined]
    for expected in told:
        assert torch.equal(torch.cat([images for images, _ in loader]), expected)


@pytest.mark.parametrize(
    "pipeline", [A.Compose([A.D4(), ToTensorV2()]), A.Compose([A.Normalize()])]
)
def test_a_pipeline_that_gives_no_image_is_refused(pipeline: A.Compose) -> None:
    with pytest.raises(KitError, match="leave out ToTensorV2, which the dataset does"):
        TileDataset(TILES, LABELS, augment=pipeline)


def test_unlabelled_tiles_carry_nan() -> None:
    assert torch.isnan(TileDataset(TILES)[0][1])


def test_nearest_resize_is_pillows() -> None:
    data = recipe_dataset(TILES, Recipe(size=32))
    expected = Image.fromarray(TILES[7]).resize((32, 32), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(data[7][0].permute(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("size", [24, 32, 48, 96, 128])
def test_crop_keeps_the_centre(size: int) -> None:
    tiles = np.zeros((1, 96, 96, 3), np.uint8)
    tiles[:, 32:64, 32:64] = 200
    data = recipe_dataset(tiles, Recipe(size=size, crop=32, interpolation="area"))
    assert data[0][0].shape == (3, size, size)
    assert bool((data[0][0] == 200).all())


def test_resizing_once_is_resizing_each_time() -> None:
    recipe = Recipe(size=48, crop=80, interpolation="bilinear")
    rows = np.array([5, 1, 60])
    once = recipe_dataset(TILES, recipe, labels=LABELS, rows=rows)
    each = TileDataset(TILES, LABELS, rows=rows, resize=Resize(80, 48, "bilinear"))
    for index in range(3):
        assert torch.equal(once[index][0], each[index][0])
        assert once[index][1] == each[index][1]


@pytest.mark.parametrize("augment", ["d4", "stain", "albumentations"])
def test_augmentation_does_not_depend_on_the_workers(augment: str) -> None:
    assert epochs(0, augment) == epochs(2, augment)


def test_no_two_epochs_and_no_two_tiles_repeat_their_draws() -> None:
    tiles = np.repeat(TILES[:1], 32, axis=0)
    first, second, third = epochs(2, "stain", tiles)
    for epoch in (first, second, third):
        assert len(set(epoch)) == len(tiles)
    assert not set(first) & set(second)
    assert not set(second) & set(third)


def save_augmented(path: Path) -> None:
    data = TileDataset(TILES[:1], augment=augmentation("stain"), seed=5)
    np.save(path, np.stack([data[epoch, 0][0].numpy() for epoch in range(5)]))


def test_augmentation_is_the_same_in_another_process(tmp_path: Path) -> None:
    """One that was not forked from this, with hashes of its own."""
    process = Forked(target=save_augmented, args=(tmp_path / "other.npy",))
    process.start()
    process.join()
    save_augmented(tmp_path / "own.npy")
    assert (tmp_path / "other.npy").read_bytes() == (tmp_path / "own.npy").read_bytes()


def test_epoch_takes_whole_batches_of_different_tiles() -> None:
    sampler = EpochSampler(70, batch_size=16, seed=0)
    batches = [batch for _, batch in sampler]
    assert len(batches) == len(sampler) == 4
    assert all(len(batch) == 16 for batch in batches)
    assert len({index for batch in batches for index in batch}) == 64


def test_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(100, batch_size=10, seed=seed)
        sampler.epoch = epoch
        return [index for _, batch in sampler for index in batch]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2) != order(1, 2)


def test_eval_loader_gives_each_tile_once_in_order() -> None:
    tiles = np.zeros((600, 2, 2, 3), np.uint8)
    labels = np.arange(600)
    seen = torch.cat([labels for _, labels in eval_loader(TileDataset(tiles, labels))])
    assert seen.tolist() == list(range(600))


@pytest.mark.parametrize("kind", ["d4", "stain"])
def test_centre_stays_in_the_centre(kind: str) -> None:
    """Augmentation must not move what the label is about."""
    tile = np.full((1, 96, 96, 3), 230, np.uint8)
    tile[:, 32:64, 32:64] = (120, 60, 150)
    data = TileDataset(tile, augment=augmentation(kind))  # type: ignore[arg-type]
    for epoch in range(16):
        image = data[(epoch, 0)][0]
        assert len(image[:, 32:64, 32:64].flatten(1).unique(dim=1)[0]) == 1
        assert not torch.equal(image[:, 32, 32], image[:, 31, 32])


@pytest.mark.parametrize("size", [32, 96])
def test_held_tiles_give_the_same_batches(size: int) -> None:
    recipe = Recipe(size=size, augment="d4", interpolation="area")
    rows = np.array([5, 0, 7, 2])
    plain, held = (
        recipe_dataset(TILES, recipe, labels=LABELS, rows=rows, train=True, device=device)
        for device in (None, torch.device("cpu"))
    )
    assert isinstance(held, DeviceDataset)
    for draws in ([(1, 3), (1, 0)], [(2, 2), (2, 1)]):
        for expected, found in zip(plain[draws], held[draws], strict=True):
            assert torch.equal(expected, found)
            assert expected.stride() == found.stride()


def test_held_tiles_are_enlarged_as_others_within_a_level() -> None:
    recipe = Recipe(size=112, crop=90, interpolation="bicubic")
    plain, held = (
        recipe_dataset(TILES, recipe, device=device)[[0, 1]][0].int()
        for device in (None, torch.device("cpu"))
    )
    assert (plain - held).abs().max() <= 1


def test_tiles_are_held_where_half_of_the_free_memory_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = 1000 * 96 * 96 * 3
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * needed, 10 * needed))
    cuda = torch.device("cuda")
    assert fits_on_device(Recipe(size=96), 1000, cuda)
    assert fits_on_device(Recipe(size=224, interpolation="bicubic"), 1000, cuda)
    assert fits_on_device(Recipe(size=32), 9000, cuda)
    assert not fits_on_device(Recipe(size=96), 1001, cuda)
    assert not fits_on_device(Recipe(size=32), 9001, cuda)
    # What OpenCV does by area where it enlarges.
    assert not fits_on_device(Recipe(size=224, interpolation="area"), 1000, cuda)
    assert not fits_on_device(Recipe(size=32), 10, torch.device("cpu"))
