"""Studies: many runs described by one file, resumable, side by side, collected into one table.

    for every point of the study:   argprune prune --config POINT.yaml --output OUTPUT/NAME --resume

Each point is a process of its own, so that one that fails, or is killed, takes no other with it. What stands
on disk is all the state there is: a study that was stopped, changed or extended is started again by the same
command.
"""

from argprune.tasks.studies.executor import Ended, Executor, Job
from argprune.tasks.studies.grid import Point, Study, load_study
from argprune.tasks.studies.local import LocalExecutor
from argprune.tasks.studies.progress import StudyProgress, progress_for
from argprune.tasks.studies.run import StudyOutcome, run_study
from argprune.tasks.studies.table import collect

__all__ = [
    "Ended",
    "Executor",
    "Job",
    "LocalExecutor",
    "Point",
    "Study",
    "StudyOutcome",
    "StudyProgress",
    "collect",
    "load_study",
    "progress_for",
    "run_study",
]
