"""Models, data sets, evaluations, and the parameters of every method."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel
from starlette.responses import Response

from backend.api.deps import (
    Caller,
    Cursor,
    DatasetName,
    NameFilter,
    PageLimit,
    PathId,
    PathName,
    Serving,
    SplitName,
    json_of,
)
from backend.api.routes.jobs import IdempotencyKey, submitted
from backend.domain.catalog import Family, Model, ModelSpec
from backend.domain.datasets import Dataset, DatasetSpec
from backend.domain.errors import NotFound
from backend.domain.evaluations import Evaluation
from backend.domain.jobs import Job
from backend.domain.methods import METHODS
from backend.store import catalog as catalog_store
from backend.store.queries import catalog as queries
from backend.store.queries.paging import Page

router = APIRouter(tags=["catalog"])

ModelSort = Literal["name", "-name", "param_count", "-param_count", "created_at", "-created_at"]
EvaluationSort = Literal["created_at", "-created_at", "accuracy", "-accuracy", "n_samples", "-n_samples"]
ACCEPTED: dict[int | str, dict[str, Any]] = {
    200: {"model": Job, "description": "The job that the same Idempotency-Key started before"},
    202: {"model": Job, "description": "The job that checks the entry"},
}


class Method(BaseModel):
    """A transfer method, how many teachers it takes, and the JSON schema of its parameters."""

    name: str
    summary: str
    min_teachers: int
    max_teachers: int | None
    needs_labels: bool
    parameters: dict[str, Any]


@router.get("/models", response_model=Page[Model])
def list_models(
    serving: Serving,
    name: NameFilter = None,
    family: Family | None = None,
    source: Literal["timm", "factory", "external"] | None = None,
    sort: ModelSort = "name",
    limit: PageLimit = 50,
    cursor: Cursor = None,
) -> Response:
    """Zoo entries; `name` is a pattern (`resnet*`) or a part of the name."""
    with serving.store.read() as connection:
        page = queries.models(
            connection, name=name, family=family, source=source, sort=sort, limit=limit, cursor=cursor
        )
    return json_of(page)


@router.get("/models/{name}", response_model=Model)
def show_model(serving: Serving, name: PathName) -> Response:
    """One zoo entry."""
    with serving.store.read() as connection:
        return json_of(catalog_store.get_model(connection, name))


@router.post("/models", response_model=Job, status_code=202, responses=ACCEPTED)
def add_model(serving: Serving, caller: Caller, model: ModelSpec, idempotency_key: IdempotencyKey = None) -> Response:
    """Add a model: a job builds it once and catalogs it."""
    spec = {"model": model.model_dump(mode="json", exclude_unset=True)}
    return submitted(serving, caller, "register", spec, idempotency_key=idempotency_key)


@router.get("/datasets", response_model=Page[Dataset])
def list_datasets(serving: Serving, limit: PageLimit = 50, cursor: Cursor = None) -> Response:
    """Data sets by name."""
    with serving.store.read() as connection:
        return json_of(queries.datasets(connection, limit=limit, cursor=cursor))


@router.get("/datasets/{name}", response_model=Dataset)
def show_dataset(serving: Serving, name: PathName) -> Response:
    """One data set with its class names and splits."""
    with serving.store.read() as connection:
        return json_of(catalog_store.get_dataset(connection, name))


@router.post("/datasets", response_model=Job, status_code=202, responses=ACCEPTED)
def add_dataset(
    serving: Serving, caller: Caller, dataset: DatasetSpec, idempotency_key: IdempotencyKey = None
) -> Response:
    """Add a data set: a job reads it once and catalogs it."""
    spec = {"dataset": dataset.model_dump(mode="json", exclude_unset=True)}
    return submitted(serving, caller, "register", spec, idempotency_key=idempotency_key)


@router.get(
    "/datasets/{name}/splits/{split}/thumbnails/{sample_id:path}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}, "description": "A small picture of the sample"}},
)
def show_thumbnail(
    serving: Serving, name: PathName, split: PathName, sample_id: Annotated[str, Path(max_length=4096)]
) -> Response:
    """The picture of one sample, packed by the first scan. Only ids of the split are looked up, never a path."""
    from backend.thumbnails import MEDIA_TYPE, thumbnail

    with serving.store.read() as connection:
        dataset = catalog_store.get_dataset(connection, name)
    if split not in dataset.splits:
        raise NotFound("split", split, f"{name} has the splits {', '.join(sorted(dataset.splits))}")
    picture = thumbnail(serving.settings, dataset.splits[split].fingerprint, sample_id)
    if picture is None:
        raise NotFound("thumbnail", sample_id, "a scan packs the pictures of the samples that it decodes")
    return Response(picture, media_type=MEDIA_TYPE, headers={"Cache-Control": "private, max-age=3600"})


@router.get("/evaluations", response_model=Page[Evaluation])
def list_evaluations(
    serving: Serving,
    model: NameFilter = None,
    dataset: DatasetName = None,
    split: SplitName = None,
    state: Literal["ready", "failed"] | None = None,
    sort: EvaluationSort = "-created_at",
    limit: PageLimit = 50,
    cursor: Cursor = None,
) -> Response:
    """Accuracy of a model on a data set, one row a run; failed models carry their reason."""
    with serving.store.read() as connection:
        page = queries.evaluations(
            connection, model=model, dataset=dataset, split=split, state=state, sort=sort, limit=limit, cursor=cursor
        )
    return json_of(page)


@router.get("/evaluations/{id}", response_model=Evaluation)
def show_evaluation(serving: Serving, id: PathId) -> Response:
    """One accuracy row."""
    with serving.store.read() as connection:
        return json_of(queries.evaluation(connection, id))


@router.get("/methods", response_model=Page[Method])
def list_methods() -> Response:
    """Every transfer method with the JSON schema of its parameters, as forms need it."""
    items = tuple(
        Method(
            name=name,
            summary=(params.__doc__ or "").strip(),
            min_teachers=params.min_teachers,
            max_teachers=params.max_teachers,
            needs_labels=params.needs_labels,
            parameters=params.model_json_schema(),
        )
        for name, params in METHODS.items()
    )
    return json_of(Page(items=items))
