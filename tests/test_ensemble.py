"""Ensembles chosen on held-out predictions, and cross-validated runs."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_kernel, train_folds

from kit import runs, stats
from kit.base import KitError, Recipe
from kit.data import Store
from kit.runs import ensemble

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1], 500)
SIGNAL = 1.2 * LABELS + RNG.normal(size=1000)


def predictions(*noises: float) -> np.ndarray:
    """Return runs that see the same signal, each through its own noise, as probabilities."""
    logits = [SIGNAL + noise * RNG.normal(size=1000) for noise in noises]
    return 1 / (1 + np.exp(-np.array(logits)))


@pytest.mark.parametrize("mean", ["probability", "rank"])
def test_selection_is_the_best_of_all_pairs_for_two_draws(
    monkeypatch: pytest.MonkeyPatch, mean: ensemble.Mean
) -> None:
    """Greedy: the best run first, then the best companion of it, found here by trying all."""
    monkeypatch.setattr(ensemble, "MAX_DRAWS", 2)
    shown = predictions(1.0, 1.1, 1.2, 3.0)
    weights = ensemble.select(LABELS, shown, mean)
    scores = shown if mean == "probability" else shown.argsort(1).argsort(1) / 1000
    first = max(range(4), key=lambda run: stats.auc(LABELS, shown[run]))
    second = max(range(4), key=lambda run: stats.auc(LABELS, scores[first] + scores[run]))
    assert second != first
    assert weights.tolist() == [0.5 * (run in (first, second)) for run in range(4)]


def test_a_run_that_adds_nothing_gets_no_weight() -> None:
    shown = predictions(0.0, 20.0)
    assert ensemble.select(LABELS, shown, "probability").tolist() == [1.0, 0.0]
    chosen = runs.choose_ensemble([Path("a"), Path("b")], LABELS, shown, "probability")
    assert chosen.weights == {"a": 1.0}


def test_gain_of_runs_with_noise_of_their_own_is_seen() -> None:
    judged = runs.judge_gain(LABELS, predictions(1, 1, 1, 1, 1), "probability")
    assert judged.auc.estimate > judged.best_run.estimate
    assert judged.comparison.p_value is not None
    assert judged.comparison.p_value < 0.05


def unequal_slides(shares: dict[str, tuple[int, float]]) -> tuple[np.ndarray, ...]:
    """Return labels, three runs' probabilities and the slides of so many tiles, of such shares."""
    rng = np.random.default_rng(0)
    slides = np.concatenate([np.full(size, slide) for slide, (size, _) in shares.items()])
    chance = np.concatenate([np.full(size, share) for size, share in shares.values()])
    labels = (rng.random(len(slides)) < chance).astype(int)
    signal = 2.2 * labels + rng.normal(size=len(slides))
    logits = [signal + 0.3 * rng.normal(size=len(slides)) for _ in range(3)]
    return labels, 1 / (1 + np.exp(-np.array(logits))), slides


SIX = {
    "A": (600, 0.9),
    "B": (300, 0.1),
    "C": (150, 0.8),
    "D": (60, 0.05),
    "E": (30, 0.5),
    "F": (12, 0.3),
}
THREE = {"A": (200, 0.9), "B": (300, 0.1), "C": (150, 0.0)}


@pytest.mark.parametrize("mean", ["probability", "rank"])
@pytest.mark.parametrize("shares", [SIX, THREE])
def test_unequal_slides_are_judged_as_one_leaderboard_would(
    mean: ensemble.Mean, shares: dict[str, tuple[int, float]]
) -> None:
    """Parts of different shares of positive tiles are ranked together, not each by itself."""
    labels, shown, slides = unequal_slides(shares)
    judged = runs.judge_gain(labels, shown, mean, slides=slides)
    assert judged.auc.estimate == pytest.approx(stats.auc(labels, shown.mean(axis=0)), abs=0.005)
    singles = [stats.auc(labels, one) for one in shown]
    assert min(singles) - 0.005 < judged.best_run.estimate < max(singles) + 0.005
    # Slides are resampled, so few of them say less than as many tiles.
    assert judged.auc.low is not None and judged.comparison.p_value is not None
    by_tile = runs.judge_gain(labels, shown, mean)
    assert by_tile.auc.low is not None
    if shares is THREE:
        assert judged.auc.low < by_tile.auc.low


@pytest.mark.parametrize(
    "shares", [{"A": (40, 0.5)}, {"A": (40, 1.0), "B": (40, 0.0)}, {"A": (40, 1.0), "B": (40, 0.1)}]
)
def test_too_few_slides_to_judge_by_are_a_message(shares: dict[str, tuple[int, float]]) -> None:
    labels, shown, slides = unequal_slides(shares)
    with pytest.raises(KitError, match=r"too few slides hold one of the classes .*--slides"):
        runs.judge_gain(labels, shown, "probability", slides=slides)


def test_too_few_tiles_to_judge_by_are_a_message() -> None:
    with pytest.raises(KitError, match="too few tiles hold one of the classes"):
        runs.judge_gain(np.array([0, 0, 0, 1]), RNG.random((2, 4)), "probability")


def test_gain_among_copies_of_one_run_is_none() -> None:
    judged = runs.judge_gain(LABELS, np.repeat(predictions(1.0), 5, axis=0), "rank")
    assert judged.comparison.difference.estimate == 0


def test_choosing_among_many_runs_of_pure_noise_gains_nothing_that_it_claims() -> None:
    """Chosen and judged on the same tiles, noise would look like signal."""
    noise = RNG.uniform(size=(40, 1000))
    flattering = stats.auc(LABELS, ensemble.select(LABELS, noise, "probability") @ noise)
    judged = runs.judge_gain(LABELS, noise, "probability")
    assert flattering > 0.55
    assert judged.auc.low is not None
    assert judged.auc.low < 0.5


def test_ensemble_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = runs.Ensemble({"runs/a": 0.25, "runs/b": 0.75}, "rank")
    assert runs.read_ensemble(runs.write_ensemble(tmp_path, written, {})) == written
    shown = predictions(1.0, 2.0)
    ranks = np.stack([pd.Series(one).rank() / 1000 for one in shown])
    np.testing.assert_allclose(written.combine(shown), 0.25 * ranks[0] + 0.75 * ranks[1])


@pytest.mark.parametrize("text", ["", "[]", '{"weights": {}, "mean": "rank"}', '{"weights": 1}'])
def test_another_file_is_no_ensemble(tmp_path: Path, text: str) -> None:
    (tmp_path / "ensemble.json").write_text(text)
    with pytest.raises(KitError, match="is not an ensemble"):
        runs.read_ensemble(tmp_path / "ensemble.json")


@pytest.mark.parametrize(
    "weights", ["{}", '{"a": 0.5}', '{"a": 1.5, "b": -0.5}', '{"a": NaN}', '{"a": "1"}', '{"a": 0}']
)
def test_an_ensemble_of_other_weights_is_refused(tmp_path: Path, weights: str) -> None:
    (tmp_path / "ensemble.json").write_text(f'{{"weights": {weights}, "mean": "rank"}}')
    with pytest.raises(KitError, match="is not an ensemble"):
        runs.read_ensemble(tmp_path / "ensemble.json")


def test_cross_validation_ensemble_and_prediction(tiles: Store, tmp_path: Path) -> None:
    """From --folds to a submission, as a user would type it."""
    data, one, two = str(tiles.folder.parent), str(tmp_path / "one"), str(tmp_path / "two")
    train = ("train", "--data", data, "--epochs", "1", "--batch-size", "8", "--folds", "3")
    said = run_kernel(*train, "--out", one)
    assert "fold 3 of 3" in said
    assert "out-of-fold AUC" in said
    assert said.count("next: ") == 1
    train_folds(Recipe(epochs=1, batch_size=8, folds=3, bn="after"), tiles, Path(two))
    table = runs.read_valid(Path(one))
    assert sorted(table["id"]) == sorted(tiles.train.ids)
    folds = [set(runs.read_valid(Path(one) / f"fold-{fold}")["id"]) for fold in range(3)]
    assert all(not first & second for first, second in itertools.combinations(folds, 2))

    before = table["probability"].tolist()
    (Path(one) / "fold-1" / "metrics.json").unlink()
    (Path(one) / "metrics.json").unlink()
    with pytest.raises(KitError, match="cross-validation that is not finished"):
        runs.members(Path(one))
    run_kernel(*train, "--out", one, "--resume")
    assert runs.read_valid(Path(one))["probability"].tolist() == before

    said = run_kernel("ensemble", one, two, "--out", str(tmp_path / "both"))
    assert "chosen and judged on different tiles" in said
    tables = [runs.read_valid(Path(folder)).sort_values("id") for folder in (one, two)]
    together = np.mean([table["probability"] for table in tables], axis=0)
    assert f"{stats.auc(tables[0]['label'], together):.4f}  all 2, equally weighted" in said
    rows = "".join(f"{tile},S\n" for tile in tiles.train.ids)
    (tmp_path / "slides.csv").write_text("id,slide\n" + rows)
    alone = ("--slides", str(tmp_path / "slides.csv"), "--out", str(tmp_path / "alone"))
    assert "is not known: too few slides" in run_kernel("ensemble", one, two, *alone)
    assert runs.read_ensemble(tmp_path / "alone" / "ensemble.json").weights
    file, out = tmp_path / "both" / "ensemble.json", tmp_path / "submission.csv"
    run_kernel("predict", "--ensemble", str(file), "--data", data, "--out", str(out))
    submitted = pd.read_csv(out)["label"].to_numpy()
    chosen = runs.read_ensemble(file)
    expected = [
        np.mean([runs.load(fold).predict(tiles.test) for fold in runs.members(Path(run))], axis=0)
        for run in chosen.weights
    ]
    np.testing.assert_allclose(submitted, chosen.combine(np.array(expected)), atol=1e-9)


def test_runs_held_out_from_other_tiles_do_not_go_together(tiles: Store, tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        ids = sorted(RNG.choice(tiles.train.ids, 30, replace=False))
        table = pd.DataFrame({"id": ids, "label": 0, "probability": 0.5})
        table.to_csv(folder / "valid.csv", index=False)
    with pytest.raises(KitError, match="was not validated on the tiles of"):
        runs.read_predictions([tmp_path / "0", tmp_path / "1"])
