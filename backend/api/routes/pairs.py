"""Pairs: the list, one pair with intervals, its classes and its samples."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from backend.api.deps import Cursor, DatasetName, NameFilter, PageLimit, PathName, Serving, SplitName, json_of
from backend.domain.pairs import ClassFlips, FlippedSample, Pair, PairDetail, TopClasses
from backend.domain.transfers import TOP_P
from backend.store.queries import flipped
from backend.store.queries import pairs as queries
from backend.store.queries.paging import Page, decode_cursor, encode_cursor

router = APIRouter(tags=["pairs"])

PairSort = Literal[tuple(sign + name for name in queries.SORTS for sign in ("-", ""))]  # type: ignore[valid-type]
Bound = Annotated[float | None, Query(allow_inf_nan=False)]


@router.get("/pairs", response_model=Page[Pair])
def list_pairs(
    serving: Serving,
    dataset: DatasetName = None,
    split: SplitName = None,
    teacher: NameFilter = None,
    student: NameFilter = None,
    sort: PairSort = "-positive_flip_rate",
    positive_flip_rate_min: Bound = None,
    positive_flip_rate_max: Bound = None,
    negative_flip_rate_min: Bound = None,
    negative_flip_rate_max: Bound = None,
    accuracy_difference_min: Bound = None,
    accuracy_difference_max: Bound = None,
    teacher_accuracy_min: Bound = None,
    teacher_accuracy_max: Bound = None,
    student_accuracy_min: Bound = None,
    student_accuracy_max: Bound = None,
    flip_entropy_nats_min: Bound = None,
    flip_entropy_nats_max: Bound = None,
    mcnemar_p_value_min: Bound = None,
    mcnemar_p_value_max: Bound = None,
    limit: PageLimit = 50,
    cursor: Cursor = None,
) -> Response:
    """Ordered pairs with 95 % intervals in closed form; `teacher` and `student` are names or patterns (`resnet*`)."""
    ranges = {
        "positive_flip_rate": (positive_flip_rate_min, positive_flip_rate_max),
        "negative_flip_rate": (negative_flip_rate_min, negative_flip_rate_max),
        "accuracy_difference": (accuracy_difference_min, accuracy_difference_max),
        "teacher_accuracy": (teacher_accuracy_min, teacher_accuracy_max),
        "student_accuracy": (student_accuracy_min, student_accuracy_max),
        "flip_entropy_nats": (flip_entropy_nats_min, flip_entropy_nats_max),
        "mcnemar_p_value": (mcnemar_p_value_min, mcnemar_p_value_max),
    }
    with serving.store.read() as connection:
        page = queries.pairs(
            connection,
            dataset=dataset,
            split=split,
            teacher=teacher,
            student=student,
            ranges=ranges,
            sort=sort,
            limit=limit,
            cursor=cursor,
        )
    return json_of(page)


@router.get("/pairs/{teacher}/{student}", response_model=PairDetail)
def show_pair(
    serving: Serving, teacher: PathName, student: PathName, dataset: DatasetName = None, split: SplitName = None
) -> Response:
    """One pair with intervals from 10,000 multinomial draws. The data set may be left out where the two share one."""
    with serving.store.read() as connection:
        return json_of(queries.pair(connection, teacher, student, dataset=dataset, split=split))


@router.get("/pairs/{teacher}/{student}/classes", response_model=Page[ClassFlips])
def list_classes(
    serving: Serving,
    teacher: PathName,
    student: PathName,
    dataset: DatasetName = None,
    split: SplitName = None,
    limit: PageLimit = 200,
    cursor: Cursor = None,
) -> Response:
    """Flips of one pair per class, the largest share of positive flips first; classes without a sample are left out."""
    items = flipped.classes(serving.store, serving.settings, teacher, student, dataset=dataset, split=split)
    query = ["classes", teacher, student, dataset, split]
    last = decode_cursor(query, cursor, (int,))
    start = min(max(last[0], 0), len(items)) if last else 0
    page = items[start : start + limit]
    more = start + limit < len(items)
    return json_of(Page(items=tuple(page), next_cursor=encode_cursor(query, [start + limit]) if more else None))


@router.get("/pairs/{teacher}/{student}/top-classes", response_model=Page[TopClasses])
def list_top_classes(
    serving: Serving,
    teacher: PathName,
    student: PathName,
    dataset: DatasetName = None,
    split: SplitName = None,
    p: Annotated[
        list[Annotated[float, Query(gt=0, le=100)]] | None, Query(max_length=20, description="percent; may be repeated")
    ] = None,
) -> Response:
    """The fewest classes that hold p % of the positive flips; how alike they are, where the data set has embeddings."""
    items = flipped.top_classes(
        serving.store, serving.settings, teacher, student, p or TOP_P, dataset=dataset, split=split
    )
    return json_of(Page(items=tuple(items), next_cursor=None))


@router.get("/pairs/{teacher}/{student}/samples", response_model=Page[FlippedSample])
def list_samples(
    serving: Serving,
    teacher: PathName,
    student: PathName,
    dataset: DatasetName = None,
    split: SplitName = None,
    kind: Annotated[flipped.SampleKind | None, Query(description="positive: only the teacher is right")] = None,
    class_: Annotated[
        int | None, Query(alias="class", ge=0, le=10**6, description="only samples of this class")
    ] = None,
    limit: PageLimit = 50,
    cursor: Cursor = None,
) -> Response:
    """Samples of one pair with both predictions."""
    page = flipped.samples(
        serving.store,
        serving.settings,
        teacher,
        student,
        dataset=dataset,
        split=split,
        kind=kind,
        class_index=class_,
        limit=limit,
        cursor=cursor,
    )
    return json_of(page)
