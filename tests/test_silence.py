"""The kit talks to nobody but Kaggle, and to Kaggle only where it was told to.

Every command runs where whatever is sent would be seen: all proxies lead to a recorder on the
loopback device, the home folder is new, and `CI`, under which some libraries are silent, is unset.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "kernels"

SMALL = "--data data --epochs 1 --batch-size 8"
COMMANDS = [
    "notebook --no-execute",
    "standin --data data --train 60 --test 20",
    "pack --data data",
    "encode --list",
    "explore --data data",
    f"train {SMALL} --out runs/one",
    f"train {SMALL} --out runs/two --model test_resnet --augment full",
    f"compare {SMALL} --seeds 1 --out studies/bn",
    f"momentum {SMALL} --seeds 1 --values 0.9 0.5 --out studies/momentum",
    f"tune search {SMALL} --trials 1 --out studies/search --size 32",
    "ensemble runs/one runs/two --out ensembles/both",
    "predict --ensemble ensembles/both/ensemble.json --data data",
    "export --run runs/one --data data --out one.onnx --tensorboard board",
    "export --run runs/two --timm timm",
    "runs --html runs.html --out runs.csv",
]
# They find no credentials, and so leave Kaggle's client alone, or no time to train in.
REFUSED = [
    "best --data data --time-limit 1s",
    "download --data new",
    "learning_curve --data data",
    "scores",
    "submit --data data",
    "push",
    "pull",
    "dataset --data data",
]

# One process for all commands: importing the libraries takes longer than all of their work.
RUN_ALL = """
import json, runpy, sys

def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("SENT", event, arguments, sys.argv, file=sys.stderr)

sys.addaudithook(hook)
for argv, status in json.loads(sys.argv[1]):
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
        ended = 0
    except SystemExit as error:
        ended = error.code or 0
    assert ended == status, (argv, ended)
"""


@contextmanager
def recorder() -> Iterator[tuple[str, list[bytes]]]:
    """Yield the address of a proxy that lets nothing through, and what it was asked for."""
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(1000).partition(b"\r\n")[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def as_a_person(home: Path, proxy: str) -> dict[str, str]:
    """Return an environment that switches nothing off."""
    switches = ("KAGGLE_", "HF_", "ORT_", "NO_ALBUMENTATIONS", "XDG_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(switches) and name != "CI" and "proxy" not in name.lower()
    }
    proxies = {f"{kind}_proxy": proxy for kind in ("http", "https", "all")}
    return kept | proxies | {name.upper(): proxy for name in proxies} | {"HOME": str(home)}


def test_no_command_and_no_library_reports_anything(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    argvs = [([f"{KERNELS / line.split()[0]}.py", *line.split()[1:]], 0) for line in COMMANDS]
    argvs += [([f"{KERNELS / line.split()[0]}.py", *line.split()[1:]], 1) for line in REFUSED]
    with recorder() as (proxy, asked):
        done = subprocess.run(
            [sys.executable, "-c", RUN_ALL, json.dumps(argvs)],
            cwd=tmp_path,
            env=as_a_person(home, proxy),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "SENT" not in done.stderr
    assert asked == []
    # onnxruntime reports after some seconds what it has written there at once.
    assert not [path for path in home.rglob("*") if "onnxruntime" in path.name]
    imported = {path.stem for path in KERNELS.glob("*.py")}
    assert {Path(argv[0]).stem for argv, _ in argvs} | {"search"} == imported
