"""ONNX Runtime for browsers: npm's package onnxruntime-web, fetched once by npm."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from importlib import resources
from pathlib import Path

from kit.base import KitError, atomic_folder, shorten, temporary_folder

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
# Of its archive, as npm publishes it.
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="

SCRIPT, BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
_FETCH = f"npm pack {PACKAGE}@{VERSION}"
_BY_HAND = (
    f"where there is npm and a network type {_FETCH}, unpack it with tar, and name the folder with "
    f"--{PACKAGE} FOLDER"
)


def find_runtime(folder: Path | None = None) -> Path:
    """Return the folder of the package, with `dist/` in it.

    Parameters
    ----------
    folder
        That has it, as npm installs or unpacks it. Without one, it is taken from the cache, and
        fetched into it by npm if it is not there.

    Raises
    ------
    KitError
        If the folder does not hold it, or it cannot be fetched.
    """
    if folder is not None:
        return _checked(folder)
    kept = cache_folder() / f"{PACKAGE}-{VERSION}"
    if not (kept / "package.json").is_file():
        _fetch(kept)
    return _checked(kept)


def cache_folder() -> Path:
    """Return where the kit keeps what it has fetched for itself."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "histopathologic-cancer-kit"


def copy_runtime(package: Path, partial: Path) -> None:
    """Copy what a page needs of the package into a new folder, a part of one that is being written.

    The script is renamed to .js, since not every server knows .mjs. The package comes without its
    licence: that of ONNX Runtime's Python package, of the same project, lies beside it.
    """
    partial.mkdir()
    shutil.copyfile(package / "dist" / SCRIPT, partial / f"{Path(SCRIPT).stem}.js")
    shutil.copyfile(package / "dist" / BINARY, partial / BINARY)
    licence = resources.files("onnxruntime").joinpath("LICENSE").read_bytes()
    (partial / "LICENSE").write_bytes(licence)


def _checked(folder: Path) -> Path:
    missing = [f"package.json of {PACKAGE}"] if package_version(folder) is None else []
    missing += [
        f"dist/{name}" for name in (SCRIPT, BINARY) if not (folder / "dist" / name).is_file()
    ]
    if missing:
        raise KitError(f"{folder} holds no {missing[0]}: {_BY_HAND}")
    return folder


def package_version(folder: Path) -> str | None:
    """Return the version of the package in a folder; None if there is none."""
    try:
        described = json.loads((folder / "package.json").read_bytes())
        return str(described["version"]) if described["name"] == PACKAGE else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _fetch(kept: Path) -> None:
    """Fetch the package by npm, check it, and keep what a page needs."""
    with atomic_folder(kept) as partial:
        archive = _pack(partial)
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != _SHA512:
            raise KitError(f"{PACKAGE} {VERSION} as npm has fetched it is not what was published")
        with tarfile.open(archive) as packed:
            for name in ("package.json", f"dist/{SCRIPT}", f"dist/{BINARY}"):
                packed.extract(packed.getmember(f"package/{name}"), partial, filter="data")
        for each in (partial / "package").iterdir():
            each.rename(partial / each.name)
        (partial / "package").rmdir()
        archive.unlink()


def _pack(folder: Path) -> Path:
    """Let npm write the package's archive into a folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise KitError(
            f"{PACKAGE} is needed, which npm fetches, and there is no npm: install Node.js, or "
            f"{_BY_HAND}"
        )
    words = [
        npm,
        *_FETCH.split()[1:],
        "--loglevel=error",
        "--fetch-retries=1",
        "--pack-destination",
    ]
    # Its folder may name another registry.
    done = subprocess.run(
        [*words, str(folder.resolve())],
        cwd=temporary_folder(),
        capture_output=True,
        text=True,
        check=False,
    )
    archive = folder / f"{PACKAGE}-{VERSION}.tgz"
    if done.returncode or not archive.is_file():
        said = shorten(" ".join((done.stderr or done.stdout).split()), 200)
        raise KitError(f"npm cannot fetch {PACKAGE}{f' ({said})' if said else ''}: {_BY_HAND}")
    return archive
