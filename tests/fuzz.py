"""Files gone wrong by chance: mutations of bytes that follow from a seed."""

import numpy as np

# Values at which lengths, counts and offsets go wrong.
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate(content: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """Return a file with one to three faults: flipped bits, edge values, cuts, gaps, splices."""
    for _ in range(rng.integers(1, 4)):
        content = _FAULTS[rng.integers(len(_FAULTS))](content, rng, other)
    return content


def _place(content: bytes, rng: np.random.Generator) -> int:
    """Return a place, every other time near an end, where headers and directories are."""
    size = max(len(content), 1)
    near = min(size, 200)
    choices = (rng.integers(size), rng.integers(size), rng.integers(near), -rng.integers(near) - 1)
    return int(choices[rng.integers(4)]) % size


def _flip(content: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    at = _place(content, rng)
    return (
        content[:at]
        + bytes(b ^ 1 << rng.integers(8) for b in content[at : at + 1])
        + (content[at + 1 :])
    )


def _edge(content: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    at = _place(content, rng)
    length = int(rng.choice([1, 2, 4]))
    value = _EDGES[rng.integers(len(_EDGES))] % 256**length
    return content[:at] + value.to_bytes(length, "little") + content[at + length :]


def _cut(content: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    return content[: _place(content, rng)]


def _drop(content: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    at = _place(content, rng)
    return content[:at] + content[at + rng.integers(1, 64) :]


def _insert(content: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    at = _place(content, rng)
    return content[:at] + rng.bytes(rng.integers(1, 64)) + content[at:]


def _splice(content: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Take a stretch from another file, as a disk's wrong block would."""
    at, length = _place(content, rng), int(rng.integers(1, 4096))
    return content[:at] + other[at : at + length] + content[at + length :]


_FAULTS = (_flip, _flip, _edge, _edge, _cut, _drop, _insert, _splice)
