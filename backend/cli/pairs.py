"""`zoograft pairs` and `zoograft classes`: what a teacher knows that a student does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli.opening import open_store
from backend.cli.output import Json, Limit, note, pages, percent, print_items, print_table, write_csv
from backend.domain.errors import BadInput

if TYPE_CHECKING:
    from backend.domain.pairs import TopClasses

Csv = Annotated[Path | None, typer.Option("--csv", help="Write a CSV with REST's columns here (-: stdout).")]


def register(app: typer.Typer) -> None:
    app.command("pairs")(list_pairs)
    app.command("classes")(list_classes)


def list_pairs(
    dataset: Annotated[str | None, typer.Option(help="Only on this data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Only on this split.")] = None,
    teacher: Annotated[str | None, typer.Option(help="A name or a pattern.")] = None,
    student: Annotated[str | None, typer.Option(help="A name or a pattern.")] = None,
    sort: Annotated[
        str,
        typer.Option(
            help="positive_flip_rate, negative_flip_rate, accuracy_difference, flip_entropy_nats, teacher_accuracy, "
            "student_accuracy, mcnemar_p_value or n_samples; a leading - turns it round."
        ),
    ] = "-positive_flip_rate",
    limit: Limit = None,
    csv: Csv = None,
    json: Json = False,
) -> None:
    """List ordered pairs, the ones with the most positive flips first.

    A positive flip: the teacher is right where the student is wrong. Percent here; --json and --csv have fractions
    with their 95 % intervals.
    """
    from backend.domain.pairs import Pair
    from backend.store.queries import pairs as queries

    def fetch(size: int, cursor: str | None) -> Any:
        with store.read() as connection:
            return queries.pairs(
                connection,
                dataset=dataset,
                split=split,
                teacher=teacher,
                student=student,
                sort=sort,
                limit=size,
                cursor=cursor,
            )

    with open_store() as (_, store):
        items = pages(fetch, limit)
        if csv is not None:
            columns = list(Pair.model_fields)
            written = write_csv(csv, columns, (item.model_dump(mode="json") for item in items))
            note(f"{written} pairs written to {csv}")
            return
        if json:
            print_items(items)
            return
        rows = [
            (
                pair.teacher,
                pair.student,
                f"{pair.dataset}/{pair.split}",
                percent(pair.positive_flip_rate),
                percent(pair.negative_flip_rate),
                percent(pair.accuracy_difference),
                f"{pair.flip_entropy_nats:.3f}",
                f"{pair.mcnemar_p_value:.2g}",
                pair.n_samples,
            )
            for pair in items
        ]
    columns = ("teacher", "student", "data set", "positive", "negative", "difference", "entropy", "p", "samples")
    print_table(columns, rows)
    if not rows:
        note("no pairs yet: zoograft scan --models '*' --dataset NAME, with two models or more")


def list_classes(
    teacher: Annotated[str, typer.Option(help="Who knows something.")],
    student: Annotated[str, typer.Option(help="Who may not.")],
    dataset: Annotated[str | None, typer.Option(help="The only one they share may be left out.")] = None,
    split: Annotated[str | None, typer.Option(help="The only one, else val, else test.")] = None,
    top_p: Annotated[
        str | None,
        typer.Option("--top-p", help="The fewest classes with so many % of the positive flips: 2,5,20,50."),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="An npz file with a vector a class: how alike are they? Default: the one in the data folder."
        ),
    ] = None,
    limit: Limit = None,
    csv: Csv = None,
    json: Json = False,
) -> None:
    """List the flips of one pair class by class, the class with the largest share of positive flips first.

    zoograft classes --teacher T --student S --top-p 2,5,20,50 --embeddings clip.npz
    """
    from backend.domain.pairs import ClassFlips, TopClasses
    from backend.domain.transfers import TOP_P
    from backend.store.queries import flipped as queries

    if top_p is not None or embeddings is not None:
        shares = percentages(top_p or ",".join(map(str, TOP_P)))
        with open_store() as (settings, store):
            tops = queries.top_classes(
                store, settings, teacher, student, shares, embeddings=embeddings, dataset=dataset, split=split
            )
        if csv is not None:
            written = write_csv(csv, list(TopClasses.model_fields), (_flat(one) for one in tops))
            note(f"{written} rows written to {csv}")
        elif json:
            print_items(tops)
        else:
            _print_tops(tops)
        return
    with open_store() as (settings, store):
        items = queries.classes(store, settings, teacher, student, dataset=dataset, split=split)[:limit]
    if csv is not None:
        written = write_csv(csv, list(ClassFlips.model_fields), (item.model_dump(mode="json") for item in items))
        note(f"{written} classes written to {csv}")
    elif json:
        print_items(items)
    else:
        print_table(
            ("class", "name", "samples", "positive", "negative", "share"),
            (
                (
                    c.class_index,
                    c.class_name,
                    c.n_samples,
                    c.positive_flips,
                    c.negative_flips,
                    percent(c.positive_flip_share),
                )
                for c in items
            ),
        )


def percentages(text: str) -> list[float]:
    """`2,5,20` → [2, 5, 20].

    Raises:
        BadInput: no number, or one outside (0, 100].
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < p <= 100 for p in found):
        raise BadInput("--top-p", text, "percentages above 0, at most 100, by commas: 2,5,20,50")
    return found


def _flat(one: TopClasses) -> dict[str, Any]:
    values = one.model_dump(mode="json")
    return {name: ";".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}


def _print_tops(tops: Sequence[TopClasses]) -> None:
    print_table(
        ("top", "classes", "flips", "with a vector", "mean cosine", "of all classes", "more alike by", "first classes"),
        (
            (
                f"{one.p:g} %",
                one.n_classes,
                f"{one.n_flips} of {one.n_flips_all}",
                "" if one.n_covered is None else f"{one.n_covered} of {one.n_classes}",
                "" if one.mean_cosine is None else f"{one.mean_cosine:.4f}",
                "" if one.mean_cosine_all is None else f"{one.mean_cosine_all:.4f}",
                "" if one.relative_similarity is None else f"{100 * one.relative_similarity:+.1f} %",
                ", ".join(one.class_names[:3]),
            )
            for one in tops
        ),
    )
    if tops and tops[0].n_covered_all is not None:
        note(f"{tops[0].n_covered_all} classes have a vector; the others are left out of every mean")
