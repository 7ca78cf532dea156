import copy
import itertools
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from kit import models, stats
from kit.base import EpochResult, KitError, Optimizer, Recipe
from kit.data import TileDataset, eight_views, eval_loader, train_loader
from kit.training import (
    NonFiniteLossError,
    Normalize,
    TrainingBar,
    TrainingState,
    choose_device,
    choose_precision,
    fit,
    predict,
    predict_logits,
    recalibrate,
    settle_on_kept,
)

RNG = np.random.default_rng(0)
LABELS = np.arange(80) % 2
# Positive tiles are brighter, so that there is something to learn.
TILES = (
    RNG.integers(0, 150, (80, 32, 32, 3)).astype(np.uint8)
    + (60 * LABELS).astype(np.uint8)[:, None, None, None]
)
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def loaders(seed: int = 0) -> tuple[TileDataset, TileDataset]:
    return TileDataset(TILES[:56], LABELS[:56], seed=seed), TileDataset(TILES[56:], LABELS[56:])


def run(
    state: TrainingState,
    *,
    workers: int = 0,
    into: list[EpochResult] | None = None,
    **options: Any,
) -> list[EpochResult]:
    train, valid = loaders()
    results = [] if into is None else into
    results.extend(
        fit(
            state,
            train_loader(train, batch_size=16, workers=workers),
            eval_loader(valid),
            progress=False,
            **options,
        )
    )
    return results


def new_state(dtype: torch.dtype = torch.float32, **options: Any) -> TrainingState:
    recipe = Recipe(**options)
    return TrainingState(models.create_model(recipe), recipe, dtype=dtype)


def figures(results: list[EpochResult]) -> list[dict[str, float]]:
    clocks = ("seconds", "tiles_per_second")
    return [{k: v for k, v in asdict(one).items() if k not in clocks} for one in results]


def test_first_epoch_is_the_written_out_loop() -> None:
    """Plain PyTorch, one step after the other, with the loss and Adam written out.

    In float64: Adam divides small gradients by their own size, and so magnifies rounding.
    """
    model = models.create_model(Recipe()).double()
    order = np.random.default_rng([0, 1]).permutation(56)[:48]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]
    losses, hits = [], 0
    for step in range(3):
        rows = order[16 * step : 16 * step + 16]
        images = torch.from_numpy(TILES[rows]).permute(0, 3, 1, 2).double() / 255
        labels = torch.from_numpy(LABELS[rows]).double()
        probability = model(images)[:, 0].sigmoid()
        loss = -(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean()
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        hits += int(((probability > 0.5) == (labels == 1)).sum())
        with torch.no_grad():
            for weight, (mean, square) in zip(model.parameters(), moments, strict=True):
                mean.mul_(0.9).add_(0.1 * weight.grad)
                square.mul_(0.999).add_(0.001 * weight.grad**2)
                scaled = mean / (1 - 0.9 ** (step + 1))
                weight -= 1e-3 * scaled / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-7)

    state = TrainingState(models.create_model(Recipe()).double(), Recipe(epochs=1))
    result = run(state)[0]
    assert result.train_loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert result.train_accuracy == hits / 48
    for name, weight in model.named_parameters():
        # A bias in front of a norm has no gradient but rounding, which Adam blows up.
        if "layer.bias" not in name:
            trained = state.model.state_dict()[name]
            torch.testing.assert_close(trained, weight.detach(), atol=1e-5, rtol=0)


def test_validation_figures_are_those_of_the_last_weights() -> None:
    state = new_state(epochs=2)
    result = run(state)[-1]
    images = torch.from_numpy(TILES[56:]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        probabilities = state.model.eval()(images)[:, 0].double().sigmoid().numpy()
    assert result.valid_auc == pytest.approx(stats.auc(LABELS[56:], probabilities))
    expected = functional.binary_cross_entropy(
        torch.from_numpy(probabilities), torch.from_numpy(LABELS[56:]).double()
    )
    assert result.valid_loss == pytest.approx(float(expected), abs=1e-6)
    assert result.min_running_var == models.min_running_var(state.model)


def test_a_network_without_batch_norm_has_no_running_variance() -> None:
    state = new_state(model="test_efficientnet_gn", epochs=1)
    assert run(state)[-1].min_running_var is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_seed_gives_the_same_run(dtype: torch.dtype) -> None:
    first, again = (run(new_state(dtype, epochs=2)) for _ in range(2))
    assert figures(first) == figures(again)


@pytest.mark.parametrize("bn", ["before", "after"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_is_uninterrupted_bit_for_bit(bn: str, dtype: torch.dtype) -> None:
    whole = new_state(dtype, bn=bn, epochs=4)
    results = run(whole)
    first = new_state(dtype, bn=bn, epochs=2)
    begun = run(first)
    second = new_state(dtype, bn=bn, epochs=4)
    second.load_state_dict(first.state_dict())
    assert figures(begun + run(second)) == figures(results)
    for one, other in zip(
        whole.model.state_dict().values(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_training_goes_on_in_a_precision_that_scales_its_loss() -> None:
    first = new_state(torch.float32, epochs=2)
    run(first)
    second = new_state(torch.float16, epochs=2)
    second.load_state_dict(first.state_dict())
    assert second.scaler.is_enabled()
    assert second.epoch == 2
    third = new_state(torch.float32, epochs=2)
    third.load_state_dict(second.state_dict())
    assert not third.scaler.is_enabled()


def test_dropout_is_drawn_anew_each_epoch_and_again_when_resumed() -> None:
    def state() -> TrainingState:
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 1))
        torch.nn.init.zeros_(model[2].weight)
        torch.nn.init.zeros_(model[2].bias)
        return TrainingState(model, Recipe(lr=1e-4, epochs=3))

    whole = run(state())
    torch.manual_seed(99)
    assert figures(run(state())) == figures(whole)
    assert len({one.train_loss for one in whole}) == 3


def test_a_loss_that_is_no_number_stops_and_names_its_batch() -> None:
    state = new_state(lr=1e30)
    message = "the loss of epoch 1, step 2 is not a finite number"
    with pytest.raises(NonFiniteLossError, match=message) as raised:
        run(state)
    order = np.random.default_rng([0, 1]).permutation(56)
    assert raised.value.indices == order[16:32].tolist()
    assert raised.value.step == 1


class _Stop(Exception):
    pass


FULL = Recipe(
    lr=1e-2, weight_decay=0.05, ema=0.9, schedule="one-cycle", label_smoothing=0.1, epochs=3
)


@pytest.mark.parametrize(
    ("workers", "dtype", "optimizer"),
    [
        *itertools.product([0, 2], [torch.float32, torch.bfloat16], ["adam"]),
        (0, torch.bfloat16, "muon"),
    ],
)
def test_resumed_after_any_step_is_uninterrupted_bit_for_bit(
    workers: int, dtype: torch.dtype, optimizer: Optimizer
) -> None:
    """Model, optimiser, schedule, average, dropout and the sampler's place, all come back."""

    def state() -> TrainingState:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)
            ).append(nn.Linear(4 * 30**2, 1))
        recipe = replace(FULL, optimizer=optimizer)
        return TrainingState(model, recipe, steps_per_epoch=3, dtype=dtype)

    whole = state()
    results = run(whole, workers=workers)
    for stop_after in (1, 3, 4, 8):
        saved: list[dict[str, Any]] = []
        results_before: list[EpochResult] = []

        def stop(begun: TrainingState, after: int, saved: list[dict[str, Any]]) -> None:
            if 3 * begun.progress.epoch + begun.progress.step == after:
                saved.append(copy.deepcopy(begun.state_dict()))
                raise _Stop

        begun = state()
        with pytest.raises(_Stop):
            run(
                begun,
                after_step=partial(stop, begun, stop_after, saved),
                into=results_before,
            )
        torch.manual_seed(123)
        resumed = state()
        resumed.load_state_dict(saved[0])
        after = run(resumed, workers=workers)
        assert figures(results_before + after) == figures(results)
        first, second = (
            {**one.model.state_dict(), **one.averaged.state_dict()} for one in (whole, resumed)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_cycle_is_smith_and_topins() -> None:
    """Cosine from a 25th of the peak up in a quarter of the steps, and down to nothing."""
    recipe = Recipe(lr=0.1, schedule="one-cycle", epochs=1)
    state = TrainingState(nn.Linear(3, 1), recipe, steps_per_epoch=101)
    assert state.schedule is not None
    rates = []
    for _ in range(101):
        rates.append(state.optimizer.param_groups[0]["lr"])
        state.optimizer.step()
        if len(rates) < 101:
            state.schedule.step()
    up = 0.25 * 101 - 1
    rise = 0.1 + (0.004 - 0.1) / 2 * (1 + np.cos(np.pi * np.arange(24) / up))
    np.testing.assert_allclose(rates[:24], rise, rtol=1e-6)
    assert max(rates) == pytest.approx(0.1, rel=1e-2)
    assert rates[-1] < 1e-6


def test_average_of_weights_is_the_written_out_recursion() -> None:
    state = TrainingState(nn.Linear(1, 1, bias=False), Recipe(ema=0.5))
    assert state.averaged is not None
    expected = None
    for step, weight in enumerate([1.0, 5.0, 2.0, 3.0]):
        state.model.weight.data.fill_(weight)  # type: ignore[operator, union-attr]
        state.averaged.update()
        memory = min(0.5, (1 + step) / (10 + step))
        expected = weight if expected is None else memory * expected + (1 - memory) * weight
    assert state.averaged.module.weight.item() == pytest.approx(expected)
    settle_on_kept(state, eval_loader(TileDataset(TILES)))
    assert state.model.weight.item() == pytest.approx(expected)  # type: ignore[operator, union-attr]


def test_label_smoothing_draws_labels_to_one_half() -> None:
    plain, smooth = (run(new_state(epochs=1, label_smoothing=share))[0] for share in (0.0, 1.0))
    # With all labels at 1/2 a loss below log 2 is impossible.
    assert plain.train_loss < np.log(2) < smooth.train_loss


def test_frozen_epochs_move_the_classifier_alone() -> None:
    recipe = Recipe(model="test_resnet", epochs=1)
    model = models.create_model(recipe)
    before = copy.deepcopy(model.state_dict())
    run(TrainingState(model, replace(recipe, frozen_epochs=1)))
    moved = {
        name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])
    }
    assert moved == {"fc.weight", "fc.bias"}
    run(TrainingState(model, recipe))
    assert all(weight.requires_grad for weight in model.parameters())


class _CornerModel(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, 1:2]


def test_eight_views_are_the_mean_over_the_symmetries() -> None:
    tiles = RNG.integers(0, 256, (3, 5, 5, 3), dtype=np.uint8)
    loader = eval_loader(TileDataset(tiles))
    seen = predict(_CornerModel(), loader, Normalize(*UNIT), views=8)
    ring = tiles[..., 0] / 255
    corners = np.stack(
        [
            ring[:, row, column]
            for row, column in [(0, 1), (1, 0), (0, 3), (3, 0), (4, 1), (1, 4), (4, 3), (3, 4)]
        ]
    )
    np.testing.assert_allclose(seen, (1 / (1 + np.exp(-corners))).mean(0), atol=1e-6)


def test_symmetries_are_eight_different_views() -> None:
    image = torch.arange(12.0).view(1, 3, 2, 2)
    views = eight_views(image)
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8


def test_normalize_is_the_formula() -> None:
    images = torch.from_numpy(TILES[:2]).permute(0, 3, 1, 2)
    mean, std = (0.7, 0.5, 0.6), (0.2, 0.3, 0.25)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )
    torch.testing.assert_close(Normalize(mean, std)(images).double(), expected, atol=1e-5, rtol=0)


def test_precision_is_what_is_asked_for_and_can_be_done() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("bf16", cpu) == torch.bfloat16
    assert choose_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(KitError, match="fp16 needs a GPU"):
        choose_precision("fp16", cpu)
    with pytest.raises(KitError, match="--device nowhere"):
        choose_device("nowhere")


@pytest.mark.parametrize("model", ["small", "compact", "test_resnet", "test_vit"])
def test_every_tile_has_its_own_probability_in_bf16(model: str) -> None:
    """Heads in bf16 gave 1,672 real tiles 489 values."""
    recipe = Recipe(model=model, size=160 if model == "test_vit" else 32)
    size = recipe.size
    tiles = np.random.default_rng(1).integers(0, 256, (200, size, size, 3), dtype=np.uint8)
    state = TrainingState(models.create_model(recipe), recipe)
    loader = eval_loader(TileDataset(tiles))
    exact, coarse = (
        predict(state.model, loader, state.normalize, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    # As float32 tells apart what is nearly one probability.
    distinct = [len(np.unique(seen.astype(np.float32))) for seen in (coarse, exact)]
    assert distinct[0] >= 0.95 * distinct[1]
    np.testing.assert_allclose(coarse, exact, atol=0.02)


def test_a_probability_that_rounds_to_one_keeps_its_logit() -> None:
    tiles = np.full((3, 4, 4, 3), 255, np.uint8)
    scale = torch.tensor([40.0, 50.0, 60.0])

    class Scaled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, 0, 0, :1] * scale[:, None]

    loader = eval_loader(TileDataset(tiles))
    for views in (1, 8):
        logits = predict_logits(Scaled(), loader, Normalize(*UNIT), views=views)
        np.testing.assert_allclose(logits, scale, rtol=1e-6)
    assert (predict(Scaled(), loader, Normalize(*UNIT)) == 1).all()


NO_DEVICES = ["nowhere", "meta", "hpu", "cuda:x", "cuda:99", ""]
NO_DEVICES += [] if torch.backends.mps.is_available() else ["mps"]


@pytest.mark.parametrize("name", NO_DEVICES)
def test_a_device_that_the_kit_cannot_use_is_a_sentence(name: str) -> None:
    with pytest.raises(KitError, match=f"--device {name}") as raised:
        choose_device(name)
    assert "\n" not in str(raised.value)


def test_an_apple_gpu_computes_in_fp32_alone() -> None:
    apple = torch.device("mps")
    assert choose_precision("auto", apple) == choose_precision("fp32", apple) == torch.float32
    for precision in ("bf16", "fp16"):
        with pytest.raises(KitError, match=f"--precision {precision} on mps: .* fp32"):
            choose_precision(precision, apple)  # type: ignore[arg-type]


def test_more_epochs_go_on_with_their_own_schedule() -> None:
    """Two of two epochs, then resumed as two of four: rates are those of the four."""
    recipe = Recipe(schedule="one-cycle", ema=0.9, epochs=2)
    short = TrainingState(models.create_model(recipe), recipe, steps_per_epoch=3)
    run(short)
    more = replace(recipe, epochs=4)
    resumed, whole = (
        TrainingState(models.create_model(more), more, steps_per_epoch=3) for _ in range(2)
    )
    resumed.load_state_dict(short.state_dict())
    assert [result.epoch for result in run(resumed)] == [3, 4]
    run(whole)
    assert resumed.schedule is not None
    assert whole.schedule is not None
    assert resumed.schedule.get_last_lr() == whole.schedule.get_last_lr()


@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet_gn"])
def test_a_network_without_batch_norm_trains_and_has_no_running_variance(model: str) -> None:
    recipe = Recipe(model=model, size=160 if model == "test_vit" else 32, epochs=1, ema=0.9)
    state = TrainingState(models.create_model(recipe), recipe)
    tiles = np.random.default_rng(0).integers(0, 256, (16, recipe.size, recipe.size, 3), np.uint8)
    data = TileDataset(tiles, np.arange(16) % 2)
    (result,) = fit(
        state, train_loader(data, batch_size=8, workers=0), eval_loader(data), progress=False
    )
    assert result.min_running_var is None
    weights = copy.deepcopy(state.model.state_dict())
    # Nothing is measured, so nothing is read.
    recalibrate(state.model, iter(lambda: pytest.fail("read"), None), state.normalize)
    assert all(torch.equal(weights[name], one) for name, one in state.model.state_dict().items())


def test_recalibrating_that_fails_leaves_the_norms_as_they_were() -> None:
    state = new_state()
    momenta = [norm.momentum for norm in models.batch_norms(state.model).values()]
    single = eval_loader(TileDataset(TILES[:1]))
    with pytest.raises(KitError, match="no statistics of a batch of a single tile"):
        recalibrate(state.model, single, state.normalize)
    norms = models.batch_norms(state.model).values()
    assert [norm.momentum for norm in norms] == momenta
    assert not any(norm.training or norm._forward_hooks for norm in norms)


def test_a_bar_over_several_trainings_tells_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 30.0, 30.0, 60.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with TrainingBar(5, shown=False) as bar:
        # Two folds were trained before this command.
        bar.skip(2)
        assert bar.time_left() == ""
        bar.advance(0.5, "epoch 1/2")
        assert bar.time_left() == "02:30 left"
        bar.advance(0.5, "epoch 2/2")
        bar.say("a line")
    assert capsys.readouterr().out == "a line\n"


def test_a_bar_whose_shares_are_rounded_stays_whole() -> None:
    """Their sum may be above the whole, of which tqdm warns when it draws the bar again."""
    with TrainingBar(1) as bar:
        for _ in range(10):
            bar.advance(0.1 + 1e-12, "")
        tqdm.write("note")
