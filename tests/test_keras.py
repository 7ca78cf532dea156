"""The network against Keras' own, with the same weights and inputs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from kit.base import Recipe
from kit.models import SmallCNN
from kit.training import TrainingState

pytestmark = pytest.mark.skipif(not find_spec("keras"), reason="Keras is not installed")
REFERENCE = Path(__file__).with_name("keras_reference.py")
BACKEND = "tensorflow" if find_spec("tensorflow") else "torch"


def keras_weights(model: SmallCNN) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield each layer's weights in Keras' order and layout."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    for name, block in {"conv1": "features.0", "conv2": "features.1", "dense": "dense"}.items():
        weight = state[f"{block}.layer.weight"]
        if weight.ndim == 4:
            kernel = weight.transpose(2, 3, 1, 0)
        else:
            # Keras flattens rows, columns, channels; PyTorch channels, rows, columns.
            kernel = weight.reshape(128, 64, 2, 2).transpose(2, 3, 1, 0).reshape(256, 128)
        yield name, [kernel, state[f"{block}.layer.bias"]]
        parts = ("weight", "bias", "running_mean", "running_var")
        yield f"{name}_norm", [state[f"{block}.norm.{part}"] for part in parts]
    yield "head", [state["head.weight"].T, state["head.bias"]]


def shaken(bn: Any) -> SmallCNN:
    """Build a network whose statistics, scales and biases are not where they start."""
    torch.manual_seed(0)
    model = SmallCNN(bn)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" in name and tensor.is_floating_point():
                tensor.add_(0.2 * (torch.rand(tensor.shape) - 0.5))
    return model.double()


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Draw fifty batches of 64, the positives a little brighter."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (50, 64)).astype(np.float64)
    contrast = rng.random((50, 64, 1, 1, 3))
    images = contrast * rng.random((50, 64, 32, 32, 3))
    return 0.8 * images + 0.2 * labels[..., None, None, None], labels


def steps(model: SmallCNN, images: np.ndarray, labels: np.ndarray) -> list[float]:
    """Train one step a batch; return the losses."""
    state = TrainingState(model.train(), Recipe(lr=1e-3))
    losses = []
    for batch, truth in zip(images, labels, strict=True):
        logits = model(torch.from_numpy(batch).permute(0, 3, 1, 2)).squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(truth))
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("bn", ["before", "after"])
def test_outputs_losses_and_parameters_agree(bn: str, tmp_path: Path) -> None:
    model = shaken(bn)
    images, labels = inputs()
    given = {
        f"{name}/{number}": array
        for name, arrays in keras_weights(model)
        for number, array in enumerate(arrays)
    }
    np.savez(tmp_path / "in.npz", images=images, labels=labels, **given)
    command = [sys.executable, REFERENCE, bn, tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True, env={"KERAS_BACKEND": BACKEND, **os.environ})
    expected = np.load(tmp_path / "out.npz")

    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(images[0]).permute(0, 3, 1, 2))
    assert expected["outputs"].std() > 0.01
    np.testing.assert_allclose(logits.sigmoid().numpy(), expected["outputs"], atol=1e-5)
    np.testing.assert_allclose(steps(model, images, labels), expected["losses"], atol=1e-3)
    assert expected["parameters"] == 53_313
