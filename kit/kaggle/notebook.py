"""The study as a notebook: the text and the code of notebook.md, with the kit in a cell of it."""

import json
import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from tqdm import tqdm

from kit.base import KitError, write_json, write_text
from kit.kaggle.bundle import METADATA_FILE, metadata, unpacking
from kit.kaggle.job import Job
from kit.kaggle.output import require_name
from kit.kaggle.reach import NOTHING_ELSE, Reach

NOTEBOOK_FILE = "notebook.ipynb"
# Stands for the lines that unpack the kit.
_KIT = "the kit"
_CODE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Notebook:
    """How much a notebook computes.

    Attributes
    ----------
    name
        Of the kernel, and of the folder below studies/.
    seeds, sweep_seeds
        Pairs of runs, and trainings of the momentum sweep.
    gpu
        Whether it ends at once without one.
    data
        Folder of the competition's data; on Kaggle it is found by itself.
    """

    name: str = "histopathologic-notebook"
    epochs: int = 20
    seeds: int = 6
    sweep_seeds: int = 8
    gpu: bool = False
    data: Path = Path("data")


def notebook_text(settings: Notebook, repository: Path) -> str:
    """Return a notebook as JSON, not executed; the same text each time.

    Parameters
    ----------
    repository
        Holds kit/ and kernels/.
    """
    source = resources.files("kit.kaggle").joinpath("notebook.md").read_text("utf-8")
    values = vars(settings) | {"data": repr(str(settings.data)), "unpack": _KIT}
    source = Template(source).substitute(values)
    parts = (part.strip() for part in _CODE.split(source))
    # Code stands between texts, the first of which may be empty.
    cells = [_cell(part, number) for number, part in enumerate(parts) if part]
    for cell in cells:
        if cell["source"] == _KIT:
            cell["source"] = unpacking(repository).strip()
            cell["metadata"] = {"jupyter": {"source_hidden": True}, "_kg_hide-input": True}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        # https://nbformat.readthedocs.io/en/latest/format_description.html
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1) + "\n"


def _cell(source: str, number: int) -> dict[str, Any]:
    """Return a cell: of the parts of notebook.md every second one is code."""
    cell = {"id": f"part-{number}", "metadata": {}, "source": source}
    if number % 2 == 0:
        return {"cell_type": "markdown", **cell}
    return {"cell_type": "code", "execution_count": None, "outputs": [], **cell}


def build_notebook(
    folder: Path,
    settings: Notebook,
    *,
    owner: str,
    repository: Path,
    reach: Reach = NOTHING_ELSE,
) -> None:
    """Write the notebook and the metadata that `kaggle kernels push` takes.

    Parameters
    ----------
    owner
        The account's user name.

    Raises
    ------
    KitError
        If the name is not one that Kaggle takes.
    """
    require_name(settings.name)
    write_text(folder / NOTEBOOK_FILE, notebook_text(settings, repository))
    job = Job("compare", (), settings.name, resume=False, hours=0.0, gpu=settings.gpu)
    own: dict[str, Any] = {"code_file": NOTEBOOK_FILE, "kernel_type": "notebook"}
    write_json(folder / METADATA_FILE, metadata(job, owner=owner, reach=reach) | own)


def execute_notebook(text: str, path: Path) -> None:
    """Execute a notebook in the working folder, and write it with its results.

    Raises
    ------
    KitError
        If a cell fails; the notebook is written as far as it came.
    """
    try:
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, DeadKernelError
        from nbformat import from_dict
        from traitlets.config import Config
    except ImportError as error:
        raise KitError(f"{error}: pip install nbclient ipykernel, or take --no-execute") from error

    notebook = from_dict(json.loads(text))
    with tqdm(total=len(notebook["cells"]), unit=" cells") as bar:
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            # Sockets of files, which no other account reaches.
            config=Config({"ConnectionFileMixin": {"transport": "ipc"}}),
            on_cell_executed=lambda **_: bar.update(),
        )
        try:
            client.execute(env=os.environ | {"TQDM_DISABLE": "1"})
        except (CellExecutionError, DeadKernelError) as error:
            reason = getattr(error, "evalue", str(error)).strip()
            raise KitError(
                f"the notebook stopped: {reason}\n{path} holds it as far as it came"
            ) from error
        finally:
            for cell in (one for one in notebook["cells"] if one["cell_type"] == "code"):
                cell["outputs"] = [one for one in cell["outputs"] if not _is_bar(one)]
            write_text(path, json.dumps(notebook, indent=1) + "\n")


def _is_bar(output: dict[str, Any]) -> bool:
    """Whether a cell's output is part of a progress bar, which no reader needs."""
    text = output.get("text", "")
    is_blank = not text.strip()
    return output.get("name") == "stderr" and (is_blank or bool(re.search(r"\d%\|", text)))
