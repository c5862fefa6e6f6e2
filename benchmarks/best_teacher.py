"""Several teachers against the best single one, chosen on one half of the images and counted on the other.

    ZOOGRAFT_DATA_DIR=... python -m benchmarks.best_teacher STUDY     (the id of a finished study with `teacher_sets`)

The largest of several noisy figures is too large on the images that chose it. So for every set of teachers the images
are split in two, 200 times; on each half the single teacher with the larger Δ is chosen, on the other half Δ is
compared with that of the set. Beside it the difference with the choice made in hindsight, as `study show` prints it.
Intervals are 95 % percentiles of 10,000 bootstrap draws of (student, seed, set).
"""

from __future__ import annotations

import argparse
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from backend import studies
from backend.domain.study_summary import StudyRow, StudyTable
from backend.settings import Settings
from backend.store import artifacts
from backend.store.queries import jobs
from backend.store.session import Store

SPLITS, DRAWS = 200, 10_000


def changes(store: Store, row: StudyRow) -> NDArray[np.float64]:
    """Per sample 1 where the transfer made it right, −1 where it made it wrong [N]; the mean is Δ."""
    with store.read() as connection:
        files = jobs.artifacts(connection, job_id=UUID(row.job_id)).items
    found = next(file for file in files if file.name == "predictions.npz")
    with np.load(artifacts.fetch(found.uri, found.sha256)) as told:
        right = {name: np.asarray(told[name] == told["label"], dtype=np.float64) for name in ("before", "after")}
    return right["after"] - right["before"]


def crossed(several: NDArray[np.float64], singles: NDArray[np.float64], rng: np.random.Generator) -> float:
    """Mean Δ of `several` [N] minus that of the row of `singles` [K, N] chosen on the other half of the samples."""
    found = []
    for _ in range(SPLITS):
        half = np.zeros(len(several), dtype=np.bool_)
        half[rng.permutation(len(several))[: len(several) // 2]] = True
        for here, there in ((half, ~half), (~half, half)):
            best = int(singles[:, here].mean(axis=1).argmax())
            found.append(several[there].mean() - singles[best, there].mean())
    return float(np.mean(found))


def interval(values: list[float], rng: np.random.Generator) -> str:
    drawn = np.asarray(values)[rng.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{100 * np.mean(values):+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=UUID)
    chosen = parser.parse_args().study
    settings = Settings()
    store = Store.open(settings.database, settings=settings)
    with store.read() as connection:
        table = studies.study_table(connection, chosen)
    if not isinstance(table, StudyTable):
        parser.error(f"{chosen} is a study of pre-trainings; name one with teacher_sets")
    rows = table.rows
    alone = {(row.student, row.teachers[0]): row for row in rows if len(row.teachers) == 1}
    rng = np.random.default_rng(0)
    print(f"{'method':32} {'sets':>4}  {'chosen on the other half':26}  in hindsight")
    for label in dict.fromkeys(row.label for row in rows if len(row.teachers) > 1):
        across, hindsight = [], []
        for row in rows:
            if row.label == label:
                several = changes(store, row)
                singles = np.stack([changes(store, alone[row.student, teacher]) for teacher in row.teachers])
                across.append(crossed(several, singles, rng))
                hindsight.append(float(several.mean() - singles.mean(axis=1).max()))
        print(f"{label:32} {len(across):4}  {interval(across, rng):26}  {interval(hindsight, rng)}   points")
    store.close()


if __name__ == "__main__":
    main()
