"""What a search found, and the files that tell it.

OUT/trials.csv       the finished trials
OUT/importance.json  what decided
OUT/best.toml        the best trial's recipe
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import tomli_w
from optuna import Study
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from kit import runs, stats
from kit.base import FolderLock, KitError, Recipe, recipe_values, write_text
from kit.data import Store, read_recipe_slides
from kit.study.figures import read_outcome
from kit.study.search.space import Space
from kit.study.search.trials import FINISHED, count_trials, run_folders, trial_folder, trial_name

IMPORTANCE_TRIALS = 10
"""Trials that must finish before importances are computed."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    recipe
        The best trial's, as best.toml holds it.
    auc
        Validation AUC of what the best trial keeps: optimistic, as it is the highest of many on
        one holdout.
    median
        Validation AUC of the median finished trial: what none was picked for.
    folder
        The best trial's, on the machine that trained it.
    runs
        The run folders in it, one per seed.
    trials
        The run folders of each trial that was trained to the end, one per seed.
    importances
        Share of each parameter in what sets the best quarter of the finished trials apart;
        they sum to 1. Empty where fewer than `IMPORTANCE_TRIALS` finished.
    complete, pruned
        Trials that were trained to the end, and trials that were stopped.
    """

    recipe: Recipe
    auc: float
    median: float
    folder: Path
    runs: tuple[Path, ...]
    trials: tuple[tuple[Path, ...], ...]
    importances: dict[str, float]
    complete: int
    pruned: int


def conclude(study: Study, space: Space, out: Path, seeds: int) -> SearchResult:
    """Write what the search has found so far, and return it."""
    finished = study.get_trials(deepcopy=False, states=FINISHED)
    complete = count_trials(study, TrialState.COMPLETE)
    if not complete:
        reasons = [str(trial.user_attrs.get("reason", "pruned")) for trial in finished]
        raise KitError(f"none of {len(finished)} trials reached its last epoch: {reasons[0]}")
    best = study.best_trial
    recipe = space.suggest(FixedTrial(best.params))
    ended = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    result = SearchResult(
        recipe=recipe,
        auc=study.best_value,
        median=float(np.median([trial.value for trial in ended if trial.value is not None])),
        folder=trial_folder(out, best),
        runs=tuple(run_folders(out, best, recipe, seeds)),
        trials=tuple(tuple(run_folders(out, trial, recipe, seeds)) for trial in ended),
        importances=_importances(study) if complete >= IMPORTANCE_TRIALS else {},
        complete=complete,
        pruned=len(finished) - complete,
    )
    # Workers of one folder end at the same moment.
    with FolderLock(out, wait=True):
        write_text(out / "trials.csv", _table(finished).to_csv(index=False, lineterminator="\n"))
        write_text(out / "importance.json", _importance_json(result))
        write_text(out / "best.toml", _best_toml(result, out))
    return result


def picked_sentence(result: SearchResult, store: Store) -> str:
    """Say what the best trial has on tiles, or with seeds, that did not pick it.

    Of one seed the tiles are parted in five, and each part is judged on the trial that is best on
    the others (`runs.judge_best`). Of several seeds each judges the trial that is best with the
    others.
    """
    if len(result.trials) < 2:
        return "One finished trial leaves nothing to pick."
    if away := [one for trial in result.trials for one in trial if not one.exists()]:
        return f"What it has where nothing picked it is not known: {away[0]} is not here."
    if len(result.runs) > 1:
        aucs = np.array([[read_outcome(one).auc for one in trial] for trial in result.trials])
        gains = stats.repicked_gain([*aucs], np.zeros(aucs.shape[1]))
        return f"Picked by other seeds than it is judged with, the best has {gains.mean():.4f}."
    try:
        found = _repicked_auc([trial[0] for trial in result.trials], result.recipe, store)
    except KitError as error:
        # Such as from a holdout of few slides; the search itself is not touched by that.
        return f"What it has on tiles that did not pick it is not known: {error}."
    where = "slides" if result.recipe.slides else "tiles"
    return f"Picked on other {where} than it is judged on, the best has {found}."


def _repicked_auc(trials: list[Path], recipe: Recipe, store: Store) -> stats.Interval:
    tiles, predictions = runs.read_predictions(trials)
    slides = None
    if recipe.slides is not None:
        known = read_recipe_slides(recipe.slides, store)
        by_id = dict(zip(store.train.ids.tolist(), known.tolist(), strict=True))
        slides = tiles["id"].map(by_id).to_numpy(str)
    return runs.judge_best(tiles["label"].to_numpy(), predictions, slides=slides)


def _importances(study: Study) -> dict[str, float]:
    """Return each parameter's share by PED-ANOVA (Watanabe et al., IJCAI 2023)."""
    # Optuna's default, the best tenth, would be a trial or two in a search of this size.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)
    with warnings.catch_warnings():
        # It warns of parameters that fewer than two trials have: they get no share.
        warnings.simplefilter("ignore", UserWarning)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def _table(trials: list[FrozenTrial]) -> pd.DataFrame:
    """Return a row per finished trial.

    The AUC is that of what it keeps; of a pruned one, that of its last epoch's curve.
    """
    parameters = sorted({name for trial in trials for name in trial.params})
    rows = [
        {
            "trial": trial_name(trial),
            "state": trial.state.name.lower(),
            "auc": trial.value,
            "epochs": trial.last_step or 0,
            **{name: trial.params.get(name) for name in parameters},
            "reason": trial.user_attrs.get("reason"),
        }
        for trial in trials
    ]
    return pd.DataFrame(rows, dtype=object)


def _importance_json(result: SearchResult) -> str:
    values = {
        "complete": result.complete,
        "needed": IMPORTANCE_TRIALS,
        "importances": result.importances,
    }
    return json.dumps(values, indent=2) + "\n"


def _best_toml(result: SearchResult, out: Path) -> str:
    return (
        f"# The best of {result.complete + result.pruned} trials of the search in {out}: "
        f"validation AUC {result.auc:.4f} in trials/{result.folder.name}.\n"
        "# It is optimistic: the recipe was chosen for it, on that very holdout.\n"
        + _recipe_toml(result.recipe)
    )


def _recipe_toml(recipe: Recipe) -> str:
    """Return a recipe as `read_recipe` takes it; None stands where it is no default."""
    defaults = Recipe()
    values = {
        name: "None" if value is None else value
        for name, value in recipe_values(recipe).items()
        if value is not None or getattr(defaults, name) is not None
    }
    return tomli_w.dumps(values)
