"""Synthetic tiles, drawn the way a microscope sees tissue.

Maps of the density of two stains, haematoxylin (in nuclei) and eosin (in the ground between them),
absorb light by the Beer-Lambert law. What is drawn teaches nothing about cancer; it exercises
every command as real tiles would.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from kit.base import CENTRE_SIZE, CHANNELS, SPLITS, TILE_SIZE, Array, Bools, Pixels, Split
from kit.data.stains import BROWNISH, PURPLE, UNSEEN

POSITIVE_SHARE = 0.405
TUMOUR_OUTSIDE_SHARE = 0.15
"""Share of the negative tiles that hold tumour, but only outside the centre."""
NEAR_WHITE_SHARE = 0.017
"""Share of the negative tiles that hold no tissue."""
TILES_PER_SLIDE = 100
MIN_SLIDES = 8
BATCH = 64

EDGE = (TILE_SIZE - CENTRE_SIZE) // 2
CENTRE = slice(EDGE, TILE_SIZE - EDGE)
ROWS, COLUMNS = np.indices((TILE_SIZE, TILE_SIZE), dtype=np.float32)
FAR = 1000.0
"""More pixels than there are in a tile."""
TEXTURE = 256
"""Height and width of the noise that tiles are cut from, in pixels."""
LATTICE = 32
"""Rows and columns of the lattice that the nuclei of a tile are cut from."""
ZOOM = 8
"""Places looked up in the lattice to a unit of length."""

STROMA, LYMPHOID, REACTIVE, TUMOUR = range(4)
NORMAL_SHARES = (0.37, 0.38, 0.25)


class Tile(NamedTuple):
    """A tile and what only its maker knows about it."""

    pixels: Pixels
    """(96, 96, 3), red, green, blue."""
    tumour: Bools
    """(96, 96), where the tissue is tumour."""
    slide: str

    @property
    def label(self) -> int:
        """1 if the central square holds any tumour: the competition's rule."""
        return int(self.tumour[CENTRE, CENTRE].any())


class Tissues(NamedTuple):
    """How the tissues look: stroma, lymphoid, reactive (the tumour's double) and tumour."""

    spacing: Array
    """Pixels between neighbouring nuclei."""
    radius: Array
    """Of a nucleus, in pixels."""
    spread: Array
    """Relative deviation of the radius."""
    stretch: Array
    """Long axis of a nucleus over its short axis."""
    nucleus: Array
    """Haematoxylin in a nucleus, as optical density."""
    pallor: Array
    """Share of it that the inside of a nucleus lacks."""
    haematoxylin: Array
    """Between the nuclei."""
    eosin: Array
    """Between the nuclei."""
    fibres: Array
    """How strongly eosin follows the fibres."""


# Here and below, numbers without a source were chosen by eye, beside real tiles, and so that the
# study's network finds the labels neither easy nor impossible.
TISSUES = Tissues(
    spacing=np.array([17.0, 9.0, 12.5, 14.0]),
    radius=np.array([2.9, 3.7, 4.8, 5.4]),
    spread=np.array([0.20, 0.10, 0.18, 0.24]),
    stretch=np.array([2.4, 1.1, 1.25, 1.35]),
    nucleus=np.array([1.9, 2.4, 1.7, 1.8]),
    pallor=np.array([0.20, 0.15, 0.45, 0.50]),
    haematoxylin=np.array([0.05, 0.20, 0.23, 0.38]),
    eosin=np.array([0.36, 0.26, 0.38, 0.45]),
    fibres=np.array([0.45, 0.50, 0.30, 0.20]),
)


class Slide(NamedTuple):
    """What the tiles of one slide share."""

    name: str
    stains: Array
    """(2, 3), the optical density of a unit of haematoxylin and of eosin."""
    light: Array
    """(3,), a pixel without tissue."""
    sharpness: float
    """Weight of the scanner's unsharp mask."""
    tissues: Tissues
    risk: float
    """Log odds of tumour, up to a constant."""


class Nuclei(NamedTuple):
    """The nucleus nearest to each pixel: (96, 96) values of each kind."""

    row: Array
    column: Array
    cos: Array
    sin: Array
    """Of the long axis' angle."""
    length: Array
    """Half the long axis, in pixels."""
    width: Array
    """Half the short axis."""
    haematoxylin: Array
    pallor: Array


def draw_tiles(split: Split, *, count: int, seed: int) -> Iterator[Tile]:
    """Draw the tiles of one split, in an order that tells nothing of label or slide.

    The same arguments give the same tiles, bit for bit, on one machine with one set of libraries.

    Parameters
    ----------
    split
        The training tiles include one black and one white tile. The test tiles come from other
        slides, stained differently.
    count
        Number of tiles.
    seed
        At least 0.

    Yields
    ------
    Tile
        40.5 % of them have label 1, rounded to a whole tile.
    """
    origin = (seed, SPLITS.index(split))
    rng = np.random.default_rng(origin)
    number = max(MIN_SLIDES, round(count / TILES_PER_SLIDE))
    slides = [_slide(f"{split}-{i + 1:02d}", split == "test", rng) for i in range(number)]
    slide_of = rng.permutation(np.arange(count) % number)
    risk = np.array([slide.risk for slide in slides])[slide_of] + rng.logistic(size=count)
    rank = np.argsort(np.argsort(-risk))
    positives = round(POSITIVE_SHARE * count)
    blanks = {count - 1: 0, count - 2: 255} if split == "train" else {}

    def draw(index: int) -> Tile:
        slide = slides[slide_of[index]]
        if rank[index] in blanks:
            return _blank(blanks[rank[index]], slide.name)
        return _draw(slide, bool(rank[index] < positives), np.random.default_rng((*origin, index)))

    with ThreadPoolExecutor(max_workers=1) as pool:  # draws while the caller writes
        for start in range(0, count, BATCH):
            yield from pool.map(draw, range(start, min(start + BATCH, count)))


def _slide(name: str, shifted: bool, rng: Generator) -> Slide:
    purple = rng.beta(0.4, 0.4)
    seen = (1 - purple) * BROWNISH + purple * PURPLE
    stains = (UNSEEN if shifted else seen) + rng.normal(scale=0.04, size=(2, 3))
    stains *= rng.lognormal(0, 0.25, (2, 1))
    light = rng.uniform(250, 262) - purple * rng.uniform(0, 25) + rng.normal(scale=2, size=3)
    return Slide(
        name,
        stains.astype(np.float32),
        light.astype(np.float32),
        sharpness=rng.uniform(0.1, 1.3),
        tissues=_varied(TISSUES, 0.06, rng),
        # A network that learns the slides' stains gains by it on known slides, and on no other.
        risk=0 if shifted else 1.2 * rng.normal(),
    )


def _blank(value: int, slide: str) -> Tile:
    pixels = np.full((TILE_SIZE, TILE_SIZE, CHANNELS), value, np.uint8)
    return Tile(pixels, np.zeros((TILE_SIZE, TILE_SIZE), bool), slide)


def _draw(slide: Slide, positive: bool, rng: Generator) -> Tile:
    depth = _tumour_depth(positive, rng)
    if not positive and rng.random() < NEAR_WHITE_SHARE:
        empty = np.zeros_like(ROWS)
        return Tile(_expose(empty, empty, slide, rng), np.zeros(empty.shape, bool), slide.name)
    tissues = _varied(slide.tissues, 0.14, rng)
    main, other = rng.choice(len(NORMAL_SHARES), 2, p=NORMAL_SHARES)
    region = np.where(_noise(25, rng) < 0.7, main, other)
    region[depth > 0] = TUMOUR
    angle = rng.uniform(0, np.pi)
    haematoxylin, eosin = _ground(region, tissues, angle, rng)
    nuclei = _scatter(region, tissues, angle, rng)
    haematoxylin, eosin = _stain_nuclei(haematoxylin, eosin, nuclei, depth, rng)
    if hollows := rng.poisson(1.6 if main == STROMA else 0.15):
        haematoxylin, eosin = _hollow_out(haematoxylin, eosin, hollows, depth, rng)
    return Tile(_expose(haematoxylin, eosin, slide, rng), depth > 0, slide.name)


def _tumour_depth(positive: bool, rng: Generator) -> Array:
    """Return how deep in the tumour each pixel lies, below 0 outside it."""
    if not positive and rng.random() > TUMOUR_OUTSIDE_SHARE:
        return np.full_like(ROWS, -FAR)
    turn, distance = rng.uniform(0, 2 * np.pi), rng.uniform(15, 50)
    row, column = (TILE_SIZE / 2 + distance * float(f(turn)) for f in (np.sin, np.cos))
    depth: Array = 6 * _noise(14, rng) - _length(ROWS - row, COLUMNS - column)
    depth -= depth[CENTRE, CENTRE].max()
    depth += rng.uniform(8, 55) if positive else rng.uniform(-12, -4)
    return depth


def _ground(region: Array, tissues: Tissues, angle: float, rng: Generator) -> tuple[Array, Array]:
    """Return the densities of haematoxylin and eosin between the nuclei."""
    haematoxylin, eosin, fibres = (
        cv2.blur(look.take(region), (7, 7))
        for look in (tissues.haematoxylin, tissues.eosin, tissues.fibres)
    )
    haematoxylin = haematoxylin * (1 + 0.4 * _noise(4, rng))
    eosin = eosin * (1 + fibres * _fibres(angle, rng) + 0.3 * _noise(2, rng))
    return np.maximum(haematoxylin, 0), np.maximum(eosin, 0)


def _fibres(angle: float, rng: Generator) -> Array:
    """Return a pattern of wavy fibres, of mean 0 and variance 1."""
    sin, cos = float(np.sin(angle)), float(np.cos(angle))
    along = cv2.addWeighted(COLUMNS, cos, ROWS, sin, rng.uniform(0, TEXTURE))
    across = cv2.addWeighted(ROWS, cos, COLUMNS, -sin, rng.uniform(0, TEXTURE))
    across += 12 * _noise(16, rng)
    return cv2.remap(_texture(12, 0.8), along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _scatter(region: Array, tissues: Tissues, angle: float, rng: Generator) -> Nuclei:
    """Return for each pixel the nearest nucleus of the tissue there."""
    nearest = np.zeros(region.shape, np.intp)
    nuclei: list[Array] = []
    for tissue in range(TUMOUR + 1):
        here = region == tissue
        if here.any():
            strewn, owner = _strew(Tissues(*(look[tissue] for look in tissues)), angle, rng)
            np.copyto(nearest, owner + sum(part.shape[1] for part in nuclei), where=here)
            nuclei.append(strewn)
    return Nuclei(*(values.take(nearest) for values in np.concatenate(nuclei, axis=1)))


def _strew(look: Tissues, angle: float, rng: Generator) -> tuple[Array, Array]:
    """Return the nuclei (values, nuclei) of one tissue, and the nearest one of each pixel."""
    points, zones = _lattice()
    origin = rng.uniform(1, LATTICE - 2 - TILE_SIZE / look.spacing, (2, 1))
    steps = origin + np.arange(TILE_SIZE) / look.spacing
    rows, columns = (steps * ZOOM).astype(np.intp)
    nearest = zones[rows[:, None], columns]
    first, last = nearest.min(), nearest.max() + 1
    row, column = (points[:, first:last] - origin) * look.spacing
    count = last - first
    radius = look.radius * rng.lognormal(0, look.spread, count)
    stretch = np.sqrt(look.stretch * rng.lognormal(0, 0.15, count))
    turn = angle + rng.normal(scale=0.4, size=count)
    place = (row, column, np.cos(turn), np.sin(turn), radius * stretch, radius / stretch)
    haematoxylin = look.nucleus * rng.lognormal(0, 0.18, count)
    values = (*place, haematoxylin, np.full(count, look.pallor))
    return np.array(values, np.float32), nearest - first


def _stain_nuclei(
    haematoxylin: Array, eosin: Array, nuclei: Nuclei, depth: Array, rng: Generator
) -> tuple[Array, Array]:
    y, x = ROWS - nuclei.row, COLUMNS - nuclei.column
    along = (nuclei.cos * x + nuclei.sin * y) / nuclei.length
    across = (nuclei.cos * y - nuclei.sin * x) / nuclei.width
    radius = _length(along, across)
    reach = radius + 0.13 * _noise(3, rng)
    inside = np.clip((1 - reach) * nuclei.width + 0.5, 0, 1) * np.clip(np.abs(depth), 0, 1)
    density = nuclei.haematoxylin * (1 - nuclei.pallor * np.clip(1.3 - 1.3 * radius * radius, 0, 1))
    density *= 1 + 0.28 * _noise(0.8, rng)
    haematoxylin = haematoxylin + inside * (density - haematoxylin)
    return cv2.GaussianBlur(haematoxylin, (3, 3), 0.6), eosin * (1 - 0.4 * inside)


def _hollow_out(
    haematoxylin: Array, eosin: Array, count: int, depth: Array, rng: Generator
) -> tuple[Array, Array]:
    """Cut fat cells or vessels, each with a thin wall, out of the tissue around the tumour."""
    hollow = np.full_like(depth, -FAR)
    for _ in range(count):
        row, column = rng.uniform(0, TILE_SIZE, 2).tolist()
        distance = _length(ROWS - row, COLUMNS - column)
        hollow = np.maximum(hollow, rng.uniform(8, 45) - distance)
    hollow = np.minimum(hollow + 2 * _noise(10, rng), -depth - 2)
    tissue = np.clip(0.5 - hollow, 0, 1)
    return haematoxylin * tissue, eosin * tissue + 0.5 * np.exp(-np.square(hollow + 1))


def _expose(haematoxylin: Array, eosin: Array, slide: Slide, rng: Generator) -> Pixels:
    """Return the (96, 96, 3) pixels that the light behind the stains leaves."""
    grain = 0.02 * _noise(0.5, rng)
    density = cv2.merge([haematoxylin + grain, eosin])
    blurred = cv2.GaussianBlur(density, (5, 5), 1.2)
    density = cv2.addWeighted(density, 1 + slide.sharpness, blurred, -slide.sharpness, 0)
    strength = rng.lognormal(0, 0.12)
    absorb = np.column_stack([-strength * slide.stains.T, np.log(slide.light)])
    image = np.exp(cv2.transform(density, absorb))
    return np.minimum(image, 255, out=image).astype(np.uint8)


def _length(rows: Array, columns: Array) -> Array:
    # cv2.magnitude rounds by where in memory its arguments lie; numpy.hypot is four times slower.
    length: Array = np.sqrt(rows * rows + columns * columns)
    return length


def _varied(tissues: Tissues, spread: float, rng: Generator) -> Tissues:
    looks = np.array(tissues, np.float32)
    return Tissues(*(looks * rng.lognormal(0, spread, looks.shape).astype(np.float32)))


def _noise(scale: float, rng: Generator) -> Array:
    """Return (96, 96) noise of mean 0 and variance 1, smooth over `scale` pixels."""
    top, left = rng.integers(0, TEXTURE - TILE_SIZE, 2)
    return _texture(scale, scale)[top : top + TILE_SIZE, left : left + TILE_SIZE]


@cache
def _texture(width: float, height: float) -> Array:
    noise = np.random.default_rng(0).normal(size=(TEXTURE, TEXTURE))
    smooth = gaussian_filter(noise, (height, width), mode="wrap")
    texture: Array = ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)
    return texture


@cache
def _lattice() -> tuple[Array, Array]:
    """Return irregular points about 1 apart, (2, points), and the nearest one of each place."""
    points = np.indices((LATTICE, LATTICE), dtype=np.float64)
    points[1] += points[0] % 2 / 2
    points += np.random.default_rng(0).normal(scale=0.17, size=points.shape)
    places = (np.indices((LATTICE * ZOOM, LATTICE * ZOOM)).reshape(2, -1).T + 0.5) / ZOOM
    nearest = KDTree(points.reshape(2, -1).T).query(places)[1]
    return points.reshape(2, -1), nearest.reshape(LATTICE * ZOOM, LATTICE * ZOOM)
