"""The pixels of one of the competition's TIFF files."""

import struct

from kit.base import TILE_BYTES, TILE_SIZE


class TileError(ValueError):
    """One tile that cannot be trusted, and why."""


def tile_pixels(tiff: bytes) -> memoryview:
    """Return the pixels of one of the competition's TIFF files.

    The header is read, not assumed, and only the competition's own layout is accepted:
    96x96 RGB, 8 bits a channel, uncompressed, interleaved, one strip (TIFF 6.0, section 6).

    Raises
    ------
    TileError
        Saying what is different.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8 or struct.unpack_from(f"{order}H", tiff, 2)[0] != 42:
        raise TileError("not a TIFF file")
    try:
        tags, following = _tiff_directory(tiff, order)
    except struct.error as error:
        raise TileError("truncated TIFF header") from error
    if following:
        raise TileError("TIFF of more than one page")
    for tag, (name, expected) in _LAYOUT.items():
        if tags.get(tag, _DEFAULTS.get(tag)) != expected:
            raise TileError(f"TIFF {name} is {tags.get(tag)}, not {expected}")
    if len(tags.get(_STRIP_OFFSETS, ())) != 1:
        raise TileError("TIFF pixels are not in one strip")
    start = tags[_STRIP_OFFSETS][0]
    if start + TILE_BYTES > len(tiff):
        raise TileError("truncated TIFF pixels")
    return memoryview(tiff)[start : start + TILE_BYTES]


_STRIP_OFFSETS = 273
_DEFAULTS = {259: (1,), 284: (1,)}
_LAYOUT = {
    256: ("width", (TILE_SIZE,)),
    257: ("height", (TILE_SIZE,)),
    258: ("bits per sample", (8, 8, 8)),
    259: ("compression", (1,)),
    262: ("photometric interpretation", (2,)),
    277: ("samples per pixel", (3,)),
    284: ("planar configuration", (1,)),
}
_TYPE_FORMATS = {1: "B", 3: "H", 4: "I"}


def _tiff_directory(tiff: bytes, order: str) -> tuple[dict[int, tuple[int, ...]], int]:
    """Return the integer tags of the first directory, and where the next one is (0: nowhere)."""
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, directory)
    tags = {}
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", tiff, entry)
        if kind not in _TYPE_FORMATS or length > len(tiff):
            continue
        values = f"{order}{length}{_TYPE_FORMATS[kind]}"
        inline = struct.calcsize(values) <= 4
        offset = entry + 8 if inline else struct.unpack_from(f"{order}I", tiff, entry + 8)[0]
        tags[tag] = struct.unpack_from(values, tiff, offset)
    (following,) = struct.unpack_from(f"{order}I", tiff, directory + 2 + 12 * count)
    return tags, following
