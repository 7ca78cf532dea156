"""A synthetic competition in Kaggle's own layout, for trying the kit without account or network."""

import struct
import zipfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kit import __version__
from kit.base import (
    CHANNELS,
    TILE_BYTES,
    TILE_SIZE,
    KitError,
    Split,
    atomic_path,
    competition,
    read_json,
    write_json,
    write_text,
)
from kit.data.synthetic import MIN_SLIDES, draw_tiles

MIN_TRAIN = 2 * MIN_SLIDES
KEPT = (competition.ARCHIVE, competition.LABELS_FILE, competition.SLIDES_FILE, "train", "store")
"""Where a folder has one of these and no stand-in, it holds data that may be real."""


def write_standin(data: Path, *, train: int, test: int, seed: int) -> Path:
    """Write a synthetic competition into a folder, or leave it there if it is there already.

    Beside the archive stand `slides.csv` (id,slide: the training tiles') and `standin.json`.
    The test tiles' labels are written nowhere.

    Parameters
    ----------
    data
        The folder; made if need be.
    train, test
        Numbers of tiles.
    seed
        Decides every pixel, see `synthetic.draw_tiles`.

    Returns
    -------
    Path
        The archive, complete.

    Raises
    ------
    KitError
        If the numbers make no competition, the folder holds other data, or it cannot be written.
    """
    _check_numbers(train=train, test=test, seed=seed)
    archive_path = data / competition.ARCHIVE
    options = _options(train=train, test=test, seed=seed)
    if is_standin_written(data, train=train, test=test, seed=seed):
        return archive_path
    _check_vacant(data, options)
    write_json(data / competition.STANDIN_FILE, options)
    with atomic_path(archive_path) as partial, zipfile.ZipFile(partial, "w") as archive:
        archive.comment = competition.STANDIN_COMMENT
        _, test_slides = _add_tiles(archive, "test", test, seed)
        train_labels, train_slides = _add_tiles(archive, "train", train, seed)
        _add(archive, competition.SAMPLE_FILE, _table("label", dict.fromkeys(test_slides, "0")))
        _add(archive, competition.LABELS_FILE, _table("label", train_labels))
        write_text(data / competition.SLIDES_FILE, _table("slide", train_slides))
    return archive_path


def is_standin_written(data: Path, *, train: int, test: int, seed: int) -> bool:
    """Whether a folder holds the stand-in that `write_standin` would make with these numbers."""
    return (
        _is_standin(data / competition.ARCHIVE)
        and (data / competition.SLIDES_FILE).is_file()
        and _recorded_options(data) == _options(train=train, test=test, seed=seed)
    )


def _check_numbers(*, train: int, test: int, seed: int) -> None:
    for name, value, least in (("train", train, MIN_TRAIN), ("test", test, 1), ("seed", seed, 0)):
        if value < least:
            raise KitError(f"{name} is {value}: a stand-in needs at least {least}")


def _options(*, train: int, test: int, seed: int) -> dict[str, str | int]:
    what = "a synthetic stand-in for the competition's data"
    return {"what": what, "train": train, "test": test, "seed": seed, "kit": __version__}


def _recorded_options(data: Path) -> Any:
    try:
        return read_json(data / competition.STANDIN_FILE, dict[str, Any], what="a record")
    except KitError:
        return None


def _check_vacant(data: Path, options: dict[str, str | int]) -> None:
    """Refuse a folder in which writing would replace or hide anything but this stand-in."""
    advice = "choose another folder with --data"
    if data.exists() and not data.is_dir():
        raise KitError(f"{data} is a file, not a folder: {advice}")
    archive = data / competition.ARCHIVE
    own = _is_standin(archive) or (not archive.exists() and _recorded_options(data) is not None)
    if _is_standin(archive) and _recorded_options(data) != options:
        raise KitError(
            f"{data} holds a stand-in made with other options (see its "
            f"{competition.STANDIN_FILE}): {advice}, or delete {data} first"
        )
    for name in KEPT:
        if not own and (data / name).exists():
            raise KitError(f"{data / name} is no stand-in and is never replaced: {advice}")


def _is_standin(archive: Path) -> bool:
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.comment == competition.STANDIN_COMMENT
    except (OSError, zipfile.BadZipFile):
        return False


def _add_tiles(
    archive: zipfile.ZipFile, split: Split, count: int, seed: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Draw a split's tiles into the archive and return their labels and their slides by id."""
    header, labels, slides = _tiff_header(), {}, {}
    drawn = draw_tiles(split, count=count, seed=seed)
    for tile in tqdm(drawn, f"stand-in {split}", count, unit="tile"):
        pixels = tile.pixels.tobytes()
        identity = competition.tile_id(pixels)
        _add(archive, f"{split}/{identity}.tif", header + pixels)
        labels[identity], slides[identity] = str(tile.label), tile.slide
    return labels, slides


def _add(archive: zipfile.ZipFile, name: str, content: bytes | str) -> None:
    member = zipfile.ZipInfo(name)  # dated 1980, so that the same tiles make the same archive
    member.create_system = 3  # Unix, whose file mode follows
    member.external_attr = 0o100644 << 16
    archive.writestr(member, content, zipfile.ZIP_DEFLATED, compresslevel=1)


def _table(column: str, values: dict[str, str]) -> str:
    """Return a CSV table in the ids' order, which tells nothing of the values."""
    return "".join(f"{key},{value}\n" for key, value in [("id", column), *sorted(values.items())])


def _tiff_header() -> bytes:
    """Return what precedes the pixels in a tile's file, as in the competition.

    TIFF 6.0, section 2: little-endian, one directory of 12-byte entries (tag, type, number of
    values, value or its offset), then the values longer than 4 bytes.
    """
    ascii_, short, long = 2, 3, 4
    side = TILE_SIZE
    description = f'{{"shape": [{side}, {side}, {CHANNELS}]}}\0'.encode()
    software, date = b"tifffile.py\0", b"2018:11:15 17:21:15\0"
    entries = [
        (254, long, 1, 0),  # NewSubfileType
        (256, long, 1, side),  # ImageWidth
        (257, long, 1, side),  # ImageLength
        (258, short, CHANNELS, 194),  # BitsPerSample
        (259, short, 1, 1),  # Compression: none
        (262, short, 1, 2),  # PhotometricInterpretation: RGB
        (270, ascii_, len(description), 200),  # ImageDescription
        (273, long, 1, 287),  # StripOffsets
        (277, short, 1, CHANNELS),  # SamplesPerPixel
        (278, long, 1, side),  # RowsPerStrip
        (279, long, 1, TILE_BYTES),  # StripByteCounts
        (284, short, 1, 1),  # PlanarConfiguration: RGBRGB
        (305, ascii_, len(software), 255),  # Software
        (306, ascii_, len(date), 267),  # DateTime
        (339, short, 1, 1),  # SampleFormat: unsigned integers
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + struct.pack("<I", 0)
    return head + struct.pack("<3H55s", 8, 8, 8, description) + software + date
