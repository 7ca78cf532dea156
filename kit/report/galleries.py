"""The held-out tiles that a model got most wrong, and is least sure of."""

import numpy as np
import pandas as pd

from kit.base import Indices, KitError, Strings
from kit.data import Store
from kit.report.gradcam import grad_cam, overlay
from kit.report.page import Gallery, GalleryTile, Section
from kit.runs import TrainedModel


def choose_gallery(
    trained: TrainedModel,
    store: Store,
    valid: pd.DataFrame,
    slides: Strings | None = None,
    *,
    count: int = 12,
    cam_layer: str | None = None,
) -> dict[str, list[GalleryTile]]:
    """Choose the held-out tiles that a model got most wrong and is least sure of.

    Parameters
    ----------
    valid
        id,label,probability,logit, from `runs.read_valid`.
    slides
        The slide of each of the store's training tiles.
    count
        Most tiles of each kind.
    cam_layer
        Of Grad-CAM, see `kit.models.find_map_layer`.

    Raises
    ------
    KitError
        If a tile is not in the store.
    """
    rows = store_rows(valid, store, trained.name)
    # Logits order what probabilities near 0 and 1 are too coarse for.
    labels, logits = valid["label"].to_numpy(), valid["logit"].to_numpy()
    wrong = np.flatnonzero((logits > 0) != (labels == 1))
    sureness = np.abs(logits)
    chosen = {
        "Most wrong": wrong[np.argsort(-sureness[wrong], kind="stable")][:count],
        "Least sure": np.argsort(sureness, kind="stable")[:count],
    }
    table = valid.assign(row=rows)
    return {
        heading: _gallery_tiles(trained, store, table.iloc[places], slides, cam_layer)
        for heading, places in chosen.items()
    }


def store_rows(valid: pd.DataFrame, store: Store, name: str) -> Indices:
    """Return the rows of held-out tiles in the store.

    Raises
    ------
    KitError
        If one is not there, naming the run.
    """
    rows: Indices = pd.Index(store.train.ids).get_indexer(pd.Index(valid["id"]))
    if (rows < 0).any():
        missing = valid["id"][rows < 0].iloc[0]
        raise KitError(f"tile {missing} of {name} is not in {store.folder}: other data")
    return rows


def gallery_section(tiles: Gallery) -> Section:
    """Show a gallery with the words that explain it."""
    return Section(
        "Most wrong and least sure",
        text=[
            "The square is the centre that decides the label: positive if any of it is "
            "tumour. A tile with tumour outside the square alone is negative. Below each tile "
            "are its label and the probability of tumour that the network gave it.",
            "Beside each tile is its Grad-CAM (Selvaraju et al. 2017): the brighter, the more "
            "that place spoke for the answer which the network gave. It is as coarse as the "
            "network's last map, it is scaled tile by tile, and it explains the network, not the "
            "tissue. What the network does not see is grey.",
        ],
        gallery=tiles,
    )


def _gallery_tiles(
    trained: TrainedModel,
    store: Store,
    chosen: pd.DataFrame,
    slides: Strings | None,
    cam_layer: str | None,
) -> list[GalleryTile]:
    if chosen.empty:
        return []
    rows = chosen["row"].to_numpy()
    pixels = np.stack([store.train.tiles[row] for row in rows])
    heat = grad_cam(trained, pixels, cam_layer)
    overlays = [None] * len(rows) if heat is None else list(map(overlay, pixels, heat))
    names = [None] * len(rows) if slides is None else [slide or None for slide in slides[rows]]
    columns = (chosen["id"], chosen["label"], chosen["probability"], names, pixels, overlays)
    return [GalleryTile(*values) for values in zip(*columns, strict=True)]
