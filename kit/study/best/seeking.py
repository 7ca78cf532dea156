"""The best submission that a limited time allows: parts that are trained in turn, and their mean.

OUT/study.json     what is sought, and from which data
OUT/journal.json   what was measured, planned and found, see `record`
OUT/parts/NAME     a run or a cross-validation per part
OUT/predicted      what each of them predicts of the test tiles
OUT/ensemble.json  the mean, chosen on the holdout
OUT/submission.csv

After each part there is a submission. A part that is late, or fails, is left out of it.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kit import runs
from kit.base import (
    Floats,
    FolderLock,
    KeptError,
    KitError,
    LateError,
    format_duration,
    plain_values,
    read_recipe,
    stopped_after,
)
from kit.data import Store, read_recipe_slides, recipe_holdout
from kit.runs import Ensemble
from kit.stats import Interval
from kit.study.best.costs import REFIT, Portfolio
from kit.study.best.mean import Judgement, choose_mean, judge_mean, predict_mean, submit_mean
from kit.study.best.parts import EncoderFile, list_parts
from kit.study.best.plan import OVERRUN, Planned, least_seconds, plan_parts
from kit.study.best.record import Clock, Entry, read_journal, write_journal
from kit.study.best.training import PartTraining
from kit.study.folder import claim_folder, require_no_run, surroundings
from kit.training import TrainingBar

PARTS = "parts"
# Of what ending took the last time, what is kept back for it.
_RESERVE = 2.0
# What ending takes, in seconds, before it has been measured.
_FIRST_ENDING = 5.0
# Share of the time left that no plan fills.
_MARGIN = 0.05
_NEVER = 1e9
_LATE = "it would not have ended in time"


@dataclass(frozen=True, kw_only=True)
class BestSearch:
    """What is sought.

    Attributes
    ----------
    folder
        OUT.
    sides
        Fields of every recipe: which tiles are held out, and the seed.
    encoders
        With weights that are at hand.
    refit
        Whether the parts with the largest weights are trained again on all tiles where time is
        left, for the submission.
    """

    folder: Path
    sides: Mapping[str, Any]
    encoders: Sequence[EncoderFile] = ()
    refit: bool = True


@dataclass(frozen=True)
class BestResult:
    """What has been reached by now.

    Attributes
    ----------
    plan
        What is to be trained next, in this order.
    parts
        Those that were begun.
    weights
        In the mean, by the run that is submitted.
    submission
        None as long as no part is finished.
    """

    folder: Path
    clock: Clock
    folds: int
    plan: Sequence[Planned]
    parts: Mapping[str, Entry]
    weights: Mapping[str, float] = field(default_factory=dict)
    judged: Judgement = field(default_factory=Judgement)
    submission: Path | None = None
    standins: tuple[str, ...] = ()

    @property
    def auc(self) -> Interval | None:
        """Of what is submitted, as far as tiles tell that did not choose it."""
        if self.judged.gain is not None:
            return self.judged.gain.auc
        finished = [entry for entry in self.parts.values() if entry.state == "finished"]
        aucs = [entry.auc for entry in finished if entry.auc is not None]
        return aucs[0] if len(aucs) == 1 else None

    def weight(self, name: str) -> float:
        """Return the weight of a part in the mean, its refit's included."""
        return sum(w for run, w in self.weights.items() if Path(run).name in (name, name + REFIT))


def seek_best(
    search: BestSearch,
    store: Store,
    clock: Clock,
    *,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Generator[BestResult, None, None]:
    """Train what fits into the time, and yield what is reached: at once, and after each part.

    The same call goes on where a killed one was. What the caller does with a result counts as part
    of ending a search, for which time is kept back.

    Raises
    ------
    KitError
        If nothing can be trained within the limit, which then says the least one, or the folder
        holds another search, or another process is at work there.
    """
    require_no_run(search.folder)
    with FolderLock(search.folder / PARTS), clock.ticking():
        yield from _Seeker(search, store, clock, device, say).seek()


class _Seeker:
    """The process that trains parts and ends with a submission."""

    def __init__(
        self,
        search: BestSearch,
        store: Store,
        clock: Clock,
        device: str,
        say: Callable[[str], None],
    ) -> None:
        self.search, self.store, self.clock = search, store, clock
        self.device, self.say = device, say
        sides = name_holdout(search.sides, store)
        parts = list_parts(search.encoders, sides)
        runs.check_trainable([parts[0].recipe], store, device=device)
        about = {
            **sides,
            "encoders": {one.model: one.weights for one in search.encoders},
            **surroundings([parts[0].recipe], store, device),
        }
        claim_folder(search.folder, plain_values(about))
        self.slides: Path | None = sides.get("slides")
        self.journal = read_journal(search.folder)
        self.portfolio = Portfolio(search.folder / PARTS, parts, store, device, self.journal)
        self.ending = _FIRST_ENDING
        self.apart = 0.0

    def seek(self) -> Iterator[BestResult]:
        """Train part after part; conclude after each."""
        if self.journal.folds is None:
            self.journal.folds = 0
            if not self.search.sides.get("validate_on"):
                with suppress(LateError), stopped_after(self._left):
                    self.journal.folds = self.portfolio.choose_folds(self._plannable)
        yield from self._concluded()
        while plan := self._plan():
            self._train(plan[0])
            yield from self._concluded()
        if not self._finished():
            raise self._too_short()

    @property
    def _left(self) -> float:
        """Seconds left for training and predicting."""
        return self.clock.left - _RESERVE * self.ending

    @property
    def _plannable(self) -> float:
        """Seconds that plans may fill: what goes beyond them a little is no part lost."""
        return self._left * (1 - _MARGIN)

    def _finished(self) -> list[str]:
        """Return the finished parts, refits apart."""
        return [name for name in self.journal.finished() if not name.endswith(REFIT)]

    def _concluded(self) -> Iterator[BestResult]:
        """Bring the submission up to date, and learn what that takes."""
        start, self.apart = self.clock.used, 0.0
        yield self._conclude()
        if self._finished():
            # Predicting is part of what a part costs, and measuring of what comes next.
            self.ending = max(self.ending, self.clock.used - start - self.apart)

    def _plan(self) -> list[Planned]:
        """Plan what is trained next: what was begun, what is new, and refits where all is done."""
        for name, entry in self.journal.parts.items():
            if entry.state == "begun":
                if self.portfolio.cost(name).seconds(0) < self._left:
                    return [self.portfolio.remaining(name, entry.epochs)]
                entry.state, entry.reason = "late", _LATE
        start, plan = self.clock.used, []
        # What cannot even be measured in time is no part of a plan.
        with suppress(LateError), stopped_after(self._left):
            plan = self.portfolio.plan(lambda: self._plannable)
        self.apart += self.clock.used - start
        write_journal(self.search.folder, self.journal)
        if plan or not self._finished() or not self.search.refit or self.journal.folds:
            return plan
        weights = self._choose().weights
        by_name = {Path(folder).name: weight for folder, weight in weights.items()}
        return plan_parts(self.portfolio.refits(by_name), self._plannable)

    def _train(self, planned: Planned) -> None:
        """Train a part within the time, and write down what became of it."""
        name = planned.name
        began = Entry("begun", planned.epochs, planned.seconds, self.clock.used)
        entry = self.journal.parts.setdefault(name, began)
        write_journal(self.search.folder, self.journal)
        try:
            training = self._training(planned)
            with TrainingBar() as bar, stopped_after(self._left - training.cost.test):
                training.train(bar)
            entry.state = "finished"
        except LateError:
            entry.state, entry.reason = "late", _LATE
        except KeptError:
            raise
        except KitError as error:
            if isinstance(error.__cause__, OSError):
                raise
            entry.state, entry.reason = "failed", str(error)
        entry.seconds = self.clock.used - entry.began
        if entry.state == "finished" and not name.endswith(REFIT):
            entry.auc = Interval(**runs.read_metrics(self.portfolio.place(name))["auc"])
            entry.epochs = self._epochs(name)
            self.portfolio.learn_pace(name, entry.epochs, entry.seconds)
        write_journal(self.search.folder, self.journal)
        self._tell(name, entry)

    def _epochs(self, name: str) -> int:
        """Return for how many epochs a finished part was trained."""
        first = runs.members(self.portfolio.place(name))[0]
        return int(runs.read_config(first)["recipe"]["epochs"])

    def _training(self, planned: Planned) -> PartTraining:
        name, place = planned.name, self.portfolio.place
        recipe, cost = self.portfolio.recipe(name), self.portfolio.cost(name)
        seconds = min(self._plannable, OVERRUN * planned.seconds)
        return PartTraining(
            recipe=replace(recipe, epochs=planned.epochs),
            store=self.store,
            folder=place(name),
            device=self.device,
            cost=cost,
            end=time.monotonic() + seconds,
            label=lambda: f"{name}, {format_duration(self.clock.left)} of the limit left",
            refit_of=place(name.removesuffix(REFIT)) if name.endswith(REFIT) else None,
        )

    def _tell(self, name: str, entry: Entry) -> None:
        took = f"{format_duration(entry.seconds)} (planned {format_duration(entry.planned)})"
        found = "trained on all tiles" if entry.auc is None else f"AUC {entry.auc}"
        if entry.state != "finished":
            found = f"left out, {entry.reason}"
        left = max(0.0, self.clock.left)
        self.say(f"{name}: {found}; {took}; {format_duration(left)} of the limit left")

    def _conclude(self) -> BestResult:
        """Choose the mean of what is finished, judge it and predict by it."""
        about = (self.search.folder, self.clock, self.journal.folds or 0)
        finished = self._finished()
        if not finished:
            return BestResult(*about, self._plan(), self.journal.parts)
        judged = judge_mean(
            [self.portfolio.place(name) for name in finished], self.store, self.slides
        )
        entry = self.journal.parts[finished[-1]]
        entry.together = judged.gain.auc if judged.gain else entry.auc
        weights = {str(self._submitted(Path(run))): w for run, w in self._choose().weights.items()}
        submitted = Ensemble(weights, "probability")
        try:
            predicted = self._predict(submitted)
        except LateError:
            latest = self.journal.parts[self.journal.finished()[-1]]
            latest.state, latest.reason = "late", _LATE
            return self._conclude()
        folder = self.search.folder
        return BestResult(
            *about,
            self._plan(),
            self.journal.parts,
            weights,
            judged,
            submit_mean(submitted, judged, self.store, folder, predicted),
            runs.trained_on_standin(submitted),
        )

    def _predict(self, submitted: Ensemble) -> dict[Path, Floats]:
        """Predict the test tiles; the first part's predictions have what time they take."""
        start, is_first = self.clock.used, len(self._finished()) == 1
        predicted = predict_mean(
            submitted,
            self.store,
            self.search.folder,
            device=self.device,
            seconds=_NEVER if is_first else self._left,
        )
        self.apart += self.clock.used - start
        return predicted

    def _choose(self) -> Ensemble:
        return choose_mean([self.portfolio.place(name) for name in self._finished()])

    def _submitted(self, folder: Path) -> Path:
        """Return what predicts for a part: its refit, if it has one."""
        refit = folder.with_name(folder.name + REFIT)
        return refit if refit.name in self.journal.finished() else folder

    def _too_short(self) -> KitError:
        """Say the least limit that a part would fit into."""
        known = list(self.journal.speeds) or [self.portfolio.parts[0].name]
        least = least_seconds([self.portfolio.candidate(name) for name in known])
        late = [entry.planned for entry in self.journal.parts.values() if entry.state == "late"]
        needed = self.clock.used + OVERRUN * max([least, *late]) + _RESERVE * self.ending
        return KitError(
            f"--time-limit {format_duration(self.clock.limit)} is too short for any part: give "
            f"{int(-(-needed // 60))}m or more, and the same command goes on"
        )


def name_holdout(sides: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """Return the fields that hold tiles out with a random share of slides by their names.

    So other seeds of a part hold out the same slides.
    """
    recipe = replace(read_recipe("compact"), **sides)
    if recipe.slides is None or recipe.validate_on:
        return dict(sides)
    slides = read_recipe_slides(recipe.slides, store)
    held_out = np.unique(slides[recipe_holdout(store, recipe).valid])
    return {**sides, "validate_on": tuple(held_out.tolist())}
