"""A private dataset on Kaggle that holds a folder of this machine."""

import re
from pathlib import Path

from kit.base import LOCK_NAME, KitError, write_json
from kit.kaggle.client import run_client
from kit.kaggle.credentials import without_secrets
from kit.kaggle.output import require_name


def create_dataset(folder: Path, staging: Path, *, owner: str, name: str) -> str:
    """Upload the files of a folder as a new private dataset, and return its address.

    Parameters
    ----------
    staging
        Shows the same files to the client, beside what it wants to be told. It knows by this path
        what it has uploaded already, so it stays until all is done.

    Raises
    ------
    KitError
        If Kaggle does not take it, or has one of that name.
    """
    require_name(name)
    staging.mkdir(exist_ok=True)
    for path in folder.iterdir():
        link = staging / path.name
        link.unlink(missing_ok=True)
        if path.is_file() and path.name != LOCK_NAME:
            link.symlink_to(path.resolve())
    values = {"id": f"{owner}/{name}", "title": name, "licenses": [{"name": "CC0-1.0"}]}
    write_json(staging / "dataset-metadata.json", values)
    said = run_client("create", f"--path={staging}", group="datasets")
    # The client exits with 0 either way.
    created = re.search(r"is being created\..* at (\S+)$", said, re.M)
    if not created:
        reason = re.findall(r"^Dataset creation error: (.*)$", said, re.M) or [said.strip()]
        raise KitError(
            f"Kaggle has not made the dataset: {without_secrets(reason[-1])}\n"
            f"If it is there already, take it as it is, with push.py --dataset {owner}/{name}, or "
            "give another --name"
        )
    # kaggle 2.2.4 leaves out what it could not upload.
    sent = set(re.findall(r"^Upload successful: (\S+) ", said, re.M))
    if missing := sorted({path.name for path in staging.iterdir() if path.is_symlink()} - sent):
        raise KitError(
            f"Kaggle has made {created[1]} without {', '.join(missing)}, whose upload failed: "
            "delete it there, then type the same command again"
        )
    return created[1]
