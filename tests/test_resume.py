"""A run that goes on: with its own options, as itself, or not at all."""

import json
import os
import shlex
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import (
    RECIPE,
    contents,
    edit_config,
    finished_epochs,
    kernel,
    run_kernel,
    start_kernel,
    train,
)

from kit import runs
from kit.base import KitError, StoppedError
from kit.data import Store
from kit.runs import Run

OPTIONS = ("--epochs", "2", "--batch-size", "8")


@pytest.fixture
def slides(tiles: Store, tmp_path: Path) -> Path:
    return write_slides(tmp_path / "slides.csv", tiles, "ABCDEFGH")


def write_slides(path: Path, tiles: Store, names: str) -> Path:
    rows = [f"{tile},{names[row // 2 % len(names)]}\n" for row, tile in enumerate(tiles.train.ids)]
    path.write_text("id,slide\n" + "".join(rows))
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def interrupted(folder: Path) -> Path:
    """Make of a finished run one that was stopped before its end."""
    for name in ("metrics.json", "valid.csv", "model.safetensors"):
        (folder / name).unlink()
    return folder


@pytest.fixture(scope="module")
def typed(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that the command has made, to read."""
    out = tmp_path_factory.mktemp("typed") / "run"
    run_kernel("train", *OPTIONS, "--data", tiles.folder.parent, "--out", out)
    return out


def test_resume_alone_goes_on_with_the_options_of_the_run(tiles: Store, tmp_path: Path) -> None:
    """Of another recipe, on data in another place than by default."""
    out = tmp_path / "run"
    options = ("--recipe", "compact", "--bn", "after", *OPTIONS, "--checkpoint-steps", "3")
    run_kernel("train", *options, "--data", tiles.folder.parent, "--out", out)
    before, config = contents(out), (out / "config.json").read_bytes()
    interrupted(out)
    run_kernel("train", "--resume", "--out", out)
    assert contents(out) == before
    assert (out / "config.json").read_bytes() == config


def test_the_command_that_began_a_run_goes_on_with_it(
    tiles: Store, typed: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(typed, tmp_path / "run")
    run_kernel("train", *OPTIONS, "--data", tiles.folder.parent, "--out", out, "--resume")
    assert contents(out) == contents(typed)


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_other_options_are_refused_by_name(
    typed: Path, tmp_path: Path, force: tuple[str, ...]
) -> None:
    out = shutil.copytree(typed, tmp_path / "run")
    before = snapshot(interrupted(out))
    done = kernel("train", "--resume", "--out", out, "--lr", "0.5", "--bn", "after", *force)
    assert done.returncode == 1
    assert "is another run: --bn was before and is after; --lr was 0.001 and is 0.5" in done.stderr
    assert "Traceback" not in done.stderr
    done = kernel("train", "--recipe", "compact", "--resume", "--out", out, *force)
    assert "--model was small and is compact" in done.stderr
    assert snapshot(out) == before


@pytest.mark.parametrize(
    "change",
    [
        {"bn": "after"},
        {"seed": 3},
        {"lr": 0.1},
        {"batch_size": 4},
        {"size": 48},
        {"widths": (8, 8, 8)},
        {"per_class": 20},
        {"ema": 0.9},
    ],
)
def test_force_never_changes_the_network_the_training_or_the_split(
    tiles: Store, run: Path, change: dict[str, object]
) -> None:
    before = snapshot(run)
    with pytest.raises(KitError, match=f"--{next(iter(change)).replace('_', '-')} was"):
        Run(replace(RECIPE, **change), tiles, run, resume=True, force=True)  # type: ignore[arg-type]
    assert snapshot(run) == before


def test_resuming_on_other_data_is_refused(tiles: Store, run: Path) -> None:
    other = replace(tiles, fingerprint="0" * 64)
    with pytest.raises(KitError, match="the tiles or labels of --data were others"):
        Run(RECIPE, other, run, resume=True, force=True)


def test_resuming_nothing_is_refused(tiles: Store, tmp_path: Path) -> None:
    with pytest.raises(KitError, match="holds no run"):
        Run(RECIPE, tiles, tmp_path / "run", resume=True)
    done = kernel("train", "--resume", "--out", tmp_path / "run")
    assert f"{tmp_path}/run holds no run" in done.stderr
    assert not (tmp_path / "run").exists()


def test_resuming_a_finished_run_changes_nothing(tiles: Store, run: Path) -> None:
    before = contents(run)
    assert contents(train(RECIPE, tiles, run, resume=True).folder) == before


@pytest.mark.parametrize("name", ["kit", "torch", "precision", "device"])
def test_another_version_or_device_asks_for_force(tiles: Store, run: Path, name: str) -> None:
    edit_config(run, name, value="another")
    with pytest.raises(KitError, match=f"{name} was another and is .* Add --force"):
        Run(RECIPE, tiles, run, device="cpu", resume=True)
    Run(RECIPE, tiles, run, device="cpu", resume=True, force=True)
    assert runs.read_config(run)["resumed_from"][name] == "another"


def test_more_epochs_ask_for_force_and_the_run_is_not_finished_before_they_are(
    tiles: Store, run: Path
) -> None:
    longer = replace(RECIPE, epochs=3)
    with pytest.raises(KitError, match=r"--epochs was 2 and is 3.*Add --force"):
        Run(longer, tiles, run, resume=True)
    again = Run(longer, tiles, run, device="cpu", resume=True, force=True)
    with pytest.raises(KitError, match="is not a finished run"):
        runs.load(run)
    assert [result.epoch for result in again.train(progress=False)] == [3]
    assert runs.read_config(run)["resumed_from"]["recipe"]["epochs"] == 2
    assert runs.load(run, device="cpu").recipe == longer


def test_fewer_epochs_than_are_trained_are_refused(tiles: Store, run: Path) -> None:
    before = snapshot(run)
    with pytest.raises(KitError, match="is trained for 2 epochs already: ask for --epochs 2"):
        Run(replace(RECIPE, epochs=1), tiles, run, resume=True, force=True)
    assert snapshot(run) == before


def test_a_one_cycle_schedule_goes_on_with_more_epochs(tiles: Store, tmp_path: Path) -> None:
    recipe = replace(RECIPE, schedule="one-cycle")
    train(recipe, tiles, tmp_path / "run")
    longer = Run(replace(recipe, epochs=4), tiles, tmp_path / "run", resume=True, force=True)
    assert [result.epoch for result in longer.train(progress=False)] == [3, 4]


def test_a_slides_table_that_has_changed_is_noticed(
    tiles: Store, slides: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, slides=slides)
    first = train(recipe, tiles, tmp_path / "run")
    split = (tmp_path / "run" / "split.csv").read_bytes()
    del first
    write_slides(slides, tiles, "AABBCCDDEEFFGGHH")
    with pytest.raises(KitError, match=r"has another holdout than .*slides\.csv gives now"):
        Run(recipe, tiles, tmp_path / "run", resume=True)
    again = Run(recipe, tiles, tmp_path / "run", resume=True, force=True)
    assert (tmp_path / "run" / "split.csv").read_bytes() == split
    valid = runs.read_valid(tmp_path / "run")["id"].tolist()
    assert tiles.train.ids[again.holdout.valid].tolist() == valid
    del again
    slides.unlink()
    with pytest.raises(KitError, match=r"slides\.csv: No such .*add --force to go on with .*split"):
        Run(recipe, tiles, tmp_path / "run", resume=True)
    again = Run(recipe, tiles, tmp_path / "run", resume=True, force=True)
    assert tiles.train.ids[again.holdout.valid].tolist() == valid


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",train\n", ",valid\n", r"split\.csv is not the split that the run was begun with"),
        (",train\n", ",test\n", r"split\.csv line \d+: .* is not a training tile of the data"),
        (",train\n", "a,train\n", r"split\.csv line \d+: .* is not 40 hex digits"),
        ("id,fold", "id,side", r"split\.csv line 1: the header is 'id,side'"),
    ],
)
def test_another_split_is_not_gone_on_with(
    tiles: Store, run: Path, old: str, new: str, message: str
) -> None:
    split = run / "split.csv"
    split.write_text(split.read_text().replace(old, new, 1))
    with pytest.raises(KitError, match=message):
        Run(RECIPE, tiles, run, resume=True, force=True)


def test_a_checkpoint_of_another_arm_is_refused(tiles: Store, run: Path, tmp_path: Path) -> None:
    """Both arms' tensors have the same names and shapes."""
    other = train(replace(RECIPE, bn="after"), tiles, tmp_path / "other").folder
    shutil.copy(other / "last.pt", run / "last.pt")
    with pytest.raises(KitError, match=r"last\.pt is of another run: --bn was after and is before"):
        Run(RECIPE, tiles, run, resume=True, force=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", [1]),
        ("progress", {"epoch": 1, "stop": 2}),
        ("history", 3),
        ("optimizer", {}),
        ("run", 3),
        ("run", {"recipe": {"lr": "fast"}}),
    ],
)
def test_a_checkpoint_of_other_content_is_refused(
    tiles: Store, run: Path, key: str, value: object
) -> None:
    state = torch.load(run / "last.pt", weights_only=True)
    torch.save(state | {key: value}, run / "last.pt")
    with pytest.raises(KitError, match=r"last\.pt(: lr = 'fast'| does not fit the run's options)"):
        Run(RECIPE, tiles, run, resume=True)


def test_a_run_whose_checkpoint_is_gone_does_not_start_again(tiles: Store, run: Path) -> None:
    (run / "last.pt").unlink()
    before = snapshot(run)
    with pytest.raises(KitError, match=r"last\.pt, which the run would go on from, is gone"):
        Run(RECIPE, tiles, run, resume=True)
    assert snapshot(run) == before


def test_damaged_checkpoint_is_refused(tiles: Store, run: Path) -> None:
    (run / "last.pt").write_bytes(b"garbage")
    with pytest.raises(KitError, match=r"last\.pt is damaged"):
        Run(RECIPE, tiles, run, resume=True)


def test_existing_folder_is_never_overwritten(tiles: Store, run: Path) -> None:
    before = snapshot(run)
    with pytest.raises(KitError, match=r"exists: choose another --out, or go on with: python"):
        Run(RECIPE, tiles, run)
    assert snapshot(run) == before
    (run / "config.json").unlink()
    with pytest.raises(KitError, match=r"exists: choose another --out$"):
        Run(RECIPE, tiles, run)


def test_a_start_that_was_killed_at_once_leaves_a_folder_to_start_in(
    tiles: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json.partial").touch()
    Run(RECIPE, tiles, folder)
    # Nor does one that failed before its first checkpoint.
    train(replace(RECIPE, epochs=1), tiles, folder)
    assert runs.read_config(folder)["recipe"]["epochs"] == 1


def test_what_fails_in_the_last_step_is_repeated_by_a_resume(
    tiles: Store, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    (folder / "valid.csv").mkdir(parents=True)
    with pytest.raises(KitError, match="exists"):
        Run(RECIPE, tiles, folder)
    (folder / "valid.csv").rmdir()
    stopped = Run(RECIPE, tiles, folder, device="cpu")
    results = stopped.train(progress=False)
    next(results)
    (folder / "valid.csv").mkdir()
    with pytest.raises(KitError, match=r"cannot write .*valid\.csv"):
        list(results)
    del stopped, results
    (folder / "valid.csv").rmdir()
    train(RECIPE, tiles, folder, resume=True)
    assert contents(folder) == contents(run)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_request_to_stop_keeps_a_checkpoint_and_says_how_to_go_on(
    tiles: Store, tmp_path: Path, number: int, status: int
) -> None:
    folder, log = tmp_path / "it's mine", tmp_path / "log"
    log.mkdir()
    options = ("--batch-size", "8", "--epochs", "500", "--data", tiles.folder.parent)
    process = start_kernel("train", *options, "--out", folder, log=log)
    while process.is_alive() and finished_epochs(folder) < 2:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    said = (log / "stderr").read_text()
    assert process.exitcode == status
    assert "error: stopped " in said
    assert "Traceback" not in said
    trained = torch.load(folder / "last.pt", weights_only=True)["progress"]["epoch"]
    assert trained >= 2
    command = said.splitlines()[-1].partition("go on with: ")[2]
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "kernels/train.py")
    run_kernel("train", *words, "--force", "--epochs", trained + 1)
    assert len(runs.read_history(folder)) == trained + 1
    assert [path.name for path in tmp_path.iterdir() if path != log] == ["it's mine"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_between_two_epochs_says_where_the_run_stands(
    tiles: Store, tmp_path: Path, number: signal.Signals
) -> None:
    """In the caller's own code, of two runs that take turns as well."""
    one, other = (Run(RECIPE, tiles, tmp_path / name, device="cpu") for name in ("one", "other"))
    handlers = signal.getsignal(number)
    results = [run.train(progress=False) for run in (one, other)]
    next(results[0])
    next(results[1])
    results[0].close()
    with pytest.raises(StoppedError, match=r"stopped after epoch 1, which .*other holds") as raised:
        os.kill(os.getpid(), number)
    assert raised.value.status == 128 + number
    results[1].close()
    assert signal.getsignal(number) == handlers


def test_a_run_of_version_0_4_0_goes_on(tiles: Store, run: Path) -> None:
    """It recorded less; with another version of the kit it takes --force."""
    config = json.loads((run / "config.json").read_text())
    del config["data"]["split"]
    (run / "config.json").write_text(json.dumps(config | {"kit": "0.4.0"}))
    state = torch.load(run / "last.pt", weights_only=True)
    del state["run"]
    torch.save(state, run / "last.pt")
    before = contents(run)
    interrupted(run)
    for _ in Run(RECIPE, tiles, run, device="cpu", resume=True, force=True).train(progress=False):
        pass
    assert contents(run) == before
