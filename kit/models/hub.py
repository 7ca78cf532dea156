"""Weights from the Hugging Face hub: fetched once, and what goes wrong said with the next step."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.base import KitError

# As timm looks for them.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def fetch_weights(repository: str) -> Path:
    """Return the file of a hub's repository that holds its weights, fetched on first use.

    Parameters
    ----------
    repository
        OWNER/NAME, or OWNER/NAME@REVISION.

    Raises
    ------
    KitError
        If the hub does not give it: what to do is said.
    """
    # Its import takes half a second.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    name, _, revision = repository.partition("@")
    with explained(repository):
        for file in WEIGHT_FILES:
            try:
                return Path(hf_hub_download(name, file, revision=revision or None))
            except LocalEntryNotFoundError:
                raise
            except RemoteEntryNotFoundError:
                continue
    raise KitError(
        f"{_page(repository)} holds none of {', '.join(WEIGHT_FILES)}: bring its weights as one of "
        "these and give them with --weights FILE"
    )


@contextmanager
def explained(repository: str) -> Iterator[None]:
    """Turn what the hub refuses or fails at into one message with the next step.

    Raises
    ------
    KitError
    """
    from huggingface_hub import errors

    # Its parents are those of all that goes wrong on the way, in whatever HTTP library it uses.
    broken: Any = (*errors.HfHubHTTPError.__bases__, OSError, RuntimeError)
    page = _page(repository)
    bring = f"bring {WEIGHT_FILES[0]} or {WEIGHT_FILES[1]} of {page} by other means: --weights FILE"
    try:
        yield
    except errors.GatedRepoError as error:
        raise KitError(_gated(page, bring)) from error
    except errors.RepositoryNotFoundError as error:
        raise KitError(
            f"the hub has no {page}, or does not show it: check the name{_token_hint()}, or {bring}"
        ) from error
    except errors.HFValidationError as error:
        raise KitError(f"hf-hub:{repository} is not hf-hub:OWNER/NAME") from error
    except broken as error:
        if _is_refused(error):
            raise KitError(_gated(page, bring)) from error
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise KitError(f"cannot reach the hub{reason(error)}: {bring}") from error
        raise KitError(
            f"the download from {page} failed{reason(error)}: type the command again, or {bring}"
        ) from error


def reason(error: BaseException) -> str:
    """Return an error's text in parentheses, in one line and cut where it is long."""
    words = " ".join(str(error).split())
    return f" ({words[:200]})" if words else ""


def _is_refused(error: BaseException | None) -> bool:
    """Whether the hub said 401 or 403: the client may tell of a missing file in its place."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return error is not None and (status in (401, 403) or _is_refused(error.__cause__))


def _gated(page: str, bring: str) -> str:
    return f"{page} is gated: accept its terms there{_token_hint()}; or {bring}"


def _token_hint() -> str:
    """Say how the hub knows its user."""
    given = "its account must be the one" if os.environ.get("HF_TOKEN") else "of the account"
    return f", and set HF_TOKEN to a token ({given} that has the access)"


def _page(repository: str) -> str:
    return f"https://huggingface.co/{repository.partition('@')[0]}"
