"""Kaggle without Kaggle: the built script alone in an imitation of its container, and the push
and the pull of the unmodified client against a server of our own."""

import base64
import hashlib
import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pandas as pd
import pytest
import timm
import torch
from conftest import competition_files, kernel, write_folder
from kaggle_server import KEY, KaggleServer, move_in, refusal, serve, until
from safetensors.torch import save_file
from warm_client import start_for_real

from kit import kaggle, runs
from kit.base import LOCK_NAME, KitError, RunOptions, parse_options
from kit.data import open_store
from kit.kaggle import Job, bundle
from kit.kaggle.reach import Reach, complete
from kit.kaggle.sums import CHECKSUMS

ROOT = Path(__file__).parents[1]
IMAGE = os.environ.get("KIT_KAGGLE_IMAGE")
NAME = "hcd-before"
RUN = f"runs/{NAME}"
# On a GPU two trainings need not give the same bits.
ARGUMENTS = ("--epochs", "2", "--batch-size", "16", "--bn", "before", "--device", "cpu")
MOUNTS = ("competitions/histopathologic-cancer-detection", "histopathologic-cancer-detection")
# Not in Kaggle's image, or put where the kit itself could be found.
LACKING = ("kit", "__editable__", "histopathologic", "captum", *bundle._EMBEDDED)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python like that of Kaggle's image: the libraries are there, the kit is not.

    `make kaggle-image` names one with the versions of that image.
    """
    if IMAGE:
        return Path(IMAGE).absolute()
    folder = tmp_path_factory.mktemp("image")
    venv.create(folder, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for path in Path(torch.__file__).parents[1].iterdir():
        if not path.name.startswith(LACKING) and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    return folder / "bin" / "python"


class Container:
    """A folder laid out as /kaggle, its input read-only, with an empty one to start in."""

    def __init__(self, folder: Path, mount: str) -> None:
        self.folder = folder
        self.reach = kaggle.Reach()
        self.input = folder / "kaggle" / "input"
        self.working = folder / "kaggle" / "working"
        for made in (self.working, folder / "src", folder / "tmp"):
            made.mkdir(parents=True)
        write_folder(self.input / mount, competition_files(train=120, test=9))

    def run(self, python: Path, job: Job) -> CompletedProcess[str]:
        """Build a job's script and run it with nothing else at hand."""
        before = listing(self.input)
        with self.start(python, job) as process:
            said = process.communicate()
        assert listing(self.input) == before
        assert "Traceback" not in said[1]
        return CompletedProcess(process.args, process.returncode, *said)

    def start(self, python: Path, job: Job) -> "subprocess.Popen[str]":
        """Build a job's script and start it, as the leader of all that it starts."""
        kaggle.build_kernel(
            self.folder / "built", job, owner="nobody", repository=ROOT, reach=self.reach
        )
        shutil.copy(self.folder / "built" / bundle.SCRIPT_FILE, self.folder / "src")
        for path in [self.input, *self.input.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        return subprocess.Popen(
            [python, "-I", bundle.SCRIPT_FILE],
            cwd=self.folder / "src",
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder / "tmp"),
                "TMPDIR": str(self.folder / "tmp"),
                "HCD_KAGGLE_ROOT": str(self.folder / "kaggle"),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def listing(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.name != LOCK_NAME)
    return {str(path.relative_to(folder)) for path in found}


def job(**changes: object) -> Job:
    values = {"command": "train", "arguments": ARGUMENTS, "name": NAME, "resume": False}
    return Job(**(values | {"hours": 1.0} | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The run that the script is to make, after its first epoch and at its end."""
    folder = tmp_path_factory.mktemp("reference")
    write_folder(folder / "data", competition_files(train=120, test=9))
    options = parse_options(RunOptions, "", ARGUMENTS)
    tiles = open_store(folder / "data")
    run = runs.Run(options.recipe, tiles, folder / NAME, device=options.device)
    kept = {}
    for result in run.train(progress=False):
        kept[result.epoch] = folder / f"after-{result.epoch}"
        shutil.copytree(run.folder, kept[result.epoch])
    return kept | {0: run.folder}


@pytest.mark.parametrize("mount", MOUNTS)
def test_script_trains_alone_from_either_mount(
    tmp_path: Path, python: Path, reference: dict[int, Path], mount: str
) -> None:
    """Under the older mount it goes on with its own earlier output."""
    alone = subprocess.run([python, "-I", "-c", "import kit"], capture_output=True, text=True)
    assert "No module named 'kit'" in alone.stderr
    # A run goes on only with the PyTorch that began it.
    resume = mount == MOUNTS[1] and not IMAGE
    container = Container(tmp_path, mount)
    if resume:
        shutil.copytree(reference[1], container.input / "notebooks/nobody" / NAME / RUN)
    done = container.run(python, job(resume=resume))
    assert done.returncode == 0, done.stderr
    assert ("epoch 1/2" in done.stdout) is not resume
    assert listing(container.working) >= {"submission.csv", f"{RUN}/report.html"}
    assert len(pd.read_csv(container.working / "submission.csv")) == 9
    # Another PyTorch rounds in another way.
    same = ["split.csv"] if IMAGE else ["model.safetensors", "split.csv", "valid.csv"]
    for name in same:
        trained = (container.working / RUN / name).read_bytes()
        assert trained == (reference[0] / name).read_bytes()
    sums = json.loads((container.working / CHECKSUMS).read_text())
    content = (container.working / RUN / "last.pt").read_bytes()
    assert sums[f"{RUN}/last.pt"] == hashlib.sha256(content).hexdigest()
    assert not (tmp_path / "src" / "store").exists()


@pytest.mark.soak
@pytest.mark.parametrize("mount", MOUNTS)
def test_script_that_was_killed_goes_on_from_its_checkpoint(
    tmp_path: Path, python: Path, reference: dict[int, Path], mount: str
) -> None:
    """Killed within an epoch, as Kaggle kills, and resumed from what was left: the same bits."""
    steps = (*ARGUMENTS, "--checkpoint-steps", "1")
    container = Container(tmp_path / "one", mount)
    left = container.working / RUN
    with container.start(python, job(arguments=steps)) as process:
        until(lambda: (left / "last.pt").exists(), seconds=120)
        os.killpg(process.pid, signal.SIGKILL)
    sums = json.loads((container.working / CHECKSUMS).read_text())
    assert sums.keys() <= {f"{RUN}/{path.name}" for path in left.iterdir()}
    again = Container(tmp_path / "two", mount)
    shutil.copytree(left, again.input / "notebooks/nobody" / NAME / RUN)
    done = again.run(python, job(arguments=steps, resume=True))
    assert done.returncode == 0, done.stderr
    if not IMAGE:
        trained = (again.working / RUN / "model.safetensors").read_bytes()
        assert trained == (reference[0] / "model.safetensors").read_bytes()
    assert len(pd.read_csv(again.working / "submission.csv")) == 9


SMALL = ("--epochs", "1", "--batch-size", "16", "--device", "cpu")
STUDIES = {
    "compare": (*SMALL, "--seeds", "1"),
    "momentum": (*SMALL, "--seeds", "1", "--values", "0.9", "0.5"),
    "search": (*SMALL, "--trials", "2"),
}


@pytest.mark.soak
@pytest.mark.parametrize("command", STUDIES)
def test_script_runs_a_study(tmp_path: Path, python: Path, command: str) -> None:
    container = Container(tmp_path, MOUNTS[0])
    done = container.run(python, job(command=command, arguments=STUDIES[command]))
    assert done.returncode == 0, done.stderr
    assert (container.working / "studies" / NAME / "report.html").is_file()


@pytest.mark.soak
def test_script_starts_from_mounted_weights(tmp_path: Path, python: Path) -> None:
    container = Container(tmp_path, MOUNTS[0])
    weights = container.input / "datasets/somebody/test_resnet/model.safetensors"
    weights.parent.mkdir(parents=True)
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    arguments = (*SMALL, "--model", "test_resnet", "--pretrained", "--folds", "2")
    container.reach = kaggle.Reach(("somebody/test_resnet",))
    done = container.run(python, job(arguments=arguments))
    assert done.returncode == 0, done.stderr
    assert f"the weights of test_resnet: {weights}" in done.stdout
    assert len(pd.read_csv(container.working / "submission.csv")) == 9


def test_script_stops_at_its_limit_and_says_how_to_go_on(tmp_path: Path, python: Path) -> None:
    done = Container(tmp_path, MOUNTS[0]).run(python, job(hours=0.0))
    assert done.returncode == 0
    assert "stopped after 0.0 h: push it again with --resume" in done.stdout
    assert listing(tmp_path / "kaggle" / "working") == {CHECKSUMS}


@pytest.mark.parametrize(
    ("mount", "changes", "message"),
    [
        ("elsewhere", {}, "accept the rules at https://www.kaggle.com/c/histopathologic"),
        (MOUNTS[0], {"resume": True}, f"--resume, but no input holds {RUN}"),
    ],
)
def test_script_says_what_is_wrong(
    tmp_path: Path, python: Path, mount: str, changes: dict[str, object], message: str
) -> None:
    done = Container(tmp_path, mount).run(python, job(**changes))
    assert done.returncode == 1
    assert message in done.stderr


def test_same_sources_give_the_same_script_with_the_files_that_arguments_name(
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("epochs = 1\n")
    named = job(arguments=(f"--recipe={recipe}", "--seed", "1"))
    text = bundle.script(named, ROOT)
    assert text == bundle.script(named, ROOT)
    assert "('--recipe={home}/given/0/mine.toml', '--seed', '1')" in text
    compile(text, "script.py", "exec")


@pytest.mark.parametrize(
    ("arguments", "embedded"),
    [
        (("--bn", "before", "--seed=1", "--model", "compact"), ()),
        (("--recipe", "compact", "--arm", "a=compact", "--validate-on", "A", "before"), ()),
        (("--slides", "before", "--weights=1"), ("given/1/before", "given/2/1")),
        (("--arm=a=mine", "--arm", "b=mine"), ("given/0/mine", "given/2/mine")),
        (("--slides", "a=b"), ("given/1/a=b",)),
    ],
)
def test_only_files_that_options_take_go_along(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    embedded: tuple[str, ...],
) -> None:
    """And not those that are named as an option's value is."""
    monkeypatch.chdir(tmp_path)
    for name in ("before", "1", "compact", "A", "a=compact", "mine", "b=mine", "a=b"):
        Path(name).write_text(f"id,slide\n{'a' * 40},A\n")
    (tmp_path / "repository").mkdir()
    text = bundle.script(job(arguments=arguments), tmp_path / "repository")
    content = base64.b85decode(text.partition('BUNDLE = "')[2].partition('"')[0])
    names = zipfile.ZipFile(io.BytesIO(lzma.decompress(content))).namelist()
    assert [name for name in names if name.startswith("given/")] == sorted(embedded)
    assert text.count("{home}") == len(embedded)


def test_a_network_of_ones_own_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("class Net: pass\n")
    (tmp_path / "repository").mkdir()
    own = job(arguments=("--epochs", "1", "--model", "net.py:Net"))
    text = bundle.script(own, tmp_path / "repository")
    assert "{home}/given/3/net.py:Net" in text
    Path("own.toml").write_text('model = "net.py:Net"\n')
    with pytest.raises(KitError, match=r"own\.toml names code, net\.py:Net, which would not go"):
        complete(job(arguments=("--recipe", "own.toml")), Reach())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Too Loud"}, "--name Too Loud: give 5 to 50 lower-case letters"),
        ({"arguments": ("--out=x",)}, "--out=x: the script chooses --data, --out and --resume"),
        (
            {"arguments": ("--weights", "large.pth")},
            "put large files that the arguments name into",
        ),
    ],
)
def test_what_cannot_be_pushed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("large.pth").write_bytes(os.urandom(1_000_000))
    with pytest.raises(KitError, match=message):
        kaggle.build_kernel(tmp_path, job(**changes), owner="nobody", repository=ROOT)
    assert not (tmp_path / bundle.SCRIPT_FILE).exists()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KaggleServer]:
    """Return a server that this process and its children take for Kaggle."""
    with serve() as fake:
        move_in(fake, tmp_path, monkeypatch)
        yield fake


def push(*options: str) -> CompletedProcess[str]:
    done = kernel("push", *options)
    assert "Traceback" not in done.stderr
    assert KEY not in done.stdout + done.stderr
    return done


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder to push; what it holds matters to Kaggle only."""
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / bundle.SCRIPT_FILE).write_text("print('hello')\n")
    values = bundle.metadata(job(gpu=True), owner="nobody", reach=kaggle.Reach())
    (tmp_path / "built" / bundle.METADATA_FILE).write_text(json.dumps(values))
    return tmp_path / "built"


class TestPush:
    def test_pushes_all_that_the_kernel_needs(self, server: KaggleServer) -> None:
        options = ["--name", NAME, "--resume", "--dataset", "nobody/slides", "--", "--bn", "after"]
        done = push(*options)
        assert done.returncode == 0, done.stderr
        assert f"pushed version 3, https://www.kaggle.com/code/nobody/{NAME}" in done.stdout
        assert f"next, once it has ended: python kernels/pull.py --name {NAME}" in done.stdout
        script = server.pushed.pop("text")
        assert f"Job(command='train', arguments=('--bn', 'after'), name='{NAME}'" in script
        assert server.pushed == {
            "slug": f"nobody/{NAME}",
            "newTitle": NAME,
            "language": "python",
            "kernelType": "script",
            "competitionDataSources": ["histopathologic-cancer-detection"],
            "kernelDataSources": [f"nobody/{NAME}"],
            "datasetDataSources": ["nobody/slides"],
            "isPrivate": True,
            "enableGpu": True,
            "enableInternet": False,
            "enableTpu": False,
            "dockerImagePinningType": "original",
            "machineShape": "NvidiaTeslaT4",
        }

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (
                {"error": "Maximum batch GPU session count of 2 reached."},
                "has not taken the kernel: Maximum batch .* 2 reached.*\n.*wait for",
            ),
            (
                {"error": "Maximum weekly GPU quota of 30.00 hours reached."},
                "30.00 hours reached.\n.*used up: `kaggle quota` .* say",
            ),
            ({"error": "Phone verification required"}, "required\nVerify the account's phone"),
            ({"error": "Notebook not found"}, "not found\nPush it under another --name"),
            (
                {"invalidCompetitionSources": ["histopathologic-cancer-detection"]},
                "runs version 3 without its competition .*accept the rules at",
            ),
            (
                {"invalidDatasetSources": ["a/b", "c/d-e"]},
                "runs version 3 without its dataset a/b, c/d-e, so it will fail: mend the name",
            ),
            (
                {"invalidKernelSources": [f"nobody/{NAME}"]},
                "without its kernel .* push it without --resume the first time",
            ),
        ],
    )
    def test_does_not_believe_the_exit_status(
        self, server: KaggleServer, built: Path, answer: dict[str, object], message: str
    ) -> None:
        server.push_answer = answer
        with pytest.raises(KitError, match=message):
            kaggle.push_kernel(built)

    @pytest.mark.parametrize(
        ("command", "words", "message"),
        [
            ("train", ["--epoch", "3"], "Unrecognized options: --epoch"),
            ("train", ["--epochs", "0"], "epochs = 0: Input should be greater than 0"),
            ("train", ["--force"], "--force has no meaning without --resume"),
            ("train", ["--model", "resnet5", "--size", "32"], "no model resnet5: give small"),
            (
                "train",
                ["--model", "test_resnet", "--lora", "4"],
                "no attention whose layers --lora",
            ),
            ("train", ["--model", "compact", "--size", "2"], "2 pixels is too small for 3 stages"),
            ("train", ["--cam-layer", "none"], "--cam-layer none is no layer"),
            ("train", ["--devices", "auto"], "shares out the runs of --folds, and there is one"),
            ("compare", ["--arm", "a=compact"], "a comparison has two arms or more"),
            ("compare", ["--seeds", "many"], "--seeds"),
            ("momentum", ["--bn-momentum", "0.5"], "leave --bn-momentum out"),
            ("search", ["--trials", "0"], "trials = 0: Input should be greater than 0"),
            ("tune", ["search", "--trial", "5"], "Unrecognized options: --trial"),
            ("tune", [], "no command '': there are momentum, search"),
        ],
    )
    def test_refuses_options_that_the_command_would_refuse_there(
        self, server: KaggleServer, command: str, words: list[str], message: str
    ) -> None:
        done = kernel("push", "--command", command, "--", *words)
        assert done.returncode != 0
        assert message in done.stdout + done.stderr
        assert not server.pushed

    def test_needs_a_credential(
        self, server: KaggleServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("KAGGLE_KEY")
        done = push("--", "--bn", "after")
        assert done.returncode == 1
        assert "no Kaggle credential found" in done.stderr
        assert not server.requests

    def test_tells_a_refusal(self, server: KaggleServer, built: Path) -> None:
        server.refusals = {"SaveKernel": refusal(401, "Unauthenticated")}
        with pytest.raises(KitError, match="does not accept the username and key in KAGGLE_USER"):
            kaggle.push_kernel(built)

    @pytest.mark.parametrize(
        ("status", "words", "message"),
        [
            (400, "Maximum weekly GPU quota of 30.00 hours reached.", "The week's hours are used"),
            (409, "Maximum batch GPU session count of 2 reached.", "wait for one to end"),
            (403, "You must verify your phone number", "Verify the account's phone number at"),
            (404, "Notebook not found", "Push it under another --name"),
        ],
    )
    def test_a_refusal_of_the_account_may_come_as_any_status(
        self, server: KaggleServer, built: Path, status: int, words: str, message: str
    ) -> None:
        server.refusals = {"SaveKernel": refusal(status, words)}
        with pytest.raises(KitError, match=rf"{message}.*\n\(the client said: .*{words}"):
            kaggle.push_kernel(built)

    def test_tells_of_a_client_that_does_not_start(
        self, server: KaggleServer, built: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As kaggle 2.2.4 does alone: it uses six and does not ask for it."""
        start_for_real(monkeypatch)
        Path("lacks/six.py").parent.mkdir()
        Path("lacks/six.py").write_text("""raise ModuleNotFoundError("No module named 'six'")""")
        monkeypatch.setenv("PYTHONPATH", "lacks")
        with pytest.raises(KitError, match="client does not start: pip install"):
            kaggle.push_kernel(built)
        assert not server.requests
