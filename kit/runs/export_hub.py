"""A run's folder for timm, uploaded to the Hugging Face hub."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.base import KitError, Pixels, shorten, temporary_folder
from kit.runs.card import CardFacts
from kit.runs.export_timm import write_timm

# What the hub itself puts into a new repository.
_OF_THE_HUB = {".gitattributes"}
_TOKEN = "set HF_TOKEN to a token that may write (https://huggingface.co/settings/tokens)"


def require_hub(repository: str) -> None:
    """Refuse an upload that the hub would refuse, before anything is written.

    Raises
    ------
    KitError
        If it is not OWNER/NAME of a repository, or nothing says who uploads.
    """
    from huggingface_hub import get_token

    # The hub's client takes a name without an owner, too.
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise _no_name(repository)
    if get_token() is None:
        raise KitError(f"the hub asks who uploads to it: {_TOKEN}, or type hf auth login")


def upload_timm(
    repository: str, folder: Path, tiles: Pixels, *, public: bool, facts: CardFacts
) -> tuple[str, float]:
    """Upload a run's weights, configuration and model card to the hub, in timm's layout.

    Everything arrives in one commit, or nothing does. A repository that is there is only filled if
    it is empty, as an upload leaves it that broke off.

    Parameters
    ----------
    repository
        OWNER/NAME.
    folder
        Of the run.
    public
        Whether everybody may see it; otherwise only its owner.

    Returns
    -------
    str
        The address of its page.
    float
        As `write_timm` returns it.

    Raises
    ------
    KitError
        As `write_timm` does, or if the hub does not take it: nothing is uploaded then.
    """
    from huggingface_hub import HfApi

    require_hub(repository)
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as scratch:
        place = Path(scratch) / "model"
        loaded = f"hf-hub:{repository}"
        difference = write_timm(place, folder, tiles, place=loaded, facts=facts)
        with _explained(repository):
            api = HfApi()
            _make_room(api, repository, public=public)
            api.upload_folder(
                repo_id=repository,
                folder_path=place,
                commit_message=f"Upload {folder.name} of the histopathologic cancer kit",
            )
    return f"{api.endpoint}/{repository}", difference


def _make_room(api: Any, repository: str, *, public: bool) -> None:
    """Make a repository, or find it empty."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repository, private=not public)
    except HfHubHTTPError as error:
        if _status(error) != 409:
            raise
        if set(api.list_repo_files(repository)) - _OF_THE_HUB:
            raise KitError(
                f"{repository} exists on the hub and is not empty: choose another name, or delete "
                "it there"
            ) from error
        api.update_repo_settings(repository, private=not public)


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn what the hub refuses or fails at into one message with the next step."""
    from huggingface_hub import errors

    # Its parents are those of all that goes wrong on the way, in whatever HTTP library it uses.
    broken: Any = (*errors.HfHubHTTPError.__bases__, OSError, RuntimeError, ValueError)
    try:
        yield
    except errors.HFValidationError as error:
        raise _no_name(repository) from error
    except broken as error:
        status = _status(error)
        if status == 401:
            message = f"the hub does not know the token: {_TOKEN}"
        elif status == 403:
            message = (
                f"the token may not write to {repository}: choose an OWNER that it may write to, "
                f"or {_TOKEN}"
            )
        else:
            said = shorten(" ".join(str(error).split()), 200)
            message = (
                f"the upload to {repository} broke off ({said}), and nothing of it was kept: type "
                "the command again"
            )
        raise KitError(message) from error


def _no_name(repository: str) -> KitError:
    return KitError(f"--hub {repository} is not OWNER/NAME of a repository")


def _status(error: BaseException | None) -> int | None:
    """Return the status that the hub answered with: the client may tell of something else."""
    if error is None:
        return None
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if status is not None else _status(error.__cause__)
