"""One self-contained script for Kaggle: the kit, its commands and what Kaggle's image lacks."""

import base64
import io
import lzma
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

from kit import __version__
from kit.base import (
    SLUG,
    KitError,
    Recipe,
    is_custom,
    read_custom,
    recipe_names,
    write_json,
    write_text,
)
from kit.kaggle.job import Job
from kit.kaggle.output import require_name
from kit.kaggle.reach import NOTHING_ELSE, Reach, complete
from kit.kaggle.slides_code import SUFFIX, encode_slides

SCRIPT_FILE = "script.py"
METADATA_FILE = "kernel-metadata.json"

# Pure Python, MIT or BSD, and perhaps not in Kaggle's image: the command line, with what it needs,
# TOML, and the packages' doors.
_EMBEDDED = ("tyro", "docstring_parser", "typeguard", "tomli_w", "lazy_loader")
_SUFFIXES = {".py", ".pyi", ".toml", ".html", ".css", ".js", ".md"}
# The script gives these itself.
_RESERVED = {"--data", "--out", "--resume"}
# What Kaggle takes at most is not published; larger files have a better place in a dataset.
_MAX_BYTES = 1_000_000

_UNPACK = """\
import base64
import io
import lzma
import sys
import tempfile
import zipfile
from pathlib import Path

BUNDLE = "{bundle}"

home = Path(tempfile.gettempdir(), "histopathologic-cancer-kit")
zipfile.ZipFile(io.BytesIO(lzma.decompress(base64.b85decode(BUNDLE)))).extractall(home)
sys.path.insert(0, str(home))
"""

_SCRIPT = '''\
"""{name}: built from histopathologic-cancer-kit {version} by kernels/push.py; edit that."""

{unpack}
import os

from kit.base import exit_on_error
from kit.kaggle import Job, run_job

with exit_on_error():
    run_job({job!r}, home, Path(os.environ.get("HCD_KAGGLE_ROOT", "/kaggle")))
'''


def build_kernel(
    folder: Path,
    job: Job,
    *,
    owner: str,
    repository: Path,
    reach: Reach = NOTHING_ELSE,
) -> None:
    """Write the script and the metadata that `kaggle kernels push` takes.

    Parameters
    ----------
    owner
        The account's user name.
    repository
        Holds kit/ and kernels/.

    Raises
    ------
    KitError
        If the name is not one that Kaggle takes, an argument is the script's own, the command
        would lack something there, or the script becomes too large.
    """
    require_name(job.name)
    job = complete(job, reach)
    text = script(job, repository)
    if len(text) > _MAX_BYTES:
        raise KitError(
            f"the script has {len(text):,} bytes, more than {_MAX_BYTES:,}: put large files that "
            "the arguments name into a Kaggle dataset, mount it with --dataset, and name them by "
            f"their path there{_hint(job)}"
        )
    write_text(folder / SCRIPT_FILE, text)
    write_json(folder / METADATA_FILE, metadata(job, owner=owner, reach=reach))


def script(job: Job, repository: Path) -> str:
    """Return the script; files that the arguments name are embedded, the same text each time."""
    arguments, given = _embed(job.arguments)
    return _SCRIPT.format(
        name=job.name,
        version=__version__,
        unpack=unpacking(repository, given),
        job=replace(job, arguments=arguments),
    )


def unpacking(repository: Path, given: Mapping[str, bytes] = MappingProxyType({})) -> str:
    """Return the lines that hold and unpack the kit, its commands, libraries and given files.

    They are in base85 of a zip in xz: compressed as a whole they take two thirds of what they take
    file by file. The same files give the same lines.
    """
    files = {**_sources(repository), **_libraries(), **given}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            # With a date of its own each build would differ.
            archive.writestr(zipfile.ZipInfo(name), files[name])
    packed = lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    return _UNPACK.format(bundle=base64.b85encode(packed).decode())


def metadata(job: Job, *, owner: str, reach: Reach) -> dict[str, Any]:
    """Return what kernel-metadata.json says."""
    kernel = f"{owner}/{job.name}"
    values = {
        "id": kernel,
        # Kaggle makes the kernel's address from it, which has to be the one in `id`.
        "title": job.name,
        "code_file": SCRIPT_FILE,
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
        "enable_gpu": job.gpu,
        "enable_internet": reach.internet,
        "competition_sources": [SLUG],
        "dataset_sources": list(reach.datasets),
        "model_sources": list(reach.models),
        "kernel_sources": [kernel] if job.resume else [],
        # A run can only be resumed with the torch that began it.
        "docker_image_pinning_type": "original",
    }
    return values | ({"machine_shape": "NvidiaTeslaT4"} if job.gpu else {})


def _embed(arguments: Sequence[str]) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """Replace the files that options name (FILE; of --arm NAME=FILE) by copies in the bundle."""
    replaced, files, option = [], {}, ""
    for number, argument in enumerate(arguments):
        is_option = argument.startswith("--")
        flag, equals, value = argument.partition("=") if is_option else ("", "", argument)
        option = flag or option
        if option in _RESERVED:
            raise KitError(f"{argument}: the script chooses --data, --out and --resume itself")
        if option in ("--model", "--augment") and is_custom(value):
            custom = read_custom(value)
            name = f"given/{number}/{custom.path.name}"
            files[name] = custom.text
            replaced.append(f"{flag}{equals}{{home}}/{name}:{custom.name}")
            continue
        file = value.partition("=")[2] if option == "--arm" else value
        if _is_given_file(option, file):
            name = f"given/{number}/{Path(file).name}"
            code = encode_slides(Path(file)) if option == "--slides" else None
            if code is None:
                files[name] = Path(file).read_bytes()
            else:
                files[name + SUFFIX] = code
            argument = f"{flag}{equals}{value.removesuffix(file)}{{home}}/{name}"
        replaced.append(argument)
    return tuple(replaced), files


def _hint(job: Job) -> str:
    """Say which table of slides is whole, where a large one is pushed that is not."""
    if not any(argument.partition("=")[0] == "--slides" for argument in job.arguments):
        return ""
    return (
        ". A table of slides that names each of the competition's training tiles, such as "
        "patch_id_wsi_full.csv, travels as a number per tile; this one is partial, or names others"
    )


def _is_given_file(option: str, value: str) -> bool:
    """Whether an option's value is a file here, and not a word that some file is named like."""
    name = option.removeprefix("--").replace("-", "_")
    if name in ("recipe", "arm"):
        return value not in recipe_names() and Path(value).is_file()
    return Path in get_args(get_type_hints(Recipe).get(name)) and Path(value).is_file()


def _sources(repository: Path) -> dict[str, bytes]:
    """Return the kit's own files, by their names in the bundle."""
    return {
        path.relative_to(repository).as_posix(): path.read_bytes()
        for folder in ("kit", "kernels")
        for path in (repository / folder).rglob("*")
        if path.suffix in _SUFFIXES
    }


def _libraries() -> dict[str, bytes]:
    """Return the embedded packages as they are installed here, with their licences."""
    return {
        file.as_posix(): Path(file.locate()).read_bytes()
        for name in _EMBEDDED
        for file in distribution(name).files or []
        if file.suffix == ".py" or file.name.startswith(("LICENSE", "METADATA"))
    }
