"""What an option alone is to blame for is told before anything is opened, packed or computed."""

from pathlib import Path

import pytest
from conftest import Type

from kit.data import Store

MODEL = ("--model resnet999", "no model resnet999")
DEVICE = ("--device gpu", "--device gpu: the kit computes on")
SLIDES = ("--slides none.csv", "--slides none.csv: there is no such file")
WEIGHTS = ("--model resnet18 --weights none.pth", "--weights none.pth: there is no such file")
STORAGE = ("--storage here", "--storage here is no address of a database")
LORA = ("--model resnet18 --lora 2", "ResNet has no attention whose layers --lora could adapt")
BLOCKS = ("--model vgg11 --checkpoint-blocks", "vgg11 has no blocks to compute again")
TOO_SMALL = ("--recipe compact --size 2", "an input of 2 pixels is too small for 3 stages")
HALF = ("--precision fp16", "--precision fp16 needs a GPU")
CURVE = "--recipe compact"


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        *(("train", *case) for case in (MODEL, DEVICE, SLIDES, WEIGHTS)),
        *(("train", *case) for case in (LORA, BLOCKS, TOO_SMALL)),
        ("train", "--model vgg11 --drop-path 0.1", "vgg11 has no paths to drop"),
        ("train", "--teacher none", "none holds no run"),
        ("train", "--cam-layer fc", "--cam-layer fc is no layer of the network: name one of"),
        ("train", "--model none.py:Net", "cannot read none.py for none.py:Net"),
        ("train", "--device cpu --precision fp16", HALF[1]),
        *(("compare", *case) for case in (DEVICE, SLIDES, STORAGE, TOO_SMALL)),
        *(("search", *case) for case in (MODEL, DEVICE, SLIDES, STORAGE, LORA)),
        *(("momentum", *case) for case in (MODEL, DEVICE, SLIDES, STORAGE)),
        ("momentum", "--values 0.9", "a sweep takes two or more momenta"),
        ("momentum", "--ema 0.9", "momentum does not matter to what this recipe keeps"),
        ("momentum", "--norm none", "small has no BatchNorm, and so no momentum to sweep"),
        ("momentum", "--model resnet18 --independent", "resnet18 has a momentum of its own"),
        *(("best", *case) for case in (DEVICE, SLIDES)),
        ("best", "--encoder resnet18=none.pth", "no weights at none.pth"),
        ("learning_curve", f"{CURVE} {DEVICE[0]}", DEVICE[1]),
        ("learning_curve", f"{CURVE} {SLIDES[0]}", SLIDES[1]),
        *(("encode", *case) for case in (MODEL, WEIGHTS)),
        ("encode", f"--model resnet18 {DEVICE[0]}", DEVICE[1]),
        ("encode", "--model resnet18 --pool class", "resnet18 has no class token"),
        ("explore", *SLIDES),
        ("predict", "--run none", "none holds no run"),
        ("submit", "--run none", "there is no none: name a run"),
        ("submit", "--file none.csv", "--file none.csv: there is no such file"),
        ("submit", "", "--file submission.csv: there is no such file"),
        ("dataset", "--name X", "--name X: give 5 to 50 lower-case letters"),
        ("push", "--name X", "--name X: give 5 to 50 lower-case letters"),
        ("notebook", "--epochs 2", "--epochs 2: the notebook says how accuracies change"),
        ("push", "--dataset none", "--dataset none: give OWNER/NAME"),
        ("push", "--kaggle-model a/b", "--kaggle-model a/b: give OWNER/MODEL"),
    ],
)
def test_before_data_is_looked_for(
    type_in: Type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: str,
    message: str,
) -> None:
    """In a folder without data, and without a Kaggle account: neither is what is told."""
    monkeypatch.chdir(tmp_path)
    status, said = type_in(f"{command} {options}")
    assert status == 1
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_told_first(
    type_in: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "notebook-before-0").mkdir(parents=True)
    (tmp_path / "runs" / "notebook-before-0" / "mine.txt").touch()
    status, said = type_in("train")
    assert status == 1
    assert "runs/notebook-before-0" in said and "no data in" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--hub noslash", "--hub noslash is not OWNER/NAME of a repository"),
        ("--hub me/mine", "the hub asks who uploads to it: set HF_TOKEN"),
        ("--timm .", ". exists: name another folder with --timm"),
        ("--demo .", ". exists: name another folder with --demo"),
        ("--timm new", "holds small, which is not a model of timm's"),
    ],
)
def test_an_export_that_cannot_be_is_told_before_another_is_written(
    type_in: Type,
    trained: Path,
    tiles: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    status, said = type_in(f"export --run '{trained}' --data '{tiles.data}' --out n.onnx {options}")
    assert status == 1
    assert message in said
    assert not (tmp_path / "n.onnx").exists()
