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
from backend.cli.opening import open_store
from backend.domain.intervals import bootstrap_mean
from backend.domain.study_summary import StudyRow, StudyTable, same_settings
from backend.store import artifacts
from backend.store.queries import jobs
from backend.store.session import Store

SPLITS = 200


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=UUID)
    chosen = parser.parse_args().study
    with open_store() as (_, store):
        with store.read() as connection:
            table = studies.study_table(connection, chosen)
        if not isinstance(table, StudyTable) or not table.teacher_sets:
            parser.error(f"{chosen} has no set of teachers beside each of them alone; name a study with teacher_sets")
        rows = {row.job_id: row for row in table.rows}
        alone = {(row.teachers[0], *same_settings(row)): row for row in table.rows if len(row.teachers) == 1}
        in_hindsight = {one.label: one for one in table.teacher_set_summaries if one.against == "best single teacher"}
        rng = np.random.default_rng(0)
        print(f"{'method':32} {'sets':>4}  {'chosen on the other half':26}  in hindsight")
        for label, before in in_hindsight.items():
            across = []
            for one in table.teacher_sets:
                if one.label == label:
                    several = rows[one.job_id]
                    singles = [changes(store, alone[teacher, *same_settings(several)]) for teacher in several.teachers]
                    across.append(crossed(changes(store, several), np.stack(singles), rng))
            interval, _ = bootstrap_mean(np.array(across))
            hindsight = (
                before.mean_delta_difference,
                before.mean_delta_difference_low,
                before.mean_delta_difference_high,
            )
            shown = points(float(np.mean(across)), interval.low, interval.high)
            print(f"{label:32} {len(across):4}  {shown:26}  {points(*hindsight)}   points")


def points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


if __name__ == "__main__":
    main()
