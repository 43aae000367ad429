"""What to try next, by Optuna; and the trials in an Optuna database.

A suggestion is a function of the space, the seed, its index and the trials of the batches before: whatever was
killed when, and however many runs go on side by side, the same study tries the same values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from argprune.tasks.runs import RunError
from argprune.tasks.studies.search import Choice, Domain, Range, Tuning, combinations

DATABASE = "tuning.db"
# Draws for one trial before a repetition of an earlier one is put up with: a small space may hold nothing else.
_DRAWS = 50


@dataclass(frozen=True)
class Scored:
    """A trial that has ended: what was tried, and its score, larger is better (None: the run failed)."""

    values: Mapping[str, Any]
    score: float | None


def load_optuna() -> Any:
    """The optuna module, which prints warnings only. Raises ImportError that names the extra to install."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError("tune needs Optuna: pip install 'argprune[tune]'.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def suggest(
    tuning: Tuning, name: str, space: Mapping[str, Domain], earlier: Sequence[Scored], index: int, tried: Sequence[Any]
) -> dict[str, Any]:
    """The values of a trial.

    name: whose trials these are. earlier: the trials of the batches before. index: of the trial, from 0. tried: all
    values suggested before, which are not suggested again as long as others are left.
    """
    if tuning.sampler == "grid":
        return combinations(space)[index]
    optuna = load_optuna()
    values: dict[str, Any] = {}
    for draw in range(_DRAWS):
        # A sampler of its own for each draw: one that lived on would be somewhere else after a restart.
        seed = int(hashlib.sha256(f"{tuning.seed}/{name}/{index}/{draw}".encode()).hexdigest()[:8], 16)
        if tuning.sampler == "random":
            sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=tuning.batch)
        memory = optuna.create_study(direction="maximize", sampler=sampler)
        memory.add_trials([_frozen(optuna, space, trial) for trial in earlier])
        params = memory.ask(_distributions(optuna, space)).params
        values = {option: _decoded(domain, params[option]) for option, domain in space.items()}
        if values not in tried:
            break
    return values


class Database:
    """The trials of a study's arms, an Optuna study each, in SQLite: for what else reads such databases.

    The folder's runs are what counts. Here they are written down, and what was suggested is read back, so that
    another version of Optuna goes on where an earlier one began.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes the database. Raises ValueError where the file is none, ImportError without Optuna."""
        self._optuna, self._path = load_optuna(), path
        from sqlalchemy.exc import SQLAlchemyError

        try:
            self._storage = self._optuna.storages.RDBStorage(
                f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}}
            )
        except (SQLAlchemyError, RuntimeError) as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise ValueError(f"{path}: cannot be used as the database of tuning ({reason}). Remove it.") from error

    def suggested(self, name: str, space: Mapping[str, Domain]) -> list[dict[str, Any]]:
        """The values of the trials that are written down, in their order."""
        if name not in self._optuna.get_all_study_names(self._storage):
            return []
        trials = self._optuna.load_study(study_name=name, storage=self._storage).get_trials(deepcopy=False)
        return [{option: _decoded(domain, t.params[option]) for option, domain in space.items()} for t in trials]

    def write(self, name: str, space: Mapping[str, Domain], trials: Sequence[Scored]) -> None:
        """Make the database hold these trials: the new ones are added, and all replaced where old ones differ.

        Raises RunError where it cannot be written.
        """
        try:
            self._replace(name, space, trials)
        except self._optuna.exceptions.StorageInternalError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise RunError(
                f"{self._path}: {reason}. Put that right; nothing is lost, the same command goes on."
            ) from error

    def _replace(self, name: str, space: Mapping[str, Domain], trials: Sequence[Scored]) -> None:
        wanted = [_frozen(self._optuna, space, trial) for trial in trials]
        known = name in self._optuna.get_all_study_names(self._storage)
        study = self._optuna.create_study(
            study_name=name, storage=self._storage, direction="maximize", load_if_exists=True
        )
        there = study.get_trials(deepcopy=False) if known else []

        def facts(trial: Any) -> Any:
            return trial.params, trial.state, trial.value

        both = min(len(there), len(wanted))
        if [facts(t) for t in there[:both]] != [facts(t) for t in wanted[:both]]:
            # A failed run that was retried: Optuna never changes a trial that has ended.
            self._optuna.delete_study(study_name=name, storage=self._storage)
            study = self._optuna.create_study(study_name=name, storage=self._storage, direction="maximize")
            # Later ones stand, although one before them is being run again.
            wanted, there = [*wanted, *there[both:]], []
        study.add_trials(wanted[len(there) :])


def _distributions(optuna: Any, space: Mapping[str, Domain]) -> dict[str, Any]:
    return {option: _distribution(optuna, domain) for option, domain in space.items()}


def _distribution(optuna: Any, domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return optuna.distributions.CategoricalDistribution([json.dumps(value) for value in domain.values])
    kind = optuna.distributions.IntDistribution if domain.integer else optuna.distributions.FloatDistribution
    number = int if domain.integer else float
    return kind(number(domain.low), number(domain.high), log=domain.log)


def _frozen(optuna: Any, space: Mapping[str, Domain], trial: Scored) -> Any:
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.FAIL if trial.score is None else states.COMPLETE,
        params={option: _encoded(domain, trial.values[option]) for option, domain in space.items()},
        distributions=_distributions(optuna, space),
        value=trial.score,
    )


def _encoded(domain: Domain, value: Any) -> Any:
    # Optuna's categories are scalars; a study's values may be lists, and 1 is not True there.
    return json.dumps(value) if isinstance(domain, Choice) else value


def _decoded(domain: Range | Choice, value: Any) -> Any:
    return json.loads(value) if isinstance(domain, Choice) else domain.rounded(value)
