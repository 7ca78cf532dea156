"""Ensembles chosen on held-out predictions, and cross-validated runs."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import competition_files, run_kernel, write_zip

from kit import runs, stats
from kit.base import KitError
from kit.data import Store, pack_tiles
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
    judged = ensemble.gain(LABELS, predictions(1, 1, 1, 1, 1), "probability")
    assert judged.auc.estimate > judged.best_run.estimate
    assert judged.comparison.p_value is not None
    assert judged.comparison.p_value < 0.05


def test_gain_among_copies_of_one_run_is_none() -> None:
    judged = ensemble.gain(LABELS, np.repeat(predictions(1.0), 5, axis=0), "rank")
    assert judged.comparison.difference.estimate == 0


def test_choosing_among_many_runs_of_pure_noise_gains_nothing_that_it_claims() -> None:
    """Chosen and judged on the same tiles, noise would look like signal."""
    noise = RNG.uniform(size=(40, 1000))
    flattering = stats.auc(LABELS, ensemble.select(LABELS, noise, "probability") @ noise)
    judged = ensemble.gain(LABELS, noise, "probability")
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


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Store:
    data = tmp_path_factory.mktemp("data")
    write_zip(data, competition_files(train=80, test=10))
    return pack_tiles(data)


def test_cross_validation_ensemble_and_prediction(tiles: Store, tmp_path: Path) -> None:
    """From --folds to a submission, as a user would type it."""
    data, one, two = str(tiles.folder.parent), str(tmp_path / "one"), str(tmp_path / "two")
    train = ("train", "--data", data, "--epochs", "1", "--batch-size", "8", "--folds", "3")
    said = run_kernel(*train, "--out", one)
    assert "fold 2, 3 of 3" in said
    assert "out-of-fold AUC" in said
    run_kernel(*train, "--out", two, "--bn", "after")
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
    assert f"{stats.auc(tables[0]['label'], together):.4f}  all 2, weighted alike" in said
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
