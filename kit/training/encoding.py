"""Encoding tiles once: features by a frozen encoder, kept beside the packed tiles."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from kit import models
from kit.base import KitError, Recipe, Strings, read_json, write_json
from kit.data import (
    FeatureFile,
    Features,
    TileSet,
    eval_loader,
    fits_on_device,
    recipe_dataset,
    view_of,
)
from kit.models import Encoder
from kit.training.device import (
    autocast,
    choose_precision,
    explain_full_memory,
    move_model,
    prefetch,
)
from kit.training.inference import CPU_CHUNK, Normalize

# Raise it where the same weights and recipe give other features.
_FORMAT = 1
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tiles to measure with, and rows that a GPU computes before they are copied, all at once.
_TRIAL = 16
_COPIED_AT_ONCE = 8192


@dataclass(frozen=True)
class Plan:
    """What encoding will cost.

    Attributes
    ----------
    tiles
        To be encoded, all views together.
    bytes
        On the disk.
    seconds
        By the first tiles.
    """

    tiles: int
    bytes: int
    seconds: float


class TileEncoder:
    """A frozen encoder with a recipe's preprocessing, which encodes each tile once.

    Features are kept in a folder beside the packed tiles that is named by the weights and the
    preprocessing, so that those of other weights are never read.

    Parameters
    ----------
    encoder
        It is moved to the device.
    recipe
        Its preprocessing and precision. With `auto` that type of numbers is taken on a CPU in
        which the encoder is faster on the first tiles; it is recorded beside the features.
    """

    def __init__(self, encoder: Encoder, recipe: Recipe, device: torch.device) -> None:
        self.encoder = encoder
        self.recipe = recipe
        self.device = device
        self.width = models.feature_count(encoder, recipe.size)
        # Before they are on a device, which would hand back each tensor by itself.
        self._weights = models.weights_fingerprint(encoder.network)
        move_model(encoder, device).eval()
        self._normalize = Normalize(*recipe.channel_statistics).to(device)
        self._measurement: tuple[torch.dtype, float] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that features follow from, apart from the tiles."""
        return hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _identity(self) -> dict[str, Any]:
        recipe = self.recipe
        mean, std = recipe.channel_statistics
        return {
            "format": _FORMAT,
            "weights": self._weights,
            "pool": list(self.encoder.pool),
            "crop": recipe.crop,
            "size": recipe.size,
            "interpolation": recipe.interpolation,
            "mean": list(mean),
            "std": list(std),
            "precision": recipe.precision,
        }

    def plan(self, sets: Sequence[TileSet], views: int) -> Plan:
        """Say what encoding what is missing will cost; the first tiles are measured."""
        files = [(self._file(tiles, view), tiles) for tiles in sets for view in range(views)]
        missing = [(file, tiles) for file, tiles in files if file is not None and not file.exists]
        if not missing:
            return Plan(0, 0, 0.0)
        count = sum(len(tiles) for _, tiles in missing)
        _, seconds = self._measured(missing[0][1])
        return Plan(count, sum(file.bytes for file, _ in missing), seconds * count)

    def seconds_per_tile(self, tiles: TileSet) -> float:
        """Return what encoding a tile in one view takes, by the first tiles."""
        return self._measured(tiles)[1]

    def encode(self, tiles: TileSet, view: int = 0, *, progress: bool = True) -> Features:
        """Return a split's features under one of the eight views, encoding what is missing.

        Returns
        -------
        ndarray
            (tiles, features) float16, mapped; in memory where the split has no folder for it.

        Raises
        ------
        KitError
            As `FeatureFile.write` does, or if the disk has no room for them, or memory is full.
        """
        file = self._file(tiles, view)
        if file is None:
            return np.concatenate(list(self._rows(tiles, view, 0, progress=progress)))
        found = file.read()
        if found is not None:
            return found
        self._record(tiles)
        self._require_room(file)
        return file.write(lambda start: self._rows(tiles, view, start, progress=progress))

    def dtype(self, tiles: TileSet) -> torch.dtype:
        """Return what the encoder computes in: what was recorded, given, or is faster here."""
        about = self._about(tiles)
        if about is not None and about.is_file():
            recorded = _read_record(about)
            if recorded.get("computed_in") in _DTYPES:
                return _DTYPES[recorded["computed_in"]]
        dtype = choose_precision(self.recipe.precision, self.device)
        return self._measured(tiles)[0] if self._may_choose(dtype) else dtype

    def folder(self, tiles: TileSet) -> Path | None:
        """Return where features of a split are kept."""
        if tiles.features is None:
            return None
        name = self.recipe.model.rstrip("/").rpartition("/")[2]
        return tiles.features / f"{name}-{self.recipe.size}-{self.fingerprint[:16]}"

    def _about(self, tiles: TileSet) -> Path | None:
        folder = self.folder(tiles)
        return None if folder is None else folder / "about.json"

    def _file(self, tiles: TileSet, view: int) -> FeatureFile | None:
        folder = self.folder(tiles)
        if folder is None:
            return None
        path = folder / f"{tiles.split}-{_rows_fingerprint(tiles.ids)[:8]}-{view}.npy"
        return FeatureFile(path, (len(tiles), self.width))

    def _record(self, tiles: TileSet) -> None:
        """Write down what the features of a folder are, before the first of them."""
        about = self._about(tiles)
        if about is not None and not about.is_file():
            dtype = str(self.dtype(tiles)).removeprefix("torch.")
            named = {"model": self.recipe.model, "features": self.width, "computed_in": dtype}
            write_json(about, named | self._identity)

    def _require_room(self, file: FeatureFile) -> None:
        free = shutil.disk_usage(file.path.parent).free
        if file.bytes > free:
            raise KitError(
                f"{file.path.parent} has room for {free:,} bytes, and these features take "
                f"{file.bytes:,}: make room, or make store a link to a larger disk"
            )

    def _rows(self, tiles: TileSet, view: int, start: int, *, progress: bool) -> Iterator[Features]:
        """Yield the features of a tile and all that follow, in batches."""
        dtype = self.dtype(tiles)
        bar = tqdm(
            total=len(tiles),
            initial=start,
            desc=f"encoding {tiles.split}, view {view}",
            disable=not progress,
            unit=" tiles",
            mininterval=0.5,
        )
        waiting: list[Tensor] = []
        with bar, explain_full_memory(self.device, "encoding", "choose a smaller --size"):
            for images in self._images(tiles, start):
                waiting.append(self._features(view_of(images, view), dtype))
                count = sum(map(len, waiting))
                if self.device.type == "cpu" or count >= _COPIED_AT_ONCE:
                    yield _to_host(waiting)
                    bar.update(count)
                    waiting = []
            if waiting:
                yield _to_host(waiting)
                bar.update(sum(map(len, waiting)))

    def _images(self, tiles: TileSet, start: int, stop: int | None = None) -> Iterator[Tensor]:
        """Yield batches of images on the device; on a GPU from tiles that it holds."""
        rows = np.arange(start, len(tiles) if stop is None else stop)
        held = self.device if fits_on_device(self.recipe, len(rows), self.device) else None
        dataset = recipe_dataset(tiles.tiles, self.recipe, rows=rows, device=held)
        loader = eval_loader(dataset, pin_memory=self.device.type == "cuda")
        for images, _ in prefetch(loader, self.device):
            yield from torch.split(images, CPU_CHUNK if self.device.type == "cpu" else len(images))

    @torch.inference_mode()
    def _features(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        inputs = self._normalize(images)
        with autocast(self.device, dtype):
            features: Tensor = self.encoder(inputs)
        return features.half()

    def _measured(self, tiles: TileSet) -> tuple[torch.dtype, float]:
        """Return the faster type of numbers of those in question, and its seconds per tile."""
        if self._measurement is None:
            self._measurement = self._measure(tiles)
        return self._measurement

    def _measure(self, tiles: TileSet) -> tuple[torch.dtype, float]:
        dtype = choose_precision(self.recipe.precision, self.device)
        types = {dtype, torch.float32} if self._may_choose(dtype) else {dtype}
        images = next(self._images(tiles, 0, min(_TRIAL, len(tiles))))
        times = {one: self._time(images, one) / len(images) for one in types}
        fastest = min(times, key=lambda one: times[one])
        return fastest, times[fastest]

    def _may_choose(self, dtype: torch.dtype) -> bool:
        is_cpu = self.device.type == "cpu"
        return is_cpu and self.recipe.precision == "auto" and dtype != torch.float32

    def _time(self, images: Tensor, dtype: torch.dtype) -> float:
        """Return the seconds that some tiles take, the shortest of two after a first try."""
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self._features(images, dtype).cpu()
            times.append(time.perf_counter() - start)
        return min(times[1:])


def _to_host(parts: list[Tensor]) -> Features:
    features: Features = torch.cat(parts).cpu().numpy()
    return features


def _read_record(about: Path) -> dict[str, Any]:
    try:
        return read_json(about, dict[str, Any], what="a record of features")
    except KitError as error:
        raise KitError(f"{error}\nDelete {about.parent}: its features are made again") from error


def _rows_fingerprint(ids: Strings) -> str:
    """Return the SHA-256 of a split's tiles in their order: an id is the hash of its pixels."""
    return hashlib.sha256("\n".join(ids.tolist()).encode()).hexdigest()
