"""Predictions of the test tiles by runs, in a submission that remembers how it was made.

FILE         the submission
FILE.json    which models made it, how, and the SHA-256 of the file that they made
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from kit import kaggle
from kit.base import Floats, KitError, Views, output_file, parse_recipe, read_json, write_json
from kit.data import Store
from kit.runs.ensemble import Ensemble, read_ensemble
from kit.runs.folder import finished_file, read_config
from kit.runs.folds import members, require_distinct
from kit.runs.trained import load


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How test tiles are predicted, see `TrainedModel.predict`."""

    views: Views | None = None
    adapt_bn: bool = False
    calibrate: bool = False
    hard: bool = False
    """0 or 1 in place of probabilities: whether their weighted mean is above 1/2. A mean of ranks
    has no such threshold."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """How a submission was made.

    Attributes
    ----------
    sha256
        Of the file.
    data
        Fingerprint of the packed tiles.
    models
        The weight in the mean of each model, by the SHA-256 of its own weights.
    mean
        Of probabilities or of ranks.
    by, manner
        What predicted, and how, in a few words each.
    standins
        Runs that were trained on the synthetic stand-in.
    """

    sha256: str
    data: str
    models: dict[str, float]
    mean: str
    by: str
    manner: str
    standins: tuple[str, ...] = ()


def average(folders: Sequence[Path]) -> Ensemble:
    """Return the plain mean of runs.

    Raises
    ------
    KitError
        If two of them are the same folder, or one is part of another.
    """
    require_distinct(folders)
    return Ensemble({str(folder): 1 / len(folders) for folder in folders}, "probability")


def read_source(path: Path) -> Ensemble:
    """Return what predicts: a run, a cross-validation, or an ensemble by its file or folder.

    Raises
    ------
    KitError
        If it is none of them.
    """
    if not path.exists():
        raise KitError(f"there is no {path}: name a run, a cross-validation or an ensemble.json")
    if path.is_dir():
        file = path / "ensemble.json"
        return read_ensemble(file) if file.is_file() else average([path])
    chosen = read_ensemble(path) if path.is_file() else average([path])
    require_distinct([Path(run) for run in chosen.weights])
    return chosen


def trained_on_standin(ensemble: Ensemble) -> tuple[str, ...]:
    """Return those of an ensemble's runs that were trained on the synthetic stand-in."""
    return tuple(
        run
        for run in ensemble.weights
        if any(read_config(member)["data"].get("is_standin") for member in members(Path(run)))
    )


def standin_notice(standins: Sequence[str]) -> str:
    """Say loudly that runs were trained on the synthetic stand-in."""
    return (
        f"*** STAND-IN: trained on synthetic tiles: {', '.join(standins)}. "
        "What they predict says nothing of the competition. ***"
    )


def predict_each(
    folders: Sequence[Path], tiles: Store, manner: Manner, *, device: str = "auto"
) -> list[Floats]:
    """Return the probability of tumour for each test tile, (tiles,), by each of several models.

    All models are loaded before the first one predicts.

    Raises
    ------
    KitError
        If a folder holds no finished run, or its model cannot predict in this manner.
    """
    return [
        model.predict(
            tiles.test,
            views=manner.views,
            adapt_bn=manner.adapt_bn,
            calibrate=manner.calibrate,
        )
        for model in [load(folder, device=device) for folder in folders]
    ]


def predict_submission(
    path: Path,
    ensemble: Ensemble,
    tiles: Store,
    manner: Manner,
    *,
    device: str = "auto",
    predicted: Mapping[Path, Floats] | None = None,
) -> tuple[Floats, Submission]:
    """Predict the test tiles and write a valid submission.

    Parameters
    ----------
    predicted
        What `predict_each` gives, where it is known already, by each model's folder.

    Returns
    -------
    probabilities
        (tiles,), or labels if the manner is a hard one.
    submission
        What FILE.json holds.
    """
    # Better known now than after an hour of predicting.
    output_file(path)
    views: set[int] = set()
    predictions = []
    for run in ensemble.weights:
        models = members(Path(run))
        views |= {manner.views or _views(model) for model in models}
        if predicted is None:
            by_model = predict_each(models, tiles, manner, device=device)
        else:
            by_model = [predicted[model] for model in models]
        predictions.append(np.mean(by_model, axis=0))
    chosen = replace(ensemble, mean="probability") if manner.hard else ensemble
    values = chosen.combine(np.stack(predictions))
    if manner.hard:
        values = (values > 0.5).astype(float)
    ids = tiles.test.ids.tolist()
    kaggle.write_submission(path, ids, values)
    kaggle.validate_submission(path, ids)
    return values, _remember(
        path, ensemble, tiles, by=_describe_models(chosen), manner=_describe_manner(manner, views)
    )


def read_submission(path: Path) -> Submission | None:
    """Return how a submission was made, if that is known of the file as it is now."""
    try:
        made = read_json(_record(path), Submission, what="how a submission was made")
    except KitError:
        return None
    return made if path.is_file() and made.sha256 == _sha256(path) else None


def find_submissions(source: Path, ensemble: Ensemble, tiles: Store) -> list[Path]:
    """Return where the predictions of these models for these tiles lie already.

    Looked for are submission.csv in the source's folder and in the working folder. Files with the
    same content count once. The one in the source's folder may be of a version of the kit that
    kept no record.
    """
    own, elsewhere = submission_place(source), Path("submission.csv")
    models = model_weights(ensemble)
    found: dict[str, Path] = {}
    for path in (own, elsewhere):
        made = read_submission(path)
        fits = made is not None and (made.models, made.mean, made.data) == (
            models,
            ensemble.mean,
            tiles.fingerprint,
        )
        unknown = made is None and path == own and path.is_file() and not _record(path).exists()
        if fits or unknown:
            found.setdefault(_sha256(path), path)
    return list(found.values())


def submission_place(source: Path) -> Path:
    """Return where the submission of a run, a cross-validation or an ensemble lies."""
    return (source if source.is_dir() else source.parent) / "submission.csv"


def model_weights(ensemble: Ensemble) -> dict[str, float]:
    """Return the weight of each model by the SHA-256 of its own weights, wherever it lies."""
    weights: dict[str, float] = {}
    for run, weight in ensemble.weights.items():
        models = members(Path(run))
        for model in models:
            digest = _sha256(finished_file(model, "model.safetensors"))
            weights[digest] = round(weights.get(digest, 0) + weight / len(models), 9)
    return weights


def _remember(path: Path, ensemble: Ensemble, tiles: Store, *, by: str, manner: str) -> Submission:
    made = Submission(
        sha256=_sha256(path) if path.is_file() else "",
        data=tiles.fingerprint,
        models=model_weights(ensemble),
        mean=ensemble.mean,
        by=by,
        manner=manner,
        standins=trained_on_standin(ensemble),
    )
    # A pipe or a device is not there to be read again.
    if path.is_file():
        write_json(_record(path), asdict(made))
    return made


def _views(folder: Path) -> int:
    """Return the number of views that a run's recipe asks for."""
    recipe = parse_recipe(read_config(folder)["recipe"], source=f"{folder}/config.json")
    return recipe.views


def _describe_models(ensemble: Ensemble) -> str:
    runs = list(ensemble.weights)
    models = sum(len(members(Path(run))) for run in runs)
    of = f" ({models} models)" if models > len(runs) else ""
    if len(runs) == 1:
        return f"{runs[0]}{of}"
    shares = [f"{run} ({weight:.2f})" for run, weight in ensemble.weights.items()]
    ranks = "" if ensemble.mean == "probability" else " of ranks"
    return f"the mean{ranks} of {', '.join(shares)}{of}"


def _describe_manner(manner: Manner, views: set[int]) -> str:
    words = [" or ".join(map(str, sorted(views))) + (" view" if views == {1} else " views")]
    words += ["BatchNorm adapted"] if manner.adapt_bn else []
    words += ["calibrated"] if manner.calibrate else []
    words += ["hard labels"] if manner.hard else []
    return ", ".join(words)


def _record(path: Path) -> Path:
    # Beside the file itself, where a link or a redirection leads to it.
    there = path.resolve()
    return there.with_name(f"{there.name}.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
