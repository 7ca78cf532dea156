"""The way to a submission on a simulated GPU: it runs, nothing mixes devices, no step waits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import competition_files, kernel, write_zip
from simulated_gpu import Counts, SimulatedGraph, simulated_gpu
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from kit import models, runs
from kit.base import KitError, Precision, Recipe
from kit.data import Resize, Store, eval_loader, open_store, recipe_dataset, train_loader
from kit.training import (
    FullMemoryError,
    GraphedCall,
    NonFiniteLossError,
    Normalize,
    Teacher,
    TrainingState,
    choose_kernels,
    explain_full_memory,
    fit,
    nearest_precision,
)
from kit.training.graphs import WARM_UP_CALLS

CUDA = torch.device("cuda")
RECIPES = {
    "small": Recipe(augment="stain"),
    "compact": Recipe(
        model="compact",
        widths=(2, 3),
        orientations=8,
        crop=48,
        size=48,
        augment="full",
        ema=0.9,
        schedule="one-cycle",
        normalize="competition",
        optimizer="muon",
    ),
    # It enlarges what it sees.
    "convolutions": Recipe(
        model="test_resnet",
        crop=32,
        size=40,
        interpolation="bicubic",
        ema=0.9,
        optimizer="muon",
    ),
    "transformer": Recipe(
        model="test_vit", crop=48, size=48, augment="colour", label_smoothing=0.1
    ),
    # Its first epoch trains the head alone.
    "tuned": Recipe(
        model="test_vit",
        pretrained=False,
        crop=48,
        size=48,
        lora=2,
        drop_path=0.1,
        checkpoint_blocks=True,
        frozen_epochs=1,
    ),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("data")
    write_zip(folder, competition_files())
    return open_store(folder)


@pytest.fixture
def counts() -> Iterator[Counts]:
    with simulated_gpu() as counted:
        yield counted


# Of the hundreds in a step that no graph replays.
FEW_LAUNCHES = 60


def assert_no_step_waits(
    store: Store, counts: Counts, recipe: Recipe, dtype: torch.dtype, teachers: Sequence[Teacher]
) -> None:
    recipe = replace(recipe, batch_size=4, epochs=2)
    dataset = recipe_dataset(
        store.train.tiles, recipe, labels=store.labels, train=True, device=CUDA
    )
    network, options = models.create_model(recipe), {"device": CUDA, "dtype": dtype}
    state = TrainingState(network, recipe, steps_per_epoch=6, teachers=teachers, **options)
    seen, launches = [], []

    def after_step() -> None:
        if state.progress.step > 1:
            seen.append((dict(counts.waits), counts.uploaded))
            launches.append(counts.launches)
        counts.clear()

    loader = train_loader(dataset, batch_size=4)
    list(fit(state, loader, eval_loader(dataset), after_step=after_step, progress=False))
    assert seen == [({}, 0)] * 10
    assert (max(launches[5:]) < FEW_LAUNCHES) is not recipe.checkpoint_blocks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_waits_for_nothing_and_copies_nothing(
    store: Store, counts: Counts, name: str, dtype: torch.dtype
) -> None:
    assert_no_step_waits(store, counts, RECIPES[name], dtype, [])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_taught_step_waits_for_nothing(store: Store, counts: Counts, dtype: torch.dtype) -> None:
    theirs, recipe = RECIPES["convolutions"], RECIPES["compact"]
    teacher = Teacher(
        models.create_model(theirs).to(CUDA).eval(),
        Resize(recipe.size, theirs.size, theirs.interpolation),
        Normalize(*theirs.channel_statistics).to(CUDA),
        dtype,
    )
    recipe = replace(recipe, teacher=(Path("theirs"),), teacher_weight=0.5)
    assert_no_step_waits(store, counts, recipe, dtype, [teacher])


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_is_that_of_the_cpu_within_rounding(store: Store, tmp_path: Path, name: str) -> None:
    recipe = replace(RECIPES[name], batch_size=2, epochs=1, precision="fp32")
    if recipe.augment in ("stain", "colour", "full"):
        # OpenCV and PyTorch round these otherwise.
        recipe = replace(recipe, augment="d4")
    on_cpu = runs.Run(recipe, store, tmp_path / "cpu", device="cpu")
    expected = list(on_cpu.train(progress=False))
    with simulated_gpu():
        run = runs.Run(recipe, store, tmp_path / "cuda", device="cuda")
        (found,) = run.train(progress=False)
        probabilities = runs.load(tmp_path / "cuda", device="cuda").predict(store.test, views=8)
    assert run.loaders.holds_tiles
    assert found.train_loss == pytest.approx(expected[0].train_loss, rel=1e-4)
    there = runs.load(tmp_path / "cpu", device="cpu").predict(store.test, views=8)
    np.testing.assert_allclose(probabilities, there, atol=2e-3)


def test_what_a_gpu_has_trained_in_fp16_predicts_on_a_cpu(store: Store, tmp_path: Path) -> None:
    recipe = replace(RECIPES["small"], batch_size=4, epochs=1, precision="fp16", augment="d4")
    with simulated_gpu():
        list(runs.Run(recipe, store, tmp_path / "run", device="cuda").train(progress=False))
        expected = runs.load(tmp_path / "run", device="cuda").predict(store.test, progress=False)
    trained = runs.load(tmp_path / "run", device="cpu")
    assert trained.dtype == torch.float32
    np.testing.assert_allclose(trained.predict(store.test, progress=False), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("precision", "device", "nearest"),
    [
        ("fp16", "cpu", "fp32"),
        ("bf16", "cpu", "bf16"),
        ("auto", "cpu", "auto"),
        ("bf16", "mps", "fp32"),
        ("fp16", "cuda", "fp16"),
    ],
)
def test_a_device_that_lacks_a_precision_takes_fp32(
    precision: Precision, device: str, nearest: Precision
) -> None:
    assert nearest_precision(precision, torch.device(device)) == nearest


def test_a_taught_run_is_that_of_the_cpu_within_rounding(store: Store, tmp_path: Path) -> None:
    theirs = replace(RECIPES["convolutions"], batch_size=2, epochs=1, precision="fp32")
    list(runs.Run(theirs, store, tmp_path / "theirs", device="cpu").train(progress=False))
    recipe = replace(RECIPES["compact"], batch_size=2, epochs=1, precision="fp32", augment="d4")
    recipe = replace(recipe, teacher=(tmp_path / "theirs",))
    on_cpu = runs.Run(recipe, store, tmp_path / "cpu", device="cpu")
    (expected,) = on_cpu.train(progress=False)
    with simulated_gpu():
        run = runs.Run(recipe, store, tmp_path / "cuda", device="cuda")
        (found,) = run.train(progress=False)
    assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-4)


@pytest.mark.usefixtures("counts")
def test_a_graph_does_what_its_function_does() -> None:
    total = torch.zeros(3).to(CUDA)

    def add(values: torch.Tensor) -> torch.Tensor:
        total.add_(values)
        return 2 * total

    graphed = GraphedCall(add, CUDA)
    returned = [graphed(torch.full((3,), float(number)).to(CUDA)).tolist() for number in range(9)]
    assert returned == [[number * (number + 1.0)] * 3 for number in range(9)]
    doubled = GraphedCall(lambda: total.mul_(2), CUDA)
    assert [doubled().tolist()[0] for _ in range(9)] == [36 * 2.0**power for power in range(1, 10)]


def compute_again(values: Tensor) -> Tensor:
    again: Tensor = checkpoint(functional.dropout, values, use_reentrant=False)
    return again


@pytest.mark.usefixtures("counts")
@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda values: values * values.sum().item(), "not permitted"),
        (compute_again, "Cannot call CUDAGeneratorImpl::current_seed"),
    ],
)
def test_what_no_graph_holds_cannot_be_recorded(
    step: Callable[[Tensor], Tensor], reason: str
) -> None:
    graphed = GraphedCall(step, CUDA)
    values = torch.ones(2).to(CUDA)
    for _ in range(WARM_UP_CALLS):
        graphed(values)
    with pytest.raises(KitError, match=f"--no-cuda-graphs .{reason}"):
        graphed(values)


@pytest.mark.usefixtures("counts")
def test_a_memory_that_is_full_while_a_step_is_recorded_is_told_as_that() -> None:
    def fill(values: Tensor) -> Tensor:
        if SimulatedGraph.recording is not None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return values

    graphed = GraphedCall(fill, CUDA)
    values = torch.ones(2).to(CUDA)
    for _ in range(WARM_UP_CALLS):
        graphed(values)
    with (
        pytest.raises(FullMemoryError, match="is full while training: choose a smaller batch"),
        explain_full_memory(CUDA, "training", "choose a smaller batch"),
    ):
        graphed(values)


@pytest.mark.parametrize("workers", [0, 1])
def test_tiles_that_no_gpu_holds_are_copied_without_waiting(
    store: Store, counts: Counts, workers: int
) -> None:
    recipe = replace(RECIPES["small"], batch_size=4, epochs=1, optimizer="muon")
    dataset = recipe_dataset(store.train.tiles, recipe, labels=store.labels, train=True)
    state = TrainingState(models.create_model(recipe), recipe, device=CUDA)
    seen = []

    def after_step() -> None:
        seen.append(dict(counts.waits))
        counts.clear()

    loader = train_loader(dataset, batch_size=4, workers=workers, pin_memory=True)
    list(fit(state, loader, eval_loader(dataset), after_step=after_step, progress=False))
    assert seen[1:] == [{}] * 5


class Rootless(torch.nn.Module):
    """A network with a finite loss and no gradient that is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.weight * images.mean((1, 2, 3))).abs().sqrt()[:, None]


@pytest.mark.usefixtures("counts")
def test_gradients_that_fp16_cannot_hold_end_the_training(store: Store) -> None:
    recipe = replace(RECIPES["small"], batch_size=1, epochs=5)
    dataset = recipe_dataset(store.train.tiles, recipe, labels=store.labels, device=CUDA)
    state = TrainingState(Rootless(), recipe, device=CUDA, dtype=torch.float16)
    epochs = fit(state, train_loader(dataset, batch_size=1), eval_loader(dataset), progress=False)
    with pytest.raises(NonFiniteLossError, match="larger than fp16 holds") as error:
        list(epochs)
    # 24 halvings in the first epoch are too few, 48 are enough.
    assert state.epoch == 1
    assert len(error.value.indices) == 1


@pytest.mark.usefixtures("counts")
def test_kernels_are_the_fastest_or_repeat_their_bits() -> None:
    for deterministic in (True, False):
        choose_kernels(deterministic=deterministic)
        assert torch.backends.cudnn.benchmark is not deterministic
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert not torch.backends.cudnn.allow_tf32


def test_every_command_runs(store: Store, tmp_path: Path) -> None:
    """The way to a submission, a study of each kind, a resumed run, an export, a probe."""

    def run(name: str, *options: object) -> None:
        with simulated_gpu():
            finished = kernel(name, *options, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr

    data = ("--data", store.folder.parent, "--device", "cuda")
    short = (*data, "--epochs", 1, "--batch-size", 4)
    compact = ("--recipe", "compact", "--widths", 2, 3, "--crop", 48, "--size", 48)
    run("train", *short, *compact, "--epochs", 2, "--out", "compact")
    run("train", *short, "--model", "test_resnet", "--precision", "fp16", "--out", "resnet")
    run("train", "--resume", "--force", "--epochs", 2, "--device", "cuda", "--out", "resnet")
    run("predict", *data, "--run", "compact", "--run", "resnet", "--views", 8, "--adapt-bn")
    run("compare", *short, "--seeds", 1, "--out", "bn")
    run("momentum", *short, "--seeds", 1, "--out", "momentum")
    run("search", *short, "--trials", 2, "--out", "search")
    run("export", *data[:2], "--run", "compact", "--out", "model.onnx")
    run("train", *data, "--refit", "compact", "--out", "refit")
    probe = ("--recipe", "probe", "--model", "test_resnet", "--no-pretrained", "--size", 48)
    run("train", *data, *probe, "--crop", 48, "--out", "probe")
    run("predict", *data, "--run", "probe", "--run", "refit", "--views", 8)
    assert (tmp_path / "submission.csv").is_file()
