"""A run on the hub: uploaded by the real client to a loopback server, and brought back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from hub_server import TOKEN, Hub, hub
from test_export import TIMM, finished, inputs, logits

from kit.data import Store
from kit.training import Normalize

# One process for all cases: the client reads HF_ENDPOINT when it is imported.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
import torch
from kit import models, runs
from kit.base import KitError, Recipe
from kit.data import open_store
# The client tries five times, and waits in between.
time.sleep = lambda _: None
run, data, images, cases = sys.argv[1:]
tiles = open_store(Path(data)).test.tiles[:4]
for name, token, public in json.loads(cases):
    os.environ["HF_TOKEN"] = token
    try:
        facts = runs.CardFacts(licence="mit")
        said = runs.upload_timm(name, Path(run), tiles, public=public, facts=facts)[0]
    except KitError as error:
        said = str(error)
    print(json.dumps(said))
os.environ.pop("HF_TOKEN")
recipe = Recipe(model="hf-hub:me/mine", pretrained=True, size=96, normalize="model")
model = models.create_model(models.follow_model(recipe)).eval()
with torch.inference_mode():
    print(json.dumps(model(torch.load(images)).flatten().tolist()))
"""

CASES = {
    "no token": ("me/mine", "", False),
    "wrong token": ("me/mine", "hf_awrongone", False),
    "forbidden": ("forbidden/mine", TOKEN, False),
    "no name": ("me/mine/again", TOKEN, False),
    "taken": ("me/taken", TOKEN, False),
    "mine": ("me/mine", TOKEN, False),
    "public": ("me/public", TOKEN, True),
    "empty": ("me/empty", TOKEN, True),
    "cut": ("cut/short", TOKEN, False),
}


@pytest.fixture(scope="module")
def run(tiles: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(TIMM, tiles, tmp_path_factory.mktemp("timm") / "run")


@pytest.fixture(scope="module")
def answers(
    run: Path, tiles: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Hub, dict[str, str], list[float]]:
    """What the hub holds afterwards, what the kit says of each case, and what comes back."""
    scratch = tmp_path_factory.mktemp("hub")
    images = Normalize(*TIMM.channel_statistics)(inputs(run, tiles))
    torch.save(images, scratch / "images.pt")
    there = {"me/taken": {"model.safetensors": b"another's"}, "me/empty": {".gitattributes": b""}}
    with hub(there) as server:
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.address,
            "HF_HOME": str(scratch / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "*",
        }
        cases = json.dumps(list(CASES.values()))
        words = [str(run), str(tiles.folder.parent), str(scratch / "images.pt"), cases]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    *said, back = map(json.loads, done.stdout.splitlines())
    return server, dict(zip(CASES, said, strict=True)), back


Answers = tuple[Hub, dict[str, str], list[float]]


def test_what_was_uploaded_comes_back_with_its_predictions(
    answers: Answers, run: Path, tiles: Store
) -> None:
    """The classifier, too, since the configuration says that it is one of this competition."""
    server, said, back = answers
    assert said["mine"] == f"{server.address}/me/mine"
    expected = logits(run, tiles)[:, 0]
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(back, expected, rtol=0, atol=1e-5)
    files = server.repositories["me/mine"]
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}


def test_only_its_owner_sees_it_unless_it_is_public(answers: Answers) -> None:
    server, said, _ = answers
    assert server.visibility["me/mine"] == "private"
    assert server.visibility["me/public"] == "public"
    # What an upload has left that broke off is gone on with.
    assert said["empty"] == f"{server.address}/me/empty"
    assert server.visibility["me/empty"] == "public"
    assert "model.safetensors" in server.repositories["me/empty"]


def test_the_card_has_what_the_hub_reads_and_a_person_asks(answers: Answers, run: Path) -> None:
    text = answers[0].repositories["me/mine"]["README.md"].decode()
    _, metadata, body = text.split("---\n", 2)
    told = yaml.safe_load(metadata)
    assert (told["license"], told["library_name"]) == ("mit", "timm")
    assert told["pipeline_tag"] == "image-classification"
    figures = json.loads((run / "metrics.json").read_text())
    (model,) = told["model-index"]
    metrics = {metric["type"]: metric["value"] for metric in model["results"][0]["metrics"]}
    assert metrics["roc_auc"] == pytest.approx(figures["auc"]["estimate"])
    for part in (
        'timm.create_model("hf-hub:me/mine", pretrained=True)',
        "not a medical device",
        "| new tiles of these slides |",
        "figures are too high",
        f"{figures['tiles']} held-out tiles",
        "mit. The training began from random weights.",
        "--model test_resnet",
    ):
        assert part in body


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("no token", ["asks who uploads", "HF_TOKEN"]),
        ("wrong token", ["does not know the token", "HF_TOKEN"]),
        ("forbidden", ["may not write to forbidden/mine", "choose an OWNER"]),
        ("no name", ["--hub me/mine/again is not OWNER/NAME"]),
        ("taken", ["me/taken exists on the hub and is not empty", "another name"]),
        ("cut", ["the upload to cut/short broke off", "type the command again"]),
    ],
)
def test_what_the_hub_refuses_is_one_message_and_uploads_nothing(
    answers: Answers, case: str, parts: list[str]
) -> None:
    server, said, _ = answers
    assert [part for part in parts if part not in said[case]] == []
    assert "\n" not in said[case]
    assert server.repositories["me/taken"] == {"model.safetensors": b"another's"}
    assert set(server.repositories["cut/short"]) == {".gitattributes"}
