import json
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_kernel, start_kernel
from safetensors.torch import load_file

from kit import runs, stats, study
from kit.base import EpochResult, KitError, Recipe
from kit.data import Store, loaders
from kit.runs import Run
from kit.study import Holdouts, MomentumSweep, Outcome, StatisticsBank, Study

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(epochs=3, batch_size=8, widths=(4, 6, 8))
ARMS = {bn: replace(RECIPE, bn=bn) for bn in ("before", "after")}
MOMENTA = (0.99, 0.75, 0.5)


def outcome(*accuracies: float, auc: float = 0.5, lowest: float | None = 0.1) -> Outcome:
    """A run whose curve ends with what it keeps."""
    history = tuple(
        EpochResult(epoch, 0.4, 0.9, 0.5, accuracy, auc, 1.0, 100.0, lowest)
        for epoch, accuracy in enumerate(accuracies, 1)
    )
    return Outcome(history, auc, accuracies[-1], 0.5)


def without_clocks(one: Outcome) -> Outcome:
    clocks = {"seconds": 0.0, "tiles_per_second": 0.0}
    return replace(one, history=tuple(replace(epoch, **clocks) for epoch in one.history))


def outcomes(differences: np.ndarray) -> dict[str, list[Outcome]]:
    """Two arms whose AUC differs by these amounts, seed by seed."""
    rng = np.random.default_rng(0)
    base = 0.8 + 0.02 * rng.standard_normal(len(differences))
    return {
        "one": [outcome(0.7, 0.8, auc=auc + d) for auc, d in zip(base, differences, strict=True)],
        "two": [outcome(0.7, 0.8, auc=auc) for auc in base],
    }


def verdict_of(differences: np.ndarray, holdouts: Holdouts) -> str:
    arms = outcomes(differences)
    judged = study.judge_arms(arms, pd.DataFrame(), "one", "two", holdouts)
    return study.paired_verdict(judged, "one", "two")


def test_arms_are_paired_in_all_but_the_order(tiles: Store, tmp_path: Path) -> None:
    """A seed gives both arms the same tiles, the same first tensors and the same data order."""
    pair = [Run(replace(arm, seed=5), tiles, tmp_path / arm.bn) for arm in ARMS.values()]
    np.testing.assert_array_equal(pair[0].holdout.train, pair[1].holdout.train)
    states = [run.state.model.state_dict().values() for run in pair]
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    other = Run(replace(RECIPE, seed=6), tiles, tmp_path / "other")
    assert set(other.holdout.train) != set(pair[0].holdout.train)


def test_what_is_kept_counts_and_the_spread_is_of_the_curve() -> None:
    figures = study.run_figures(replace(outcome(0.5, 0.9, 0.6, 0.7), accuracy=0.8, auc=0.6))
    assert (figures["validation accuracy"], figures[study.PRIMARY]) == (0.8, 0.6)
    assert figures["generalisation gap (accuracy)"] == pytest.approx(0.1)
    assert figures["spread of validation accuracy"] == pytest.approx(np.std([0.4, -0.3, 0.1]))


@pytest.mark.parametrize("lowest", [None, float("inf")])
def test_a_figure_that_one_arm_does_not_have_is_left_out(lowest: float | None) -> None:
    """A network without BatchNorm has no running variance; version 0.4.0 wrote infinity."""
    without = [outcome(0.7, 0.8, lowest=lowest), outcome(0.6, 0.8, lowest=lowest)]
    arms = {"with": [outcome(0.7, 0.8), outcome(0.8, 0.8)], "without": without}
    assert without[0].history[0].min_running_var is None
    names = study.paired_table(arms, "with", "without").frame.index
    assert "smallest running variance" not in names
    assert "smallest running variance" in study.run_figures(arms["with"][0])


def test_table_holds_means_and_paired_differences() -> None:
    differences = np.array([0.01, 0.02, 0.03, 0.02, 0.01, 0.04])
    table = study.paired_table(outcomes(differences), "one", "two").frame
    row = table.loc[study.PRIMARY]
    assert row["difference"] == pytest.approx(differences.mean())
    assert row["one mean"] - row["two mean"] == pytest.approx(differences.mean())
    assert row["n"] == 6
    assert row["p"] == pytest.approx(2 / 2**6)
    assert (row["low"], row["high"]) == pytest.approx((0.01, 0.04))
    assert pd.isna(table.loc["validation accuracy", "p"])


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.01, 0.02, 0.03, 0.02, 0.01, 0.04], "one is better than two by 0.0217"),
        ([-0.01, -0.02, -0.03, -0.02, -0.01, -0.04], "two is better than one by 0.0217"),
        (
            [0.01, -0.02, 0.03, -0.02, 0.01, 0.01],
            "Not shown on these tiles: one is ahead of two by 0.0033",
        ),
        ([0.1, 0.1, 0.11, 0.1, 0.1], "No conclusion is possible"),
    ],
)
def test_verdict_follows_from_the_numbers(differences: list[float], expected: str) -> None:
    assert verdict_of(np.array(differences), Holdouts(0.4, {}, 3)).startswith(expected)


def test_a_clear_verdict_has_a_p_below_a_thousandth_and_not_of_nothing() -> None:
    clear = 0.1 + 0.001 * np.random.default_rng(0).standard_normal(14)
    assert "p < 0.001)" in verdict_of(clear, Holdouts(0.4, {}, 3))


def test_an_arm_against_itself_is_rarely_found_different() -> None:
    """Two arms that differ by noise alone: about 5 % of 300 studies say otherwise."""
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(300):
        verdict = verdict_of(0.01 * rng.standard_normal(8), Holdouts(0.4, {}, 3))
        found += "is better than" in verdict
    # Binomial with p = 0.05: 15 expected, standard deviation 3.8; three of them.
    assert found <= 26


def test_finished_study_holds_its_runs_and_is_kept(tiles: Store, tmp_path: Path) -> None:
    spec = Study(tmp_path / "study", ARMS, (0, 1))
    first = study.train_arms(spec, tiles, device="cpu")
    weights = spec.run_folder("after", 1) / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert study.train_arms(spec, tiles, device="cpu") == first
    assert weights.stat().st_mtime_ns == written
    assert [len(seeds) for seeds in first.values()] == [2, 2]


def test_more_seeds_go_on_from_fewer(tiles: Store, tmp_path: Path) -> None:
    few = study.train_arms(Study(tmp_path / "study", ARMS, (0,)), tiles, device="cpu")
    more = study.train_arms(Study(tmp_path / "study", ARMS, (0, 1)), tiles, device="cpu")
    assert few["before"][0] == more["before"][0]


def test_study_of_something_else_is_refused(tiles: Store, tmp_path: Path) -> None:
    study.train_arms(Study(tmp_path, ARMS, (0,)), tiles, device="cpu")
    others = {name: replace(arm, lr=0.1) for name, arm in ARMS.items()}
    with pytest.raises(KitError, match=r"another study: its arms\.before\.lr is 0\.001, not 0\.1"):
        study.train_arms(Study(tmp_path, others, (0,)), tiles, device="cpu")
    with pytest.raises(KitError, match="another study: its data is"):
        study.train_arms(Study(tmp_path, ARMS, (0,)), replace(tiles, fingerprint="0"), device="cpu")


def test_arms_are_read_from_recipes_and_options_hold_for_both(tmp_path: Path) -> None:
    file = tmp_path / "fast.toml"
    file.write_text("lr = 0.01\nepochs = 7\n")
    base = Recipe(batch_size=32, epochs=9)
    arms = study.parse_arms(["slow=notebook", f"fast={file}"], base, {"batch_size", "data"})
    assert [arm.lr for arm in arms.values()] == [1e-3, 0.01]
    assert [arm.epochs for arm in arms.values()] == [20, 7]
    assert [arm.batch_size for arm in arms.values()] == [32, 32]


@pytest.mark.parametrize(
    ("specifications", "message"),
    [
        (["a=notebook"], "has two arms or more"),
        (["a=notebook", "a=notebook"], "has two arms or more"),
        (["a=notebook", "b=nothing"], "no recipe nothing"),
        (["a=notebook", "b=notebook"], "a and b are one recipe"),
        (["a=FILE/before.toml", "b=FILE/after.toml"], "a and b are one recipe"),
        (["a=notebook", "b=FILE/half.toml"], r"their holdout differs \(a: 0\.3, b: 0\.5\)"),
        (["a=notebook", "b=FILE/folds.toml"], "their folds differs"),
        (["a=FILE/slides.toml", "b=FILE/left.toml"], "their leave_out differs"),
        (["a/x=notebook", "b=compact"], "'a/x' cannot name an arm"),
        (["../../esc=notebook", "b=compact"], "'../../esc' cannot name an arm"),
        (["seed=notebook", "b=compact"], "'seed' cannot name an arm"),
        (["a=notebook", f"{'b' * 65}=compact"], "cannot name an arm"),
        (["a=notebook", "compact"], "--arm compact: an arm is NAME=RECIPE"),
    ],
)
def test_impossible_arms_are_refused(
    tmp_path: Path, specifications: list[str], message: str
) -> None:
    files = {
        "half": "holdout = 0.5",
        "folds": "folds = 2\nfold = 0",
        "slides": 'slides = "slides.csv"',
        "left": 'slides = "slides.csv"\nleave_out = ["one"]',
        "before": 'model = "test_resnet"',
        "after": 'model = "test_resnet"\nbn = "after"\nseed = 5',
    }
    for name, text in files.items():
        (tmp_path / f"{name}.toml").write_text(text)
    read = [one.replace("FILE", str(tmp_path)) for one in specifications]
    with pytest.raises(KitError, match=message):
        study.parse_arms(read, Recipe(), set())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"orientations": 8}, r"arm a \(notebook\): orientations needs the model compact"),
        ({"layer_decay": 0.5}, r"arm a \(notebook\): .*layer_decay need a timm model"),
        ({"bn": "after"}, r"arm b \(backbone\): --bn has no meaning for --model resnet50"),
    ],
)
def test_an_option_that_fits_one_arm_alone_is_refused(
    given: dict[str, object], message: str
) -> None:
    base = replace(Recipe(model="resnet50" if "layer_decay" in given else "compact"), **given)
    other = "backbone" if "bn" in given else "compact"
    with pytest.raises(KitError, match=message):
        study.parse_arms(["a=notebook", f"b={other}"], base, set(given))


@pytest.mark.parametrize(
    ("change", "seeds", "message"),
    [
        (
            {"schedule": "one-cycle", "epochs": 1, "batch_size": 56},
            (0,),
            "arm bad: .*1 steps, too few",
        ),
        ({"batch_size": 64}, (0,), "56 training tiles do not fill a batch of 64"),
        ({"size": 16}, (0,), "an input of 16 pixels is too small"),
        ({"folds": 2}, (0,), "one run per recipe and seed, not 2 folds"),
        ({}, (2**32 - 1, 2**32), "seed = 4294967296: a seed is a number from 0 to"),
        ({"holdout": 0.4}, (0,), "the arms of seed 0 hold out different tiles"),
    ],
)
def test_all_runs_are_checked_before_the_first_is_trained(
    tiles: Store, tmp_path: Path, change: dict[str, object], seeds: tuple[int, ...], message: str
) -> None:
    arms = {"good": RECIPE, "bad": replace(RECIPE, **change)}
    with pytest.raises(KitError, match=message):
        study.train_arms(Study(tmp_path / "out", arms, seeds), tiles, device="cpu")
    assert not (tmp_path / "out").exists()


def test_what_a_run_keeps_is_judged(tiles: Store, tmp_path: Path) -> None:
    """With averaged weights and eight views, which the curve has not."""
    arms = {"kept": replace(RECIPE, ema=0.9, views=8), "last": RECIPE}
    spec = Study(tmp_path, arms, (0,))
    outcomes = study.train_arms(spec, tiles, device="cpu")
    final = runs.read_metrics(spec.run_folder("kept", 0))
    assert outcomes["kept"][0].auc == final["auc"]["estimate"]
    assert outcomes["kept"][0].history[-1].valid_auc != outcomes["kept"][0].auc
    assert outcomes["last"][0].history[-1].valid_auc == pytest.approx(outcomes["last"][0].auc)
    table = study.paired_table(outcomes, "kept", "last").frame
    assert table.loc["validation loss", "kept mean"] == final["log_loss"]


def test_a_figure_that_an_arm_does_not_have_is_left_out(tiles: Store, tmp_path: Path) -> None:
    """A network without BatchNorm has no running variance, and two epochs have no spread."""
    plain = replace(RECIPE, model="test_efficientnet_gn", size=32, epochs=2)
    spec = Study(tmp_path, {"norm": replace(RECIPE, epochs=2), "plain": plain}, (0,))
    outcomes = study.train_arms(spec, tiles, device="cpu")
    assert "smallest running variance" in study.run_figures(outcomes["norm"][0])
    table = study.paired_table(outcomes, "norm", "plain").frame
    assert table.index[0] == study.PRIMARY
    assert {"smallest running variance", "spread of validation accuracy"}.isdisjoint(table.index)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("history.jsonl", "", "is empty. Remove .*before-0, and the same command trains"),
        ("metrics.json", "{}", "metrics.json.*. Remove"),
        ("metrics.json", "[]", "metrics.json.*. Remove"),
    ],
)
def test_a_finished_run_that_says_nothing_is_named(
    tiles: Store, tmp_path: Path, file: str, content: str, message: str
) -> None:
    spec = Study(tmp_path, {"before": replace(RECIPE, epochs=1)}, (0,))
    study.train_arms(spec, tiles, device="cpu")
    (spec.run_folder("before", 0) / file).write_text(content)
    with pytest.raises(KitError, match=message):
        study.train_arms(spec, tiles, device="cpu")


def test_a_figure_that_is_no_number_ends_a_study_at_its_first_run(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"the validation loss of .* is inf: that run diverged"):
        study.check_outcome(replace(outcome(0.5), log_loss=float("inf")), tmp_path)


@pytest.mark.parametrize("key", ["kit", "torch", "precision", "data"])
def test_a_study_of_another_version_or_precision_is_refused(
    tiles: Store, tmp_path: Path, key: str
) -> None:
    spec = Study(tmp_path, {"before": replace(RECIPE, epochs=1)}, (0,))
    study.train_arms(spec, tiles, device="cpu")
    path = tmp_path / "study.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {key: "another"}))
    with pytest.raises(KitError, match=f"holds another study: its {key} is 'another', not"):
        study.train_arms(spec, tiles, device="cpu")
    # As the kit's version 0.4.0 wrote it.
    path.write_text(json.dumps({key: plain[key] for key in ("arms", "data")}))
    with pytest.raises(KitError, match=r"version 0\.4 or older: go on with that version"):
        study.train_arms(spec, tiles, device="cpu")
    path.write_text(path.read_text()[:20])
    with pytest.raises(KitError, match=r"study\.json is not the record of a study: .*Choose"):
        study.train_arms(spec, tiles, device="cpu")


@pytest.mark.parametrize(
    ("key", "value"), [("kit", "0.3.0"), ("torch", "1.0"), ("precision", "float16")]
)
def test_a_run_that_a_study_would_not_train_is_named(
    tiles: Store, tmp_path: Path, key: str, value: str
) -> None:
    """Finished runs among them, which no one would resume; another device alone is no reason."""
    spec = Study(tmp_path, {"before": replace(RECIPE, epochs=1)}, (0,))
    study.train_arms(spec, tiles, device="cpu")
    path = spec.run_folder("before", 0) / "config.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {"device": "cuda:1"}))
    study.train_arms(spec, tiles, device="cpu")
    path.write_text(json.dumps(plain | {key: value}))
    message = f"before-0 is not the run that this study would train: {key} was {value} and is"
    with pytest.raises(KitError, match=message):
        study.train_arms(spec, tiles, device="cpu")


def test_slides_are_known_by_what_their_table_says(tiles: Store, tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    rows = [f"{tile},S{number % 7}\n" for number, tile in enumerate(tiles.train.ids)]
    table.write_text("id,slide\n" + "".join(rows))
    recipe = replace(RECIPE, epochs=1, slides=table)
    spec = Study(tmp_path / "out", {"before": recipe}, (0,))
    study.train_arms(spec, tiles, device="cpu")
    table.write_text("id,slide\n" + "".join(rows[::-1]))
    study.train_arms(spec, tiles, device="cpu")
    table.write_text(table.read_text().replace("S3", "S4"))
    with pytest.raises(KitError, match="holds another study: its slides is"):
        study.train_arms(spec, tiles, device="cpu")


@pytest.mark.parametrize(
    ("recipe", "momenta", "message"),
    [
        (replace(RECIPE, ema=0.9), MOMENTA, r"momentum does not matter .*\(--ema 0\.9\)"),
        (Recipe(model="test_efficientnet_gn", size=32), MOMENTA, "has no BatchNorm"),
        (RECIPE, (0.9, 0.90000001), "differ in their first six digits"),
        (RECIPE, (0.9,), "two or more momenta"),
        (replace(RECIPE, folds=2), MOMENTA, "not 2 folds"),
    ],
)
def test_a_sweep_that_could_show_nothing_is_refused(
    tiles: Store, tmp_path: Path, recipe: Recipe, momenta: tuple[float, ...], message: str
) -> None:
    spec = MomentumSweep(tmp_path / "out", recipe, momenta, (0,))
    with pytest.raises(KitError, match=message):
        study.sweep_momenta(spec, tiles, device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_sweep_judges_what_the_recipe_predicts_with(tiles: Store, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2, views=8)
    spec = MomentumSweep(tmp_path / "swept", recipe, (0.99, 0.5), (0,))
    swept = study.sweep_momenta(spec, tiles, device="cpu")
    alone = study.train_momenta(replace(spec, folder=tmp_path / "alone"), tiles, device="cpu")
    for name in ("0.99", "0.5"):
        assert without_clocks(swept[name][0]) == without_clocks(alone[name][0])
        assert swept[name][0].auc != swept[name][0].history[-1].valid_auc
    path = tmp_path / "swept" / "runs" / "sweep-0" / "outcomes.json"
    path.write_text(path.read_text()[:99])
    with pytest.raises(KitError, match=r"outcomes\.json is not a sweep.s outcomes: .*Remove .*0"):
        study.sweep_momenta(spec, tiles, device="cpu")


def test_the_notebooks_differences_are_told_of_its_own_momenta() -> None:
    swept = {name: [outcome(0.5, 0.6, 0.7)] for name in ("0.99", "0.6", "0.5")}
    assert study.sweep_tables(swept).keys() == {"table2", "notebook"}
    del swept["0.99"]
    assert study.sweep_tables(swept).keys() == {"table2"}


def test_a_backbone_has_no_arms_or_momenta_to_choose(tiles: Store, tmp_path: Path) -> None:
    """Its two arms, and its runs of different momenta, would be the same run."""
    backbone = Recipe(model="test_resnet")
    with pytest.raises(KitError, match=r"is fixed in test_resnet: name two recipes"):
        study.parse_arms([], backbone, set())
    with pytest.raises(KitError, match="the arms differ in --bn: leave it out"):
        study.parse_arms([], Recipe(bn="after"), {"bn"})
    with pytest.raises(KitError, match=r"has a momentum of its own: leave out --independent"):
        study.train_momenta(MomentumSweep(tmp_path / "alone", backbone, MOMENTA, (0,)), tiles)
    assert not (tmp_path / "alone").exists()


def test_predictions_are_pooled_and_compared(tiles: Store, tmp_path: Path) -> None:
    spec = Study(tmp_path, ARMS, (0, 1))
    study.train_arms(spec, tiles, device="cpu")
    pooled = study.pooled_predictions(spec)
    assert len(pooled) == 2 * 24
    table = study.delong_table(pooled, "before", "after").frame
    valid = runs.read_valid(spec.run_folder("before", 1))
    assert table.loc[1, "before AUC"] == stats.auc(valid["label"], valid["probability"])
    slides = {tile: f"S{number % 6}" for number, tile in enumerate(tiles.train.ids)}
    table = study.pooled_table(pooled, "before", "after", slides).frame
    assert table["units"].tolist()[0] == 48
    assert table["units"].tolist()[2] == 6
    assert len(set(table["difference"])) == 1


def test_sweep_is_the_independent_runs_bit_for_bit(tiles: Store, tmp_path: Path) -> None:
    """The same buffers and the same figures from one training as from one for each momentum."""
    spec = MomentumSweep(tmp_path / "sweep", RECIPE, MOMENTA, (0, 1))
    swept = study.sweep_momenta(spec, tiles, device="cpu")
    alone = study.train_momenta(replace(spec, folder=tmp_path / "alone"), tiles, device="cpu")
    for name, seeds in alone.items():
        for one, other in zip(swept[name], seeds, strict=True):
            assert without_clocks(one) == without_clocks(other)
    statistics = load_file(tmp_path / "sweep" / "runs" / "sweep-1" / "statistics.safetensors")
    for name in alone:
        weights = load_file(tmp_path / "alone" / "runs" / f"{name}-1" / "model.safetensors")
        for key, tensor in weights.items():
            if "running" in key:
                assert torch.equal(statistics[f"{name}/{key}"], tensor)
    table = study.momentum_table(swept).frame
    assert table.index.tolist() == ["0.99", "0.75", "0.5", study.RECALIBRATED]
    assert len(set(table["training accuracy"])) == 1


@pytest.mark.parametrize(
    ("seeds", "gain", "expected"),
    [
        (6, 0.05, "No conclusion is possible from 3 comparisons"),
        (7, 0.05, r"in validation accuracy on these tiles, 0\.5 gains .*, 0\.25 gains "),
        (7, 0.0, "Not shown: 3 comparisons with momentum 0.99"),
    ],
)
def test_verdict_on_momentum_is_corrected_for_its_comparisons(
    seeds: int, gain: float, expected: str
) -> None:
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.standard_normal((4, seeds))
    gains = {"0.99": 0.0, "0.75": 0.0, "0.5": gain, "0.25": gain}
    swept = {
        name: [outcome(0.7, 0.8 + mean + jitter) for jitter in row]
        for (name, mean), row in zip(gains.items(), noise, strict=True)
    }
    assert re.search(expected, study.momentum_verdict(swept))


def test_bank_leaves_the_models_own_statistics_alone(tiles: Store, tmp_path: Path) -> None:
    run = Run(RECIPE, tiles, tmp_path / "run", device="cpu")
    bank = StatisticsBank(run.state.model, [0.5])
    list(run.train(progress=False))
    own = {name: tensor.clone() for name, tensor in run.state.model.state_dict().items()}
    with bank.use(0.5):
        changed = run.state.model.state_dict()
        assert not torch.equal(
            changed["features.0.norm.running_var"], own["features.0.norm.running_var"]
        )
    for name, tensor in run.state.model.state_dict().items():
        assert torch.equal(tensor, own[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 3), (5, 3, 4, 6)])
def test_bank_follows_as_pytorch_does_bit_for_bit(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Held against PyTorch's own update, called once for each momentum and batch."""
    norm = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(3, momentum=0.01)
    bank = StatisticsBank(torch.nn.Sequential(norm), MOMENTA)
    alone = {share: (torch.zeros(3), torch.ones(3)) for share in (0.01, 0.25, 0.5)}
    torch.manual_seed(0)
    for _ in range(20):
        batch = (3 * torch.randn(shape) + 1).to(dtype)
        bank.model(batch)
        for share, pair in alone.items():
            torch.batch_norm_update_stats(batch, *pair, share)
    for one, pair in zip(MOMENTA, alone.values(), strict=True):
        assert all(map(torch.equal, bank.statistics(one)["0"], pair))
    assert all(map(torch.equal, (norm.running_mean, norm.running_var), alone[0.01]))


@pytest.mark.parametrize("batches", [None, 2])
def test_recalibrated_statistics_are_those_of_all_inputs(
    tiles: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int | None
) -> None:
    """The first norm's input depends on no other norm: mean and variance over all tiles at once."""
    monkeypatch.setattr(loaders, "EVAL_BATCH_SIZE", 8)
    recipe = replace(RECIPE, precision="fp32")
    run = Run(recipe, tiles, tmp_path / "run", device="cpu")
    list(run.train(progress=False))
    run.recalibrate(batches)
    loaded = [images for images, _ in run.loaders.plain_train]
    assert len(loaded) > 2
    images = torch.cat(loaded[:batches])
    model = run.state.model
    inputs = model.features[0].layer(run.state.normalize(images)).double()
    norm = model.features[0].norm
    # PyTorch sums the 50,000 values of a channel one after another in single precision.
    torch.testing.assert_close(
        norm.running_mean.double(), inputs.mean((0, 2, 3)), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        norm.running_var.double(), inputs.var((0, 2, 3)), atol=1e-5, rtol=1e-5
    )
    assert norm.momentum == pytest.approx(0.01)


def test_killed_study_ends_with_the_same_tables(tiles: Store, tmp_path: Path) -> None:
    options = ["--data", tiles.folder.parent, "--device", "cpu", "--seeds", 3, "--epochs", 3]
    options += ["--batch-size", 8, "--widths", 4, 6, 8, "--out"]
    run_kernel("compare", *options, tmp_path / "whole")
    killed = tmp_path / "killed"
    process = start_kernel("compare", *options, killed, log=tmp_path)
    while process.is_alive() and not list(killed.glob("runs/after-1/last.pt")):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (killed / "table1.csv").exists()
    run_kernel("compare", *options, killed)
    for name in ("table1.csv", "delong.csv", "pooled.csv", "verdict.txt"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert pd.read_csv(killed / "table1.csv")["n"].eq(3).all()
    assert json.loads((killed / "study.json").read_text())["arms"]["after"]["bn"] == "after"
