"""Cross-validation: all folds are checked before the first is trained, and before they are used."""

import shutil
from pathlib import Path

import pytest
from conftest import edit_config, kernel, run_kernel

from kit import runs
from kit.base import KitError
from kit.data import Store


@pytest.fixture(scope="module")
def trained(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "cv"
    options = ("--epochs", "1", "--batch-size", "8", "--folds", "3")
    run_kernel("train", *options, "--data", tiles.folder.parent, "--out", out)
    return out


@pytest.fixture
def cv(trained: Path, tmp_path: Path) -> Path:
    """A copy of a cross-validation, to spoil or to go on with."""
    return shutil.copytree(trained, tmp_path / "cv")


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_fold_that_cannot_be_is_told_before_the_first_is_trained(
    tiles: Store, tmp_path: Path
) -> None:
    """Of three slides the first holds all positive tiles: its own fold has no other class."""
    slides = tmp_path / "slides.csv"
    rows = [
        f"{tile},{'A' if label else 'BC'[row // 2 % 2]}\n"
        for row, (tile, label) in enumerate(zip(tiles.train.ids, tiles.labels, strict=True))
    ]
    slides.write_text("id,slide\n" + "".join(rows))
    options = ("--slides", slides, "--folds", "3", "--epochs", "1", "--batch-size", "4")
    done = kernel("train", *options, "--data", tiles.folder.parent, "--out", tmp_path / "cv")
    assert done.returncode == 1
    assert "side has no tile of class" in done.stderr
    assert not (tmp_path / "cv").exists()


def test_folds_that_are_there_are_not_trained_again(tiles: Store, cv: Path) -> None:
    before = snapshot(cv)
    options = ("--epochs", "1", "--batch-size", "8", "--data", tiles.folder.parent, "--out", cv)
    done = kernel("train", *options, "--folds", "3")
    assert done.returncode == 1
    assert "fold-0 exists: choose another --out, or go on with: python" in done.stderr
    assert done.stderr.rstrip().endswith(f"--out {cv}")
    shutil.rmtree(cv / "fold-0")
    done = kernel("train", *options, "--folds", "2", "--resume")
    assert "fold-2 is none of the 2 folds" in done.stderr
    assert {name: before[name] for name in snapshot(cv)} == snapshot(cv)


def test_resume_alone_goes_on_with_the_folds_that_are_missing(cv: Path, trained: Path) -> None:
    shutil.rmtree(cv / "fold-2")
    (cv / "metrics.json").unlink()
    kept = (cv / "fold-0" / "last.pt").stat().st_mtime_ns
    run_kernel("train", "--resume", "--out", cv)
    assert (cv / "fold-0" / "last.pt").stat().st_mtime_ns == kept
    for name in ("metrics.json", "valid.csv", "fold-2/model.safetensors"):
        assert (cv / name).read_bytes() == (trained / name).read_bytes()


def test_finished_folds_of_another_recipe_are_not_skipped(cv: Path) -> None:
    shutil.rmtree(cv / "fold-2")
    before = snapshot(cv)
    done = kernel("train", "--resume", "--out", cv, "--lr", "0.5", "--force")
    assert done.returncode == 1
    assert "fold-0 is another run: --lr was 0.001 and is 0.5" in done.stderr
    assert snapshot(cv) == before


def test_finished_folds_of_another_version_ask_for_force(cv: Path) -> None:
    edit_config(cv / "fold-1", "torch", value="1.0")
    done = kernel("train", "--resume", "--out", cv)
    assert done.returncode == 1
    assert "fold-1 would not be the run that was begun: torch was 1.0 and is" in done.stderr
    with pytest.raises(KitError, match=r"fold-1 would not be .*: torch was"):
        runs.pool_folds(cv)
    run_kernel("train", "--resume", "--out", cv, "--force")
    assert len(runs.members(cv)) == 3


def test_folds_of_several_recipes_are_neither_pooled_nor_predict(cv: Path) -> None:
    edit_config(cv / "fold-1", "recipe", "lr", value=0.5)
    for use in (runs.members, runs.pool_folds):
        with pytest.raises(KitError, match=r"is another run: --lr was"):
            use(cv)


def test_a_fold_too_many_is_refused(cv: Path) -> None:
    shutil.copytree(cv / "fold-0", cv / "fold-7")
    with pytest.raises(KitError, match="fold-7 is none of the 3 folds"):
        runs.members(cv)


def test_folds_that_hold_out_one_tile_are_not_pooled(cv: Path) -> None:
    shutil.copy(cv / "fold-0" / "valid.csv", cv / "fold-1" / "valid.csv")
    with pytest.raises(KitError, match="two folds hold out the tile"):
        runs.pool_folds(cv)


def test_folds_come_in_their_order(trained: Path) -> None:
    recipe = runs.begun_config(trained)["recipe"]
    assert recipe["fold"] is None
    assert [path.name for path in runs.members(trained)] == ["fold-0", "fold-1", "fold-2"]
