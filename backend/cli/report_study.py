"""The report on one study: its methods, what they gained, the zoo they came from, and every transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import yaml

from backend import studies
from backend.cli.report_page import Fact, Page, Plot, Section, Table, Text, plain, plot
from backend.cli.report_pair import points
from backend.domain.catalog import Model
from backend.domain.datasets import Dataset
from backend.domain.errors import NotFound
from backend.domain.evaluations import Evaluation
from backend.domain.jobs import Job
from backend.domain.kdep_studies import KdepStudySpec
from backend.domain.pairs import Pair
from backend.domain.records import content_hash
from backend.domain.specs import ScanSpec, TransferSpec
from backend.domain.studies import StudySpec, plan_study
from backend.domain.study_summary import MethodSummary, StudyRow, StudyTable, is_control
from backend.store import catalog, job_reads
from backend.store.queries import board_columns, density
from backend.store.queries import catalog as catalog_queries
from backend.store.queries import jobs as job_queries
from backend.store.queries import pairs as pair_queries
from backend.store.queries.density import HeatMap
from backend.store.session import Store
from dashboard import formats
from dashboard.figures import flips, forest, transfers
from dashboard.theme import FAMILY_LABELS

MOST_POINTS = 4000
MOST_ROWS = 5000
NOTHING_YET = "No transfer of this study has finished yet."


@dataclass(frozen=True)
class _Zoo:
    """The study's models, how they were scored on its split, and their pairs (a seeded draw where they are many)."""

    models: dict[str, Model]
    evaluations: dict[str, Evaluation]
    pairs: list[Pair]
    n_pairs: int
    heat: HeatMap | None


def study_page(store: Store, id: UUID, *, footer: str) -> Page:
    """The page of a study as far as it is.

    Raises:
        NotFound: no such study.
    """
    with store.read() as connection:
        found = job_queries.study(connection, id)
        table = studies.study_table(connection, id)
        assert isinstance(table, StudyTable), "KDEP studies have a page of their own"
        spec = studies.parse(found.job.spec)
        entry = _dataset(connection, spec.dataset)
        zoo = _zoo(connection, spec, entry)
        jobs = [job for job in job_reads.children_of(connection, id) if job.result is not None]
    study = found.job
    rows = [_shown(row) for row in table.rows]
    sections = [
        Section(
            "methods",
            "Methods",
            _methods(table),
            "A transfer succeeds if Δ > 0, which is accuracy after − before. Controls are the same student, data, "
            "steps and optimizer without a teacher. Intervals hold 95 %.",
        ),
        Section("figures", "Transfers", _figures(rows, table, zoo)),
        Section("zoo", "The zoo", _zoo_blocks(zoo, spec)),
        Section("rows", "Every transfer", _rows(table.rows)),
        Section(
            "provenance",
            "Where this comes from",
            provenance(study, spec, [entry] if entry else [], list(zoo.models.values()), jobs),
        ),
    ]
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.children.items()))
    return Page(
        title=f"Study {spec.name}",
        subtitle=" ".join(spec.description.split()) or f"{len(spec.methods)} methods on {spec.dataset}.",
        facts=_facts(study, spec, table, states),
        sections=sections,
        footer=footer,
    )


def _dataset(connection: Any, name: str) -> Dataset | None:
    """None while the study has not registered it yet."""
    try:
        return catalog.get_dataset(connection, name)
    except NotFound:
        return None


def _zoo(connection: Any, spec: StudySpec, entry: Dataset | None) -> _Zoo:
    wanted: dict[str, None] = {}
    for child in plan_study(spec):
        if isinstance(child.spec, ScanSpec):
            wanted |= dict.fromkeys(child.spec.models)
        elif isinstance(child.spec, TransferSpec):
            wanted |= dict.fromkeys((*child.spec.teachers, child.spec.student))
    known = set(catalog.model_names(connection))
    models = {model.name: model for model in catalog.get_models(connection, [n for n in wanted if n in known])}
    if entry is None:
        return _Zoo(models, {}, [], 0, None)
    split = entry.evaluation_split(spec.split)
    evaluations: dict[str, Evaluation] = {}
    for name in models:
        page = catalog_queries.evaluations(connection, model=name, dataset=entry.name, split=split, limit=1)
        evaluations |= {one.model: one for one in page.items}
    boards = pair_queries.boards(connection, dataset=entry.name, split=split)
    if not boards:
        return _Zoo(models, evaluations, [], 0, None)
    columns = board_columns.load(connection, boards[0])
    ours = np.array([name in models for name in columns.names], dtype=np.bool_)
    chosen = np.flatnonzero(ours[columns.teacher] & ours[columns.student]).astype(np.int64)
    drawn = density.sample(chosen, MOST_POINTS)
    pairs = board_columns.pair_records(columns, drawn)
    heat = density.heat_map(columns, chosen, "positive_flip_rate") if len(chosen) else None
    return _Zoo(models, evaluations, pairs, len(chosen), heat)


def _shown(row: StudyRow) -> StudyRow:
    return row.model_copy(update={"label": plain(row.label)})


def _facts(study: Job, spec: StudySpec, table: StudyTable, states: str) -> list[Fact]:
    taught = [one for one in table.methods if not _is_control(one, table)]
    facts = [Fact("State", str(study.state.value), states)]
    facts.append(Fact("Data", spec.dataset, f"learnt from {spec.train_split or 'its training split'}"))
    facts.append(
        Fact("Transfers", f"{len(table.rows):,}", f"{table.n_open:,} to come, {table.n_failed:,} failed or cancelled")
    )
    if taught:
        best = max(taught, key=lambda one: one.mean_delta)
        facts.append(
            Fact(
                f"Largest mean Δ: {best.label}",
                formats.signed_percent(best.mean_delta),
                f"{points(best.mean_delta_low, best.mean_delta_high)}, over {best.n_transfers:,} transfers",
            )
        )
    return facts


def _is_control(one: MethodSummary, table: StudyTable) -> bool:
    return any(row.label == one.label and is_control(row) for row in table.rows)


def _methods(table: StudyTable) -> list[Any]:
    if not table.methods:
        return [Text(NOTHING_YET)]
    rows = [
        (
            one.label,
            f"{one.n_transfers:,}",
            f"{formats.percent(one.success_rate, 0)} "
            f"({formats.interval(one.success_rate_low, one.success_rate_high, 0)})",
            formats.percent(one.median_student_success_rate, 0),
            formats.percent(one.success_rate_weaker, 0),
            f"{formats.signed_percent(one.mean_delta)} ({points(one.mean_delta_low, one.mean_delta_high)})",
            _above_control(one),
            formats.percent(one.success_rate_above_control, 0),
            formats.percent(one.mean_gain),
            formats.percent(one.mean_loss),
        )
        for one in table.methods
    ]
    head = ("method", "transfers", "success", "median student", "weaker teacher", "mean Δ")
    head += ("above control", "beats control", "gain", "loss")
    blocks: list[Any] = [
        Table(
            head,
            rows,
            "median student: median over students of their share of successes. weaker teacher: successes where the "
            "teacher was less accurate than the student. pp: percentage points.",
        )
    ]
    if table.differences:
        blocks.append(
            Table(
                ("difference", "paired transfers", "success", "mean Δ"),
                [
                    (
                        f"{one.label} − {one.baseline}",
                        f"{one.n_pairs:,}",
                        f"{formats.signed_percent(one.success_rate_difference, 1)} "
                        f"({points(one.success_rate_difference_low, one.success_rate_difference_high, 1)})",
                        f"{formats.signed_percent(one.mean_delta_difference)} "
                        f"({points(one.mean_delta_difference_low, one.mean_delta_difference_high)})",
                    )
                    for one in table.differences
                ],
                "Paired over the same teachers, student and seed. Intervals: 10,000 bootstrap draws of the transfers.",
            )
        )
    if table.teacher_set_summaries:
        blocks.append(
            Table(
                ("several teachers", "against", "sets and seeds", "mean Δ", "one teacher", "difference", "better in"),
                [
                    (
                        one.label,
                        one.against,
                        f"{one.n_transfers:,}",
                        formats.signed_percent(one.mean_delta),
                        formats.signed_percent(one.mean_single_delta),
                        f"{formats.signed_percent(one.mean_delta_difference)} "
                        f"({points(one.mean_delta_difference_low, one.mean_delta_difference_high)})",
                        formats.percent(one.win_rate, 0),
                    )
                    for one in table.teacher_set_summaries
                ],
                "The same student, method, settings and seed. The best single teacher is known only afterwards, the "
                "most accurate one beforehand.",
            )
        )
    return blocks


def _above_control(one: MethodSummary) -> str:
    low, high = one.mean_delta_above_control_low, one.mean_delta_above_control_high
    if one.mean_delta_above_control is None or low is None or high is None:
        return formats.NONE
    return f"{formats.signed_percent(one.mean_delta_above_control)} ({points(low, high)})"


def _figures(rows: Sequence[StudyRow], table: StudyTable, zoo: _Zoo) -> list[Plot | Text]:
    if not rows:
        return [Text(NOTHING_YET)]
    methods = [one.model_copy(update={"label": plain(one.label)}) for one in table.methods]
    differences = [
        one.model_copy(update={"label": plain(one.label), "baseline": plain(one.baseline)}) for one in table.differences
    ]
    blocks: list[Plot | Text] = [
        plot("Success rates", "One point a student.", lambda s: transfers.success_boxes(rows, s)),
        plot("Mean Δ", "And what of it is above the control.", lambda s: transfers.method_bars(methods, s)),
    ]
    if differences:
        height = 150 + 34 * len(differences)
        blocks += [
            plot(
                "Success rates against each other",
                "The same transfers by two methods.",
                lambda s: forest.differences(differences, "success_rate", s),
                height=height,
            ),
            plot(
                "Mean Δ against each other",
                "The same transfers by two methods.",
                lambda s: forest.differences(differences, "mean_delta", s),
                height=height,
            ),
        ]
    blocks += [
        plot(
            "Δ against the accuracy difference",
            "Left of 0 the teacher is the weaker model.",
            lambda s: transfers.binned_deltas(rows, s),
        ),
        plot(
            "Gain against loss",
            "Above the line a transfer succeeds; × is a control.",
            lambda s: transfers.gain_against_loss(rows, s),
        ),
        plot(
            "Transfer rate",
            "Of the classes that hold most of what the teacher knew better; bars: one standard error.",
            lambda s: transfers.rates_by_top(rows, s),
        ),
        plot(
            "Transfer rate by student",
            "Mean over a student's transfers.",
            lambda s: transfers.rates_by_student(rows, zoo.models, s),
        ),
        plot(
            "Δ by the student's size",
            "Mean over a student's transfers.",
            lambda s: transfers.deltas_by_student(rows, zoo.models, s),
        ),
        plot(
            "Δ by the student's accuracy",
            "Mean over a student's transfers.",
            lambda s: transfers.deltas_by_student(rows, zoo.models, s, of="accuracy"),
        ),
    ]
    return blocks


def _zoo_blocks(zoo: _Zoo, spec: StudySpec) -> list[Any]:
    if not zoo.models:
        return [Text("Its models have not been made yet.")]
    blocks: list[Any] = []
    if zoo.pairs:
        families = [zoo.models[pair.teacher].family.value for pair in zoo.pairs]
        drawn = "" if zoo.n_pairs == len(zoo.pairs) else f" {len(zoo.pairs):,} of {zoo.n_pairs:,} pairs, drawn."
        blocks += [
            plot(
                "What the teacher knows beside the student",
                f"One point an ordered pair, by the teacher's family.{drawn}",
                lambda s: _plane(zoo.pairs, families, "positive_flip_rate", s),
                height=430,
            ),
            plot(
                "How focused that is",
                f"Low entropy: few classes hold the positive flips.{drawn}",
                lambda s: _plane(zoo.pairs, families, "flip_entropy_nats", s),
                height=430,
            ),
        ]
    if zoo.heat is not None and len(zoo.heat.teachers) > 1:
        heat = zoo.heat
        blocks.append(
            plot(
                "Positive flips, teacher × student",
                "% of all samples.",
                lambda s: flips.heat_map(heat, "positive_flip_rate", s),
                wide=True,
                height=max(420, min(760, 240 + 26 * len(heat.students))),
            )
        )
    rows = []
    for name, model in zoo.models.items():
        scored = zoo.evaluations.get(name)
        rows.append(
            (
                name,
                FAMILY_LABELS[model.family.value],
                model.architecture or formats.NONE,
                formats.params(model.param_count),
                formats.percent(scored.accuracy) if scored else formats.NONE,
                f"{scored.n_samples:,}" if scored else formats.NONE,
            )
        )
    head = ("model", "family", "architecture", "parameters", "accuracy", "samples")
    blocks.append(Table(head, rows, f"Accuracy on {spec.dataset}, as scanned.", words=3))
    return blocks


def _plane(pairs: Sequence[Pair], families: Sequence[str], y: str, scheme: Any) -> Any:
    x = "accuracy_difference"
    return flips.pairs_plane(pairs, families, None, x, y, (*_span(pairs, x), *_span(pairs, y)), scheme)


def _span(pairs: Sequence[Pair], name: str) -> tuple[float, float]:
    """From the least to the largest value with a little room; rates and entropies begin at 0."""
    values = [getattr(pair, name) for pair in pairs]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.01
    return (low - room if low < 0 else min(0.0, low) - room / 2, high + room)


def _rows(rows: Sequence[StudyRow]) -> list[Any]:
    if not rows:
        return [Text(NOTHING_YET)]
    cells = [
        (
            row.label,
            " + ".join(row.teachers) or "no teacher",
            row.student,
            str(row.seed),
            formats.signed_percent(row.accuracy_difference),
            formats.percent(row.student_accuracy_before),
            formats.percent(row.student_accuracy_after),
            formats.signed_percent(row.transfer_delta),
            formats.signed_percent(row.delta_above_control),
            formats.percent(row.knowledge_gain),
            formats.percent(row.knowledge_loss),
            formats.percent(row.transfer_rate.get("100"), 1),
            row.job_id,
        )
        for row in rows[:MOST_ROWS]
    ]
    head = ("method", "teacher", "student", "seed", "teacher − student", "before", "after", "Δ")
    head += ("above control", "gain", "loss", "rate", "job")
    more = f" The first {MOST_ROWS:,} of {len(rows):,}; `zoograft study show ID -o rows.csv` has all."
    return [
        Table(
            head,
            cells,
            "rate: share of the teachers' initial positive flips that the student has right afterwards."
            + (more if len(rows) > MOST_ROWS else ""),
            words=3,
        )
    ]


def provenance(
    study: Job,
    spec: StudySpec | KdepStudySpec,
    datasets: Sequence[Dataset],
    models: Sequence[Model],
    jobs: Sequence[Job],
) -> list[Any]:
    """What a study was made from and with: ids, hashes, versions, seeds, and its file."""
    versions: dict[str, set[str]] = {}
    devices: set[str] = set()
    for job in jobs:
        made = (job.result or {}).get("provenance") or {}
        for name, value in (made.get("versions") or {}).items():
            versions.setdefault(name, set()).add(str(value))
        if made.get("device"):
            devices.add(str(made["device"]))
    facts = [
        ("study", str(study.id)),
        ("hash of the spec", content_hash(spec)),
        ("started (UTC)", formats.moment(study.started_at)),
        ("finished (UTC)", formats.moment(study.finished_at)),
        ("seeds", ", ".join(map(str, spec.seeds))),
        ("devices", ", ".join(sorted(devices)) or "not recorded"),
        *((f"version of {name}", ", ".join(sorted(values))) for name, values in sorted(versions.items())),
    ]
    facts += [
        (f"fingerprint of {entry.name}/{name}", one.fingerprint)
        for entry in datasets
        for name, one in entry.splits.items()
    ]
    facts += [
        (f"weights of {model.name}", model.weights_hash or "not known (imported predictions)") for model in models
    ]
    text = yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
    return [
        Table(("what", "which"), facts, words=2),
        Text(text, code=True, folded="The study as a file, for zoograft study run"),
    ]
