"""The report on a KDEP study: what every pre-training was worth downstream, against each other, and every run."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from backend import studies
from backend.cli.report_page import Fact, Page, Plot, Section, Table, Text, plain, plot
from backend.cli.report_pair import points
from backend.cli.report_study import provenance
from backend.domain.kdep import Estimate
from backend.domain.kdep_studies import KdepSummary, KdepTable
from backend.kdep_studies import parse_kdep_study
from backend.store import catalog, job_reads
from backend.store.queries import jobs as job_queries
from backend.store.session import Store
from dashboard import formats
from dashboard.figures import kdep

NOTHING_YET = "No pre-training of this study has finished yet."


def kdep_page(store: Store, id: UUID, *, footer: str) -> Page:
    """The page of a KDEP study as far as it is.

    Raises:
        NotFound: no such study.
    """
    with store.read() as connection:
        found = job_queries.study(connection, id)
        table = studies.study_table(connection, id)
        assert isinstance(table, KdepTable), "studies of transfers have a page of their own"
        spec = parse_kdep_study(found.job.spec)
        wanted = {spec.dataset, *(source.dataset for source in spec.downstream)}
        datasets = [catalog.get_dataset(connection, n) for n in sorted(wanted & set(catalog.dataset_names(connection)))]
        known = set(catalog.model_names(connection))
        models = catalog.get_models(connection, [name for name in spec.teachers if name in known])
        jobs = [job for job in job_reads.children_of(connection, id) if job.result is not None]
    facts = [
        Fact("State", found.job.state.value, ", ".join(f"{n} {state}" for state, n in sorted(found.children.items()))),
        Fact("Pre-trained on", spec.dataset, f"student {spec.student.architecture}"),
        Fact("Runs", f"{len(table.rows):,}", f"{table.n_open:,} to come, {table.n_failed:,} failed or cancelled"),
    ]
    if table.summaries:
        best = max(table.summaries, key=lambda one: one.average.mean)
        facts.append(Fact(f"Best average: {_name(best)}", formats.percent(best.average.mean), _ends(best.average)))
    return Page(
        title=f"Study {spec.name}",
        subtitle=" ".join(spec.description.split()) or f"{len(spec.methods)} ways of pre-training on {spec.dataset}.",
        facts=facts,
        sections=[
            Section(
                "methods",
                "Methods",
                _methods(table),
                "Each student is fine-tuned on every downstream set, the learning rate chosen on validation; scores on "
                "test, mean over seeds, intervals 95 % (Student's t).",
            ),
            Section("figures", "Figures", _figures(table)),
            Section("rows", "Every run", _rows(table)),
            Section("provenance", "Where this comes from", provenance(found.job, spec, datasets, models, jobs)),
        ],
        footer=footer,
    )


def _methods(table: KdepTable) -> list[Any]:
    if not table.summaries:
        return [Text(NOTHING_YET)]
    sets = list(dict.fromkeys(name for one in table.summaries for name in one.sets))
    rows = [
        (
            one.label,
            one.teacher or "no teacher",
            formats.percent(one.share, 0),
            str(len(one.average.values)),
            f"{formats.percent(one.average.mean)} {_ends(one.average)}".strip(),
            *(formats.percent(one.sets[name].mean if name in one.sets else None) for name in sets),
        )
        for one in table.summaries
    ]
    head = ("method", "teacher", "share of the images", "seeds", "downstream average", *sets)
    blocks: list[Any] = [Table(head, rows, words=2)]
    if table.differences:
        blocks.append(
            Table(
                ("difference", "teacher", "share of the images", "pairs", "downstream average"),
                [
                    (
                        f"{one.label} − {one.baseline}",
                        one.teacher or "no teacher",
                        formats.percent(one.share, 0),
                        str(len(one.difference.values)),
                        f"{formats.signed_percent(one.difference.mean)} {_ends(one.difference, signed=True)}".strip(),
                    )
                    for one in table.differences
                ],
                "Paired by seed.",
                words=2,
            )
        )
    return blocks


def _figures(table: KdepTable) -> list[Plot | Text]:
    if not table.summaries:
        return [Text(NOTHING_YET)]
    shown = [one.model_copy(update={"label": plain(one.label)}) for one in table.summaries]
    return [
        plot("Downstream average by the images pre-trained on", "", lambda s: kdep.over_shares(shown, s), wide=True),
        plot(
            "Downstream sets",
            "On the largest share of the images.",
            lambda s: kdep.downstream_sets(shown, s),
            wide=True,
        ),
        plot(
            "Downstream average by the images seen",
            "Epochs × images: what the pre-training cost.",
            lambda s: kdep.over_images_seen(shown, s),
            wide=True,
        ),
    ]


def _rows(table: KdepTable) -> list[Any]:
    if not table.rows:
        return [Text(NOTHING_YET)]
    sets = list(dict.fromkeys(name for row in table.rows for name in row.sets))
    rows = [
        (
            row.label,
            row.teacher or "no teacher",
            str(row.seed),
            formats.percent(row.share, 0),
            f"{row.n_samples:,}",
            str(row.epochs),
            formats.number(row.loss_last),
            formats.percent(row.variance_share),
            formats.percent(row.average),
            *(formats.percent(row.sets.get(name)) for name in sets),
            row.job_id,
        )
        for row in table.rows
    ]
    head = ("method", "teacher", "seed", "share", "images", "epochs", "last loss", "variance kept", "average")
    return [Table((*head, *sets, "job"), rows, words=2)]


def _name(one: KdepSummary) -> str:
    return one.label if one.teacher is None else f"{one.label}, {one.teacher}"


def _ends(found: Estimate, *, signed: bool = False) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"({points(found.low, found.high) if signed else formats.interval(found.low, found.high)})"
