"""timm's models with one logit: every family trains, or says before it starts why not."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from conftest import serving
from torch.nn import functional

from kit import models
from kit.base import KitError, Recipe

TINY = "test_resnet"
# A convolution as classifier, two classifiers, one per depth, embedded positions.
FEW = [
    "test_vit",
    "dla46x_c",
    "deit_tiny_distilled_patch16_224",
    "efficientvim_m1_dist",
    "repvit_m1",
]


def test_timm_model_has_one_logit() -> None:
    model = models.create_model(Recipe(model=TINY, size=96))
    assert model(torch.rand(2, 3, 96, 96)).shape == (2, 1)


def test_unknown_model_is_refused_with_its_neighbours() -> None:
    with pytest.raises(KitError, match=r"no model resnet81.*resnet18"):
        models.create_model(Recipe(model="resnet81"))


def test_pretrained_without_a_network_names_the_file_and_the_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(KitError, match=r"cannot fetch .*timm/resnet18\.a1_in1k.*--weights FILE"):
        models.create_model(Recipe(model="resnet18", pretrained=True))


class CutShort(BaseHTTPRequestHandler):
    """A hub whose answers end before their end."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in {"ETag": "a", "X-Repo-Commit": "0" * 40, "Content-Length": 9}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"cut")

    def log_message(self, *_: object) -> None:
        pass


def test_a_download_that_breaks_off_is_a_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), CutShort)) as server:
        address = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(KitError, match=r"cannot fetch .*closed connection.*--weights FILE"):
            models.create_model(Recipe(model=TINY, pretrained=True))


def test_a_tag_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(KitError, match=r"no weights in12k: .* efficientnet_b5\.sw_in12k"):
        models.create_model(Recipe(model="efficientnet_b5.in12k"))


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(
        KitError, match="no weights of botnet50ts_256 are published: start from nothing"
    ):
        models.create_model(Recipe(model="botnet50ts_256", pretrained=True, size=64))


def test_a_model_that_is_made_for_a_size_is_told_the_recipes() -> None:
    model = models.create_model(Recipe(model="vit_tiny_patch16_224", size=96))
    assert model(torch.rand(2, 3, 96, 96)).shape == (2, 1)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("inception_v3", 32, "--size 299"),
        ("halonet_h1", 96, "--size 256"),
    ],
)
def test_a_size_that_a_model_does_not_take_is_refused(name: str, size: int, message: str) -> None:
    expected = f"{name} does not take images of {size} pixels.*try {message}$"
    with pytest.raises(KitError, match=expected):
        models.create_model(Recipe(model=name, size=size))


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_vit"])
def test_a_backbones_logits_start_near_zero(model: str) -> None:
    network = models.create_model(Recipe(model=model)).eval()
    assert network(torch.randn(8, 3, 96, 96)).abs().max() < 1


def check_trains(name: str, size: int) -> None:
    """One step; then the classifier alone; and each layer with a rate of its own."""
    model = models.create_model(Recipe(model=name, size=size))
    images, labels = torch.randn(2, 3, size, size), torch.tensor([0.0, 1.0])
    logits = model.train()(images)
    assert logits.abs().max() < 3
    functional.binary_cross_entropy_with_logits(logits.squeeze(1), labels).backward()
    assert all(weight.grad is not None for weight in model.parameters())
    models.freeze_backbone(model, frozen=True)
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    assert 0 < len(learning) < len(list(model.parameters()))
    model(images).sum().backward()
    groups = models.parameter_groups(model, lr=1e-3, weight_decay=0.05, layer_decay=0.9)
    grouped = [weight for group in groups for weight in group["params"]]
    assert {id(weight) for weight in learning} <= {id(weight) for weight in grouped}
    with torch.no_grad():
        assert models.fuse_norms(model)(images).shape == (2, 1)
    assert models.layer_table(model, size, depth=1).endswith("running statistics")


@pytest.mark.parametrize("name", FEW)
def test_a_backbone_of_every_kind_trains(name: str) -> None:
    check_trains(name, 32)


# The smallest model of each class in each of timm's modules, as of timm 1.0.31.
FAMILIES = (Path(__file__).parent / "timm_families.txt").read_text().split()
# Some take few sizes.
SIZES = {"halonet_h1": 256, "efficientformer_l1": 224, "deepseek_vit_412m": 98}
ENCODERS = [
    "deepseek_vit_412m_enc",
    "gemma4_vit_167m_enc",
    "mobilenetv5_300m_enc",
    "qwen3_vit_88m_enc",
]


@pytest.mark.soak
@pytest.mark.parametrize("name", [*FAMILIES, *SIZES])
def test_the_smallest_model_of_every_family_trains(name: str) -> None:
    check_trains(name, SIZES.get(name, 96))


@pytest.mark.soak
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_without_a_classifier_is_refused(name: str) -> None:
    with pytest.raises(KitError, match="gives no single logit"):
        models.create_model(Recipe(model=name, size=98 if "deepseek" in name else 96))


@pytest.mark.soak
def test_no_family_is_left_out() -> None:
    entrypoint = timm.models.model_entrypoint
    tried = {entrypoint(name).__module__.rpartition(".")[2] for name in [*FAMILIES, *SIZES]}
    assert tried == set(timm.list_modules())
