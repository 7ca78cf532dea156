"""Which credential Kaggle's client sends, and how its value is kept out of all that is printed."""

import base64
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.base import KitError, shorten

SETTINGS_PAGE = "https://www.kaggle.com/settings"


def credential() -> str:
    """Name the credential that the client sends, and where it comes from; never its value.

    Raises
    ------
    KitError
        If there is none, saying how to get one, or if KAGGLE_API_TOKEN names a file without one.
    """
    _require_file()
    found = next(credentials(), None)
    if found is None:
        file = _config_folder() / "kaggle.json"
        broken = f"\n({file} is there, but holds no username and key)" if file.exists() else ""
        raise KitError(
            f"no Kaggle credential found.{broken}\nCreate an API token at {SETTINGS_PAGE} "
            "(API, Generate New Token), and put it into the variable KAGGLE_API_TOKEN or the file "
            f"~/.kaggle/access_token; or type `{_client()} auth login`. An older way is the "
            "kaggle.json of Create Legacy API Key, as ~/.kaggle/kaggle.json"
        )
    return found


def _client() -> str:
    """Return how the client is typed where its environment may not be activated."""
    return "kaggle" if shutil.which("kaggle") else f"{shlex.quote(sys.executable)} -m kaggle"


def _require_file() -> None:
    """Refuse a file that KAGGLE_API_TOKEN names and that holds no token.

    The client would send the path of one that is not there, and of an empty one nothing at all.
    """
    value = os.environ.get("KAGGLE_API_TOKEN", "")
    file = _named_file(value)
    # No token begins so.
    is_path = value.startswith(("/", "~", "./", "../"))
    if not (is_path if file is None else not _is_filled(file)):
        return
    reason = "there is no such file" if file is None else "that is no file with a token in it"
    raise KitError(
        f"KAGGLE_API_TOKEN names {shorten(value)}, and {reason}: put the token or the file's "
        "full path into it, or unset it for another credential"
    )


def credentials() -> Iterator[str]:
    """Name the credentials there are in the order in which the client takes them (2.2.4)."""
    home = Path.home() / ".kaggle"
    if "KAGGLE_DATA_PROXY_URL" in os.environ and "KAGGLE_API_V1_TOKEN" in os.environ:
        yield "the Kaggle notebook's own token"
    token = os.environ.get("KAGGLE_API_TOKEN", "")
    file = _named_file(token)
    if file is not None and _is_filled(file):
        yield f"the API token in {file}, which KAGGLE_API_TOKEN names"
    elif token and file is None:
        yield "the API token in KAGGLE_API_TOKEN"
    for file in (home / "access_token", home / "access_token.txt"):
        if _is_filled(file):
            yield f"the API token in {file}"
    legacy = _legacy_key()
    if legacy:
        yield legacy
    if (home / "credentials.json").is_file():
        yield f"the login in {home / 'credentials.json'}"


def without_secrets(text: str) -> str:
    """Drop credentials, and what a URL has besides its address: a signature, a password."""
    text = re.sub(r"(Basic|Bearer) \S+", r"\1 ***", masked(text))
    return re.sub(r"\?[^\s'\")]+", "", re.sub(r"://[^/\s@]+@", "://", text))


def masked(text: str) -> str:
    """Drop the values of credentials, as they are and in base64: a server may echo its request."""
    secrets = _secrets()
    for secret in secrets:
        text = text.replace(secret, "***")
    return re.sub(
        r"[A-Za-z0-9+/_-]{8,}",
        lambda found: "***" if _holds(found[0], secrets) else found[0],
        text,
    )


def _holds(word: str, secrets: set[str]) -> bool:
    """Whether a word is base64, of either alphabet, of something with a secret in it."""
    plain = word.translate(str.maketrans("-_", "+/"))
    # Letters may be before it, and its end may lack signs of equality.
    parts = [plain[start:] for start in range(4)]
    decoded = [base64.b64decode(part + "A" * (-len(part) % 4)) for part in parts]
    return any(secret.encode() in content for secret in secrets for content in decoded)


def _legacy_key() -> str | None:
    """Say where username and key come from: the environment overrides the file key by key."""
    file = _config_folder() / "kaggle.json"
    saved = _saved(file)
    sources = []
    for name in ("username", "key"):
        variable = f"KAGGLE_{name.upper()}"
        if os.environ.get(variable):
            sources.append(variable)
        elif saved.get(name):
            readable = file.stat().st_mode & 0o044
            advice = f" (others on this machine can read it: chmod 600 {file})" if readable else ""
            sources.append(f"{file}{advice}")
    if len(sources) < 2:
        return None
    return f"the username and key in {' and '.join(dict.fromkeys(sources))}"


def _saved(file: Path) -> dict[str, Any]:
    """Read a file of credentials; nothing if there is none in it."""
    try:
        saved = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return saved if isinstance(saved, dict) else {}


def _config_folder() -> Path:
    """Return where the client looks for kaggle.json (2.2.4)."""
    home = Path.home() / ".kaggle"
    if os.environ.get("KAGGLE_CONFIG_DIR"):
        return Path(os.environ["KAGGLE_CONFIG_DIR"])
    if sys.platform.startswith("linux") and not home.exists():
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle"
    return home


def _secrets() -> set[str]:
    """Return the values of all credentials there are: a server may echo what it was sent."""
    home = Path.home() / ".kaggle"
    variables = ("KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_API_V1_TOKEN")
    values = [os.environ.get(name, "") for name in variables]
    named = [file for file in map(_named_file, values) if file is not None]
    # Of a variable that names a file the content is the secret, not the path.
    found = [value for value in values if _named_file(value) is None]
    for file in (*named, home / "access_token", home / "access_token.txt"):
        found += [file.read_text("utf-8", "replace").strip()] if _is_filled(file) else []
    for file in (_config_folder() / "kaggle.json", home / "credentials.json"):
        entries = _saved(file).items()
        found += [str(value) for name, value in entries if re.search("key|token", name)]
    return {value for value in found if value}


def _named_file(value: str) -> Path | None:
    """Return the file that a variable names in place of a credential, if it does."""
    try:
        return Path(value) if value and Path(value).exists() else None
    except OSError:
        # Too long for a name.
        return None


def _is_filled(file: Path) -> bool:
    return file.is_file() and bool(file.read_bytes().strip())
