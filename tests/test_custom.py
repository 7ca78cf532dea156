"""A person's own network and augmentation: in files of theirs, with all that the kit does."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE, contents, fresh_kernel, run_kernel, train

from kit import base, models, runs, study
from kit.base import KitError, Recipe
from kit.data import Store, recipe_augmentation, recipe_dataset
from kit.report import grad_cam
from kit.runs import begin_run

NET = '''
from dataclasses import dataclass
import torch
from torch import nn


class Net(nn.Module):
    """Group norm, an activation in place, and functions in place of layers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.second = nn.Conv2d(8, 8, 3, stride=2)
        self.head = nn.Linear(8, 1)

    def forward(self, images: "torch.Tensor") -> "torch.Tensor":
        maps = torch.relu_(self.norm(self.first(images)))
        return self.head(torch.relu(self.second(maps)).mean((2, 3)))


@dataclass
class Options:
    width: "int" = 8


def build(size: int) -> nn.Module:
    width = Options().width
    dense = nn.Linear(3 * size * size, width)
    return nn.Sequential(nn.Flatten(), dense, nn.BatchNorm1d(width), nn.Linear(width, 1))
'''
LATE = """
import albumentations as A
from torch import nn

calls = [0]


def work(images, **_):
    calls[0] += 1
    if calls[0] > 5:
        1 / 0
    return images


class Net(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, images):
        return self.head(work(images).mean((2, 3)))


pipeline = A.Compose([A.Lambda(image=work)])
"""
AUG = """
import albumentations as A


def spoil(image, **_):
    return image[9, 9, 9, 9]


pipeline = A.Compose([A.HorizontalFlip(), A.RandomBrightnessContrast(0.2, 0.2)])
shrinks = A.Compose([A.Resize(8, 8)])
tensor = A.Compose([A.Normalize()])
fails = A.Compose([A.Lambda(image=spoil)])
number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Recipe:
    """A recipe of a network and an augmentation that lie in files."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "aug.py").write_text(AUG)
    model, augment = f"{tmp_path}/net.py:Net", f"{tmp_path}/aug.py:pipeline"
    return replace(RECIPE, model=model, augment=augment, ema=0.9)


BROKEN = {
    "def Net(size) return 1": "line 1, fails when it is imported: SyntaxError",
    "import no_such_module": "line 1, fails when it is imported: ModuleNotFoundError: No module",
    "from . import sibling": "line 1, fails when it is imported: ImportError: attempted relative",
    "exit()": "line 1, fails when it is imported: SystemExit",
    "x = 1\n1 / 0": "line 2, fails when it is imported: ZeroDivisionError: division by zero",
    "class Other: pass": "has no Net: it defines Other",
    "Net = 3": "is of the type int: name a class or a function that takes the size",
    "def Net(): pass": "fails when it is built with the size 32: TypeError: Net() takes 0",
    "def Net(size): return size": "returns an object of the type int, not a network",
    "from torch import nn\ndef Net(size): return nn.Flatten()": "has no parameters to train",
    "from torch import nn\ndef Net(size): return nn.Linear(size, 1)": (
        "gives (2, 3, 32, 1) for two images, not one logit each, (2, 1)"
    ),
    "from torch import nn\ndef Net(size): return nn.Conv2d(4, 1, size)": (
        "fails with two images of 32 pixels: RuntimeError: Given groups=1"
    ),
    "from torch import nn\ndef Net(size): return nn.Sequential(nn.Flatten(), nn.LazyLinear(1))": (
        "leaves the size of 1.weight open: send an image through the network where it is built"
    ),
    "from torch import nn\nclass Net(nn.Module):\n  def __init__(self, size):\n"
    "    super().__init__()\n    self.head = nn.Linear(3, 1)\n  def forward(self, images):\n"
    "    return self.head(images.mean((2, 3))).log() - 9e9j": "not finite numbers",
    "from torch import nn\nclass Net(nn.Module):\n  def __init__(self, size):\n"
    "    super().__init__()\n    self.a = nn.Linear(3, 1)\n    self.b = nn.Linear(3, 1)\n"
    "    self.b.weight = self.a.weight\n  def forward(self, images):\n"
    "    return self.a(images.mean((2, 3)))": "one tensor under two names, a.weight and b.weight",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_network_that_cannot_be_trained_is_told_of_in_one_message(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(KitError) as caught:
        models.create_model(replace(RECIPE, model=f"{tmp_path}/net.py:Net"))
    assert str(tmp_path / "net.py") in str(caught.value)
    assert BROKEN[text] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shrinks", "turns tiles of (32, 32, 3) into (8, 8, 3)"),
        ("tensor", "leave out ToTensorV2"),
        ("fails", "line 6, fails with a black tile: IndexError"),
        ("number", "is of the type int: name a pipeline"),
        ("other", "has no other"),
    ],
)
def test_an_augmentation_that_does_not_fit_is_told_of_before_anything_is_written(
    tiles: Store, own: Recipe, tmp_path: Path, name: str, message: str
) -> None:
    recipe = replace(own, augment=f"{tmp_path}/aug.py:{name}")
    with pytest.raises(KitError) as caught:
        begin_run(recipe, tiles, tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no/such.py:Net", "cannot read no/such.py"),
        ("no_such_module:Net", "there is no module no_such_module"),
        ("no_such_package.nets:Net", "cannot import the package of no_such_package.nets"),
        ("sys:Net", "there is no module sys that Python could import from a file"),
    ],
)
def test_what_is_not_there_is_named(model: str, message: str) -> None:
    with pytest.raises(KitError, match=message):
        models.create_model(Recipe(model=model))


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("option", ["--model", "--augment"])
def test_code_that_fails_later_is_named_with_its_line(
    tiles: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, workers: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("late.py").write_text(LATE)
    own = f"late.py:{'Net' if option == '--model' else 'pipeline'}"
    small = ("--epochs", "1", "--batch-size", "16", "--size", "32", "--workers", workers)
    done = fresh_kernel("train", option, own, *small, "--data", tiles.folder.parent, "--out", "r")
    assert done.returncode == 1
    line = LATE.splitlines().index("        1 / 0") + 1
    assert (
        f"error: late.py, line {line}, fails: ZeroDivisionError: division by zero\n" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_an_unknown_augmentation_is_refused_as_before() -> None:
    with pytest.raises(ValueError, match="augment = rotate: it is one of none, d4, stain"):
        Recipe(augment="rotate")


def test_a_module_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_nets.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    model = models.create_model(replace(RECIPE, model="my_own_nets:build"))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 1)


def test_the_seed_draws_a_network_of_ones_own(own: Recipe) -> None:
    first, again, other = (
        models.create_model(replace(own, seed=seed)).state_dict()["first.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_augmentation_of_ones_own_follows_from_seed_epoch_and_tile(
    tiles: Store, own: Recipe
) -> None:
    data = recipe_dataset(tiles.train.tiles, own, train=True)
    plain = recipe_dataset(tiles.train.tiles, own)
    first, again, later = (data[epoch, np.arange(8)][0] for epoch in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, plain[1, np.arange(8)][0])


def test_a_run_keeps_the_code_and_is_rebuilt_from_it(
    tiles: Store, own: Recipe, tmp_path: Path
) -> None:
    run = train(own, tiles, tmp_path / "run")
    assert (run.folder / "custom/model.py").read_text() == NET
    assert (run.folder / "custom/augment.py").read_text() == AUG
    named = runs.read_config(run.folder)["custom"]
    assert named == {option: base.read_custom(ref).sha256 for option, ref in own.custom.items()}
    (tmp_path / "net.py").unlink()
    found = runs.load(run.folder).predict_logits(tiles.train, progress=False)
    valid = runs.read_valid(run.folder)
    rows = [list(tiles.train.ids).index(tile) for tile in valid["id"]]
    np.testing.assert_allclose(found[rows], valid["logit"], atol=1e-5)


def test_a_stopped_run_goes_on_bit_for_bit(tiles: Store, own: Recipe, tmp_path: Path) -> None:
    whole = train(replace(own, epochs=3), tiles, tmp_path / "whole")
    begun = begin_run(replace(own, epochs=3), tiles, tmp_path / "begun")
    next(begun.train(progress=False))
    del begun
    resumed = begin_run(replace(own, epochs=3), tiles, tmp_path / "begun", resume=True)
    list(resumed.train(progress=False))
    assert contents(resumed.folder) == contents(whole.folder)


def test_a_run_does_not_go_on_with_other_code(tiles: Store, own: Recipe, tmp_path: Path) -> None:
    train(own, tiles, tmp_path / "run")
    (tmp_path / "net.py").write_text(NET + "\n# changed\n")
    base.read_custom.cache_clear()
    with pytest.raises(KitError, match="the code of --model has changed"):
        begin_run(replace(own, epochs=3), tiles, tmp_path / "run", resume=True)


def test_code_of_a_run_folder_runs_only_if_it_is_trusted(
    tiles: Store, own: Recipe, tmp_path: Path
) -> None:
    """In processes of their own, which have not run the code before."""
    run = train(own, tiles, tmp_path / "run")
    harm = tmp_path / "harm"
    options = ["--run", run.folder, "--data", tiles.data, "--out", tmp_path / "sub.csv"]
    refused = fresh_kernel("predict", *options)
    assert refused.returncode == 1
    assert "custom/model.py is code that came with the run and would be exec" in refused.stderr
    trusted = fresh_kernel("predict", *options, "--trust")
    assert trusted.returncode == 0, trusted.stderr
    assert (tmp_path / "sub.csv").is_file()
    # What does not have the recorded fingerprint never runs.
    (run.folder / "custom/model.py").write_text(f"open({str(harm)!r}, 'w')\n{NET}")
    changed = fresh_kernel("predict", *options, "--trust")
    assert changed.returncode == 1
    assert "is not the code that the run was trained with" in changed.stderr
    # Nor does what its configuration names, when it is resumed.
    (tmp_path / "net.py").write_text(f"open({str(harm)!r}, 'w')\n{NET}")
    resumed = fresh_kernel("train", "--resume", "--out", run.folder, "--data", tiles.data)
    assert resumed.returncode == 1
    assert "is code that would be executed: read it, and add --trust" in resumed.stderr
    assert not harm.exists()


@pytest.mark.soak
def test_folds_on_several_devices_train_a_network_of_ones_own(
    tiles: Store, own: Recipe, tmp_path: Path
) -> None:
    options = ["--model", own.model, "--augment", own.augment, "--epochs", 1, "--batch-size", 8]
    options += ["--data", tiles.data, "--folds", 2, "--devices", "cpu:2"]
    assert fresh_kernel("train", *options, "--out", tmp_path / "cv").returncode == 0
    for fold in ("fold-0", "fold-1"):
        assert (tmp_path / "cv" / fold / "custom/model.py").read_text() == NET
    predict = ["--run", tmp_path / "cv", "--data", tiles.data, "--devices", "cpu:2", "--trust"]
    assert fresh_kernel("predict", *predict, "--out", tmp_path / "sub.csv").returncode == 0


def test_arms_name_code_in_their_recipes(tiles: Store, own: Recipe, tmp_path: Path) -> None:
    lines = [f'model = "{own.model}"', "epochs = 1", "batch_size = 8"]
    (tmp_path / "own.toml").write_text("\n".join(lines))
    (tmp_path / "small.toml").write_text("\n".join(lines[1:]))
    arms = ["--arm", f"small={tmp_path}/small.toml", "--arm", f"own={tmp_path}/own.toml"]
    options = [*arms, "--data", tiles.data, "--out", tmp_path / "study", "--seeds", 1]
    refused = fresh_kernel("compare", *options)
    assert refused.returncode == 1
    assert "is code that would be executed" in refused.stderr
    assert "own" in run_kernel("compare", *options, "--trust")
    code = base.read_json(tmp_path / "study/study.json", dict, what="a study")["custom"]
    assert code == {own.model: base.read_custom(own.model).sha256}


def test_a_search_leaves_ones_own_parts_as_they_are(tiles: Store, own: Recipe) -> None:
    space = study.search_space(own, tiles)
    assert space.free == {"lr", "batch_size", "weight_decay", "crop"}
    only_network = study.search_space(replace(own, augment="d4"), tiles)
    assert only_network.free == space.free | {"augment", "stain_strength"}
    assert space.own_parameters()["lr"] == own.lr


def test_grad_cam_finds_the_last_convolution(tiles: Store, own: Recipe, tmp_path: Path) -> None:
    run = train(replace(own, epochs=1), tiles, tmp_path / "run")
    maps = grad_cam(runs.load(run.folder), tiles.train.tiles[:4])
    assert maps is not None
    assert np.isfinite(maps).all()
    assert (maps.max((1, 2)) > 0.9).all()


def test_a_network_of_ones_own_is_exported(tiles: Store, own: Recipe, tmp_path: Path) -> None:
    run = train(replace(own, epochs=1), tiles, tmp_path / "run")
    assert runs.write_onnx(tmp_path / "own.onnx", run.folder, tiles.test.tiles) < 1e-4
    with pytest.raises(KitError, match="is not a model of timm's: export it to ONNX"):
        runs.write_timm(tmp_path / "timm", run.folder, tiles.test.tiles)


def test_a_copied_run_is_whole(tiles: Store, own: Recipe, tmp_path: Path) -> None:
    run = train(replace(own, epochs=1), tiles, tmp_path / "run")
    shutil.copytree(run.folder, tmp_path / "elsewhere")
    one, other = (
        runs.load(folder).predict(tiles.test, progress=False)
        for folder in (run.folder, tmp_path / "elsewhere")
    )
    np.testing.assert_array_equal(one, other)


def test_recipe_augmentation_is_the_kits_where_it_has_one() -> None:
    assert recipe_augmentation(Recipe()) is None
    assert recipe_augmentation(Recipe(augment="stain")) is not None
