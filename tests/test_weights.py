"""Weights as people bring them: read without running anything, and fitted to the model."""

import argparse
import pickle
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kit import models
from kit.base import KitError, Recipe

TINY = "test_resnet"
SIZE = 32
Table = dict[str, Tensor]


@pytest.fixture(scope="module")
def source() -> Table:
    return models.create_model(Recipe(model=TINY, seed=1)).state_dict()


def check_loaded(path: Path, source: Table, *, model: str = TINY, size: int = SIZE) -> None:
    """All but the classifier is the source's; the classifier is the seed's."""
    recipe = Recipe(model=model, size=size, seed=2)
    fresh = models.create_model(recipe).state_dict()
    loaded = models.create_model(Recipe(model=model, size=size, seed=2, weights=path)).state_dict()
    for name, tensor in loaded.items():
        expected = fresh if name.split(".")[0] in ("fc", "head", "head_dist") else source
        assert torch.equal(tensor, expected[name]), name


def prefixed(table: Table, prefix: str) -> Table:
    return {prefix + name: tensor for name, tensor in table.items()}


def zeros(table: Table) -> Table:
    return {name: torch.zeros_like(tensor) for name, tensor in table.items()}


def other_classes(table: Table) -> Table:
    return table | {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}


def lightning(table: Table) -> dict[str, Any]:
    """A checkpoint with a loss beside the network, and options of kinds that PyTorch refuses."""
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": prefixed(table, "model.") | {"loss.pos_weight": torch.ones(1)},
        "hyper_parameters": {"out": Path("runs"), "lr": np.float64(0.1), "options": Options()},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict()],
    }


def timm_checkpoint(table: Table) -> dict[str, Any]:
    return {
        "epoch": 3,
        "arch": TINY,
        "state_dict": zeros(table),
        "state_dict_ema": prefixed(table, "module."),
        "optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters()).state_dict(),
        "version": 2,
        "args": argparse.Namespace(model=TINY, lr=0.1),
    }


Options = type("Options", (), {"__module__": "another_project"})


@pytest.fixture
def another_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is there where a file is written, and not where it is read."""
    module = types.ModuleType("another_project")
    module.Options = Options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "another_project", module)


FORMS = {
    "plain": lambda table: table,
    "model": lambda table: {"model": table, "epoch": 1},
    "state_dict": lambda table: {"state_dict": table},
    "average first": lambda table: {"state_dict": zeros(table), "state_dict_ema": table},
    "module": lambda table: prefixed(table, "module."),
    "compiled": lambda table: {"model": prefixed(table, "_orig_mod.")},
    "compiled and parallel": lambda table: prefixed(table, "module._orig_mod."),
    "encoder": lambda table: {"state_dict": prefixed(table, "encoder.backbone.")},
    "average of weights": lambda table: prefixed(table, "module.") | {"n_averaged": torch.ones(())},
    "other classes": other_classes,
    "without a classifier": lambda table: {k: v for k, v in table.items() if k[:3] != "fc."},
    "half": lambda table: {k: v.half().to(v.dtype) for k, v in table.items()},
    "lightning": lightning,
    "timm": timm_checkpoint,
    "an entry beside": lambda table: table | {"epoch": 3},
}


@pytest.mark.usefixtures("another_project")
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_every_form_that_people_bring(
    source: Table, tmp_path: Path, form: str
) -> None:
    source = {k: v.half().to(v.dtype) for k, v in source.items()} if form == "half" else source
    torch.save(FORMS[form](source), tmp_path / "w.pth")
    sys.modules.pop("another_project")
    check_loaded(tmp_path / "w.pth", source)


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_safetensors_are_told_by_their_content(source: Table, tmp_path: Path, name: str) -> None:
    save_file(source, tmp_path / name)
    check_loaded(tmp_path / name, source)


@pytest.mark.parametrize("form", ["plain", "timm"])
def test_files_of_before_pytorch_1_6_are_read(source: Table, tmp_path: Path, form: str) -> None:
    path = tmp_path / "w.pth.tar"
    torch.save(FORMS[form](source), path, _use_new_zipfile_serialization=False)
    check_loaded(path, source)


def test_a_distilled_model_takes_weights_of_any_classes(tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    source = models.create_model(Recipe(model=name, size=SIZE)).state_dict()
    heads = {f"{head}.weight": torch.zeros(1000, 192) for head in ("head", "head_dist")}
    torch.save({"model": source | heads}, tmp_path / "w.pth")
    check_loaded(tmp_path / "w.pth", source, model=name)


def test_embedded_positions_are_resized_as_timm_does(tmp_path: Path) -> None:
    recipe = Recipe(model="vit_tiny_patch16_224", size=64)
    trained = models.create_model(recipe).state_dict()
    torch.save(trained, tmp_path / "w.pth")
    smaller = replace(recipe, size=32, weights=tmp_path / "w.pth")
    found = models.create_model(smaller).state_dict()
    assert trained["pos_embed"].shape == (1, 17, 192)
    assert found["pos_embed"].shape == (1, 5, 192)
    assert torch.equal(found["blocks.0.attn.qkv.weight"], trained["blocks.0.attn.qkv.weight"])


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class Code(Malicious):
    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_what_stands_beside_weights_does_not_run(source: Table, tmp_path: Path) -> None:
    harm = Code(tmp_path / "owned")
    torch.save({"hyper_parameters": harm, "state_dict": source}, tmp_path / "w.pth")
    check_loaded(tmp_path / "w.pth", source)
    assert not (tmp_path / "owned").exists()


def write_bad_weights(path: Path, kind: str) -> None:
    if kind == "malicious":
        torch.save({"x": Malicious(path.parent / "owned")}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious(path.parent / "owned")))
    elif kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        torch.save({"x": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "cut legacy":
        torch.save({"x": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "other":
        torch.save({"x": torch.zeros(1)}, path)
    elif kind == "model":
        torch.save(nn.Linear(2, 2), path)
    elif kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    elif kind == "list":
        torch.save([1.0], path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no weights at"),
        ("malicious", "or holds objects that the kit does not run: save the weights alone"),
        ("pickle", "cannot read weights from"),
        ("text", "cannot read weights from"),
        ("empty", "cannot read weights from"),
        ("cut", "cannot read weights from"),
        ("cut legacy", "cannot read weights from"),
        ("script", "cannot read weights from"),
        ("other", "tensors are missing and 1 are unknown"),
        ("model", "holds no table of tensors: save the weights alone"),
        ("list", "holds no table of tensors"),
    ],
)
def test_bad_weights_are_refused_in_one_line(tmp_path: Path, kind: str, message: str) -> None:
    write_bad_weights(tmp_path / "w.pth", kind)
    with pytest.raises(KitError, match=message) as caught:
        models.create_model(Recipe(model=TINY, weights=tmp_path / "w.pth"))
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_weights_of_another_shape_are_refused_by_name(source: Table, tmp_path: Path) -> None:
    torch.save(source | {"conv1.0.weight": torch.zeros(1, 1)}, tmp_path / "w.pth")
    with pytest.raises(KitError, match=r"conv1\.0\.weight has the shape \[1, 1\], not \["):
        models.create_model(Recipe(model=TINY, weights=tmp_path / "w.pth"))
