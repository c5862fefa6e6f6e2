"""The report on one pair: its numbers with intervals, its classes, its flipped samples, and what was transferred."""

from __future__ import annotations

import base64
from typing import Any

from backend.cli.report_page import Fact, Gallery, Page, Picture, Plot, Section, Table, Text, plain, plot
from backend.domain.flips import ClassCounts, class_flips, top_classes
from backend.domain.jobs import Job, JobState
from backend.domain.pairs import ClassFlips, FlippedSample, PairDetail, class_q_values, class_records
from backend.domain.transfers import TransferResult
from backend.settings import Settings
from backend.store import catalog
from backend.store.queries import flipped, job_table
from backend.store.queries import pairs as pair_queries
from backend.store.session import Store
from backend.thumbnails import MEDIA_TYPE, thumbnail
from dashboard import formats
from dashboard.figures import classes as class_figures
from dashboard.figures import curves
from dashboard.figures.forest import Line, forest

GALLERY_CLASSES = 6
A_CLASS = 8
MOST_CLASSES = 200
MOST_CURVES = 4


def pair_page(
    settings: Settings, store: Store, teacher: str, student: str, *, dataset: str | None, split: str | None, footer: str
) -> Page:
    """The page of an ordered pair.

    Raises:
        NotFound: unknown names, or the two were not both scored there.
        BadInput: a model paired with itself, an ambiguous data set or split.
    """
    with store.read() as connection:
        pair = pair_queries.pair(connection, teacher, student, dataset=dataset, split=split)
        models = {model.name: model for model in catalog.get_models(connection, [teacher, student])}
        entry = catalog.get_dataset(connection, pair.dataset)
        jobs = job_table.transfers(connection, teacher=teacher, student=student, dataset=pair.dataset)
    compared = flipped.compared(store, settings, teacher, student, dataset=pair.dataset, split=pair.split)
    counts = class_flips(compared.teacher_right, compared.student_right, compared.labels, max(1, compared.n_classes))
    names = compared.class_names()
    records = class_records(counts, names)
    done = [job for job in jobs if job.state is JobState.SUCCEEDED and job.result is not None]
    sections = [
        Section("numbers", "Numbers", [_numbers(pair), _counts(pair)], "Every interval holds 95 %."),
        Section("classes", "Classes", _classes(records, counts), _classes_intro(counts)),
        Section("samples", "Flipped samples", _galleries(settings, store, pair, records, names), ""),
        Section("transfers", "Transfers on this pair", _transfers(done, teacher, student), _transfers_intro(pair)),
    ]
    known = [
        ("data set", f"{pair.dataset}, split {pair.split}"),
        ("fingerprint of the split", entry.splits[pair.split].fingerprint),
        *((f"weights of {name}", models[name].weights_hash or "not known (imported predictions)") for name in models),
        *_versions(done),
    ]
    sections.append(Section("provenance", "Where this comes from", [Table(("what", "which"), known, words=2)]))
    return Page(
        title=f"{teacher} → {student}",
        subtitle=f"What {teacher} (teacher) knows that {student} (student) does not, on {pair.dataset}, split "
        f"{pair.split}: {pair.n_samples:,} samples of {pair.n_classes:,} classes.",
        facts=_facts(pair),
        sections=sections,
        footer=footer,
    )


def _facts(pair: PairDetail) -> list[Fact]:
    def fact(label: str, name: str, signed: bool = False) -> Fact:
        value, low, high = (getattr(pair, name + end) for end in ("", "_low", "_high"))
        shown = formats.signed_percent(value) if signed else formats.percent(value)
        return Fact(label, shown, f"{formats.interval(low, high)}")

    return [
        fact("Positive flips: only the teacher is right", "positive_flip_rate"),
        fact("Negative flips: only the student is right", "negative_flip_rate"),
        fact("Accuracy difference, teacher − student", "accuracy_difference", signed=True),
        Fact("Entropy of the positive flips", f"{pair.flip_entropy_nats:.2f} nats", "over the classes; 0 = one class"),
    ]


def _numbers(pair: PairDetail) -> Table:
    rows = []
    for label, name in (
        ("accuracy of the teacher", "teacher_accuracy"),
        ("accuracy of the student", "student_accuracy"),
        ("accuracy difference, teacher − student", "accuracy_difference"),
        ("positive flips (teacher right, student wrong)", "positive_flip_rate"),
        ("negative flips (teacher wrong, student right)", "negative_flip_rate"),
    ):
        value, low, high = (getattr(pair, name + end) for end in ("", "_low", "_high"))
        rows.append((label, formats.percent(value).replace("-", "−"), formats.interval(low, high)))
    rows.append(("entropy of the positive flips over the classes", f"{pair.flip_entropy_nats:.3f} nats", ""))
    rows.append(("McNemar's exact p-value (are the two equally accurate?)", formats.p_value(pair.mcnemar_p_value), ""))
    return Table(
        ("", "value", "95 % interval"), rows, "Intervals: percentiles of 10,000 multinomial draws of the four counts."
    )


def _counts(pair: PairDetail) -> Table:
    return Table(
        ("samples", "student right", "student wrong", "all"),
        (
            (
                "teacher right",
                f"{pair.right_both:,}",
                f"{pair.positive_flips:,} (positive flips)",
                f"{pair.right_both + pair.positive_flips:,}",
            ),
            (
                "teacher wrong",
                f"{pair.negative_flips:,} (negative flips)",
                f"{pair.wrong_both:,}",
                f"{pair.negative_flips + pair.wrong_both:,}",
            ),
            (
                "all",
                f"{pair.right_both + pair.negative_flips:,}",
                f"{pair.positive_flips + pair.wrong_both:,}",
                f"{pair.n_samples:,}",
            ),
        ),
    )


def _classes_intro(counts: ClassCounts) -> str:
    total = int(counts.positive.sum())
    if not total:
        return "The student is right wherever the teacher is: there is no positive flip."
    shares = [f"{p} % in {len(top_classes(counts.positive, p)):,}" for p in class_figures.TOP_P]
    return f"{total:,} positive flips; of all of them {', '.join(shares)} classes."


def _classes(records: list[ClassFlips], counts: ClassCounts) -> list[Plot | Table]:
    q_values = class_q_values(counts)
    shown = [one.model_copy(update={"class_name": plain(one.class_name)}) for one in records]
    q_by_class = {one.class_index: float(q_values[one.class_index]) for one in records}
    rows = [
        (
            one.class_name,
            f"{one.n_samples:,}",
            f"{one.positive_flips:,}",
            formats.percent(one.positive_flip_share, 1),
            f"{one.negative_flips:,}",
            formats.p_value(q_by_class[one.class_index]),
        )
        for one in records[:MOST_CLASSES]
    ]
    more = f" The first {MOST_CLASSES} of {len(records):,} classes." if len(records) > MOST_CLASSES else ""
    return [
        plot(
            "Flips by class, the largest share of positive flips first",
            "Dashed lines: the few classes that hold so much of all positive flips.",
            lambda scheme: class_figures.histogram(shown, counts.positive, scheme, q_by_class),
            wide=True,
            height=430,
        ),
        Table(
            ("class", "samples", "positive flips", "share", "negative flips", "q"),
            rows,
            "q: McNemar's p-value of the class, adjusted for listing all classes (Benjamini and Hochberg)." + more,
        ),
    ]


def _galleries(
    settings: Settings, store: Store, pair: PairDetail, records: list[ClassFlips], names: list[str]
) -> list[Gallery | Text]:
    with store.read() as connection:
        fingerprint = catalog.get_dataset(connection, pair.dataset).splits[pair.split].fingerprint

    def gallery(kind: str, one: ClassFlips | None, most: int, title: str) -> Gallery | None:
        page = flipped.samples(
            store,
            settings,
            pair.teacher,
            pair.student,
            dataset=pair.dataset,
            split=pair.split,
            kind=kind,
            class_index=None if one is None else one.class_index,
            limit=most,
        )
        pictures = [_picture(settings, fingerprint, sample, names) for sample in page.items]
        return Gallery(title, pictures) if pictures else None

    by_flips = sorted(records, key=lambda one: (-one.positive_flips, one.class_index))
    found = [
        gallery(
            "positive", one, A_CLASS, f"Only the teacher is right: {one.class_name} ({one.positive_flips:,} samples)"
        )
        for one in by_flips[:GALLERY_CLASSES]
        if one.positive_flips
    ]
    found.append(gallery("negative", None, 2 * A_CLASS, f"Only the student is right ({pair.negative_flips:,} samples)"))
    shown = [one for one in found if one is not None]
    return [*shown] if shown else [Text("The two models are right on exactly the same samples.")]


def _picture(settings: Settings, fingerprint: str, sample: FlippedSample, names: list[str]) -> Picture:
    jpeg = thumbnail(settings, fingerprint, sample.sample_id)
    image = None if jpeg is None else f"data:{MEDIA_TYPE};base64,{base64.b64encode(jpeg).decode('ascii')}"

    def said(who: str, top1: int, p: float | None) -> str:
        name = names[top1] if 0 <= top1 < len(names) else str(top1)
        return f"{who}: {name}" + ("" if p is None else f" ({100 * p:.0f} %)")

    lines = (
        said("teacher", sample.teacher_top1, sample.teacher_p_top1),
        said("student", sample.student_top1, sample.student_p_top1),
        f"id {sample.sample_id}",
    )
    return Picture(names[sample.label], lines, image)


def _transfers_intro(pair: PairDetail) -> str:
    return (
        f"Training {pair.student} with {pair.teacher} as (one of) its teachers on {pair.dataset}, the newest first. "
        "Δ is accuracy after − before = gain − loss."
    )


def _transfers(jobs: list[Job], teacher: str, student: str) -> list[Any]:
    if not jobs:
        command = f"zoograft transfer --teacher {teacher} --student {student} --dataset … --method kl_dp"
        return [Text("None has finished yet. Start one:"), Text(command, code=True)]
    results = [(job, _result(job)) for job in jobs]
    lines = [
        Line(
            plain(_label(job)),
            result.transfer_delta,
            result.transfer_delta_low,
            result.transfer_delta_high,
            result.control_delta,
        )
        for job, result in results[:20]
    ]
    blocks: list[Any] = [
        plot(
            "Δ of every transfer",
            "Bars hold 95 %; the newest twenty.",
            lambda scheme: forest(lines, "Δ transfer (pp)", scheme),
            wide=True,
            height=130 + 34 * len(lines),
        )
    ]
    for job, result in results[:MOST_CURVES]:
        epochs = [one.model_dump() for one in result.epochs]
        if epochs:
            blocks.append(
                plot(
                    _label(job),
                    f"Gain, loss and Δ over the epochs; job {job.id}.",
                    lambda scheme, epochs=epochs: curves.epochs(epochs, (), scheme),  # type: ignore[misc]
                    height=320,
                )
            )
    rows = [
        (
            _label(job),
            formats.moment(job.finished_at),
            formats.percent(result.student_accuracy_before),
            formats.percent(result.student_accuracy_after),
            f"{formats.signed_percent(result.transfer_delta)} "
            f"({points(result.transfer_delta_low, result.transfer_delta_high)})",
            formats.signed_percent(result.control_delta),
            formats.percent(result.knowledge_gain),
            formats.percent(result.knowledge_loss),
            formats.percent(result.transfer_rate.get(100), 1),
            str(job.id),
        )
        for job, result in results
    ]
    head = ("method", "finished (UTC)", "before", "after", "Δ", "control Δ", "gain", "loss", "rate", "job")
    blocks.append(
        Table(
            head,
            rows,
            "Δ with its 95 % interval. rate: share of all initial positive flips that the student got right.",
        )
    )
    return blocks


def points(low: float, high: float, digits: int = 2) -> str:
    """An interval of a difference, in percentage points."""
    return f"{100 * low:+.{digits}f} to {100 * high:+.{digits}f}".replace("-", "−")


def _label(job: Job) -> str:
    method = job.spec["method"]
    parts = [method["method"], *([str(method["partition"])] if method.get("partition") else [])]
    teachers = job.spec.get("teachers", ())
    if len(teachers) > 1:
        parts += [str(method.get("multi", "")), f"from {' + '.join(teachers)}"]
    return f"{' '.join(parts)}, seed {method.get('seed', 0)}"


def _result(job: Job) -> TransferResult:
    """The numbers of a transfer's result; what the job says beside them is left out."""
    known = {name: value for name, value in (job.result or {}).items() if name in TransferResult.model_fields}
    return TransferResult.model_validate(known)


def _versions(jobs: list[Job]) -> list[tuple[str, str]]:
    found: dict[str, set[str]] = {}
    for job in jobs:
        for name, version in ((job.result or {}).get("provenance") or {}).get("versions", {}).items():
            found.setdefault(name, set()).add(str(version))
    return [(f"version of {name}", ", ".join(sorted(versions))) for name, versions in sorted(found.items())]
