"""Models from the hub: fetched by the real client from a loopback server, or one message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from conftest import ROOT
from hub_server import hub

from kit import models
from kit.base import Recipe

TINY = "test_resnet"

# One process for all cases: the client reads HF_ENDPOINT when it is imported.
SCRIPT = """
import json, sys, time
from kit import models
from kit.base import KitError, Recipe
# The client tries five times, and waits in between.
time.sleep = lambda _: None
for name in map(str.strip, sys.stdin):
    recipe = Recipe(model=name, size=96, pretrained=True, probe="linear", normalize="model")
    try:
        recipe = models.follow_model(recipe)
        encoder = models.create_encoder(recipe)
        answer = ["ok", recipe.normalize, models.weights_fingerprint(encoder.network)]
    except KitError as error:
        answer = ["error", str(error)]
    print(json.dumps(answer), flush=True)
"""


def repository(model: torch.nn.Module, name: str = TINY, **also: object) -> dict[str, bytes]:
    """A model as timm keeps it on the hub."""
    config = {
        "architecture": name,
        "num_classes": 1000,
        "num_features": model.num_features,
        "pretrained_cfg": {
            "input_size": [3, 160, 160],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "classifier": "fc",
            "first_conv": "conv1.0",
            **also,
        },
    }
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": safetensors.torch.save(model.state_dict()),
    }


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the kit says of each case."""
    torch.manual_seed(0)
    whole = repository(timm.create_model(TINY))
    other = safetensors.torch.save(timm.create_model("test_vit").state_dict())
    repositories = {
        "someone/whole": whole,
        "someone/other-model": {**whole, "model.safetensors": other},
        "someone/damaged": {**whole, "model.safetensors": b"not a file of tensors"},
        "someone/no-weights": {"config.json": whole["config.json"]},
        "someone/no-timm": {"config.json": b'{"model_type": "bert"}', "model.safetensors": other},
        "someone/not-json": {"config.json": b"<html>", "model.safetensors": other},
        "someone/unknown": {
            **whole,
            "config.json": whole["config.json"].replace(TINY.encode(), b"model_of_2030"),
        },
        "cut/short": whole,
    }
    names = [*repositories, "gated/model", "forbidden/model", "someone/missing", "notarepo"]
    folder = tmp_path_factory.mktemp("hub")
    with hub(repositories) as server:
        process = start(server.address, folder)
        said = {name: ask(process, name) for name in names}
        assert not any("token" in asked for asked in server.asked)
    with process:
        said["unreachable"] = ask(process, "someone/else")
        process.communicate()
    assert process.returncode == 0
    return said


def start(address: str, folder: Path) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(folder),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "*",
    }
    environment.pop("HF_TOKEN", None)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(process: "subprocess.Popen[str]", name: str) -> list[str]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"hf-hub:{name}\n")
    process.stdin.flush()
    answer: list[str] = json.loads(process.stdout.readline())
    return answer


def test_a_model_of_the_hub_is_built_with_what_its_page_says(answers: dict[str, list[str]]) -> None:
    torch.manual_seed(0)
    network = timm.create_model(TINY)
    network.reset_classifier(0)
    assert answers["someone/whole"] == ["ok", "half", models.weights_fingerprint(network)]


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("gated/model", ["huggingface.co/gated/model is gated", "accept its terms", "HF_TOKEN"]),
        (
            "forbidden/model",
            ["huggingface.co/forbidden/model is gated", "HF_TOKEN", "--weights FILE"],
        ),
        ("someone/missing", ["the hub has no", "check the name", "--weights FILE"]),
        ("notarepo", ["the hub has no", "check the name"]),
        ("unreachable", ["cannot reach the hub", "--weights FILE"]),
        ("cut/short", ["the download from", "failed", "type the command again", "--weights FILE"]),
        ("someone/other-model", ["does not fit the model"]),
        ("someone/damaged", ["cannot read weights", "it is damaged"]),
        ("someone/no-weights", ["holds none of model.safetensors, pytorch_model.bin"]),
        ("someone/no-timm", ["does not describe a model of timm"]),
        ("someone/not-json", ["does not describe a model of timm"]),
        ("someone/unknown", ["model_of_2030", "install a newer timm"]),
    ],
)
def test_what_the_hub_refuses_is_one_message_with_the_next_step(
    answers: dict[str, list[str]], case: str, parts: list[str]
) -> None:
    status, message = answers[case]
    assert status == "error"
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message


def test_a_folder_as_timm_writes_it_is_a_model(tmp_path: Path) -> None:
    network = timm.create_model(TINY)
    for name, content in repository(network).items():
        (tmp_path / name).write_bytes(content)
    recipe = Recipe(model=f"local-dir:{tmp_path}", size=96, pretrained=True, probe="linear")
    encoder = models.create_encoder(models.follow_model(recipe))
    images = torch.rand(2, 3, 96, 96)
    expected = network.eval().forward_features(images)
    assert torch.equal(encoder.network.forward_features(images), expected)
