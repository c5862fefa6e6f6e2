"""Whether what a spec names exists: models, data sets and splits, told before anything is queued, by the spec's field.

One checker a field name, because every kind of job uses the field's words (`student`, `teachers`, `dataset`, `split`).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection

from backend.domain.errors import BadInput
from backend.store import catalog

# Kinds that only read predictions, so that external models and data sets will do.
NEEDS_NO_IMAGES = frozenset({"flips", "sync", "register", "sleep", "study"})


@dataclass(frozen=True)
class Promised:
    """Names that jobs further up the line will have saved by the time they are needed."""

    models: frozenset[str] = frozenset()
    datasets: frozenset[str] = frozenset()

    def __or__(self, other: Promised) -> Promised:
        return Promised(self.models | other.models, self.datasets | other.datasets)


def promised_by(specs: Iterable[tuple[str, Mapping[str, Any]]]) -> Promised:
    """What jobs of these kinds and specs will add to the catalog."""
    models: set[str] = set()
    datasets: set[str] = set()
    for kind, spec in specs:
        if spec.get("save_as"):
            models.add(str(spec["save_as"]))
        if kind == "register":
            for names, part in ((models, spec.get("model")), (datasets, spec.get("dataset"))):
                if part:
                    names.add(str(part["name"]))
    return Promised(frozenset(models), frozenset(datasets))


def check_references(connection: Connection, kind: str, spec: BaseModel, promised: Promised) -> None:
    """Check every name in a spec.

    Raises:
        NotFound, BadInput: `field` is where in the spec, such as `spec.student`.
    """
    if kind == "register":
        return
    for name, check in CHECKERS.items():
        value = getattr(spec, name, None)
        if name not in type(spec).model_fields or (value is None and name not in MATTERS_WHEN_LEFT_OUT):
            continue
        try:
            check(connection, kind, spec, value, promised)
        except BadInput as error:
            error.field = f"spec.{name}"
            raise


def _model(connection: Connection, kind: str, spec: BaseModel, name: str, promised: Promised) -> None:
    if name in promised.models:
        return
    model = catalog.get_model(connection, name)
    if not model.runnable and kind not in NEEDS_NO_IMAGES:
        raise BadInput("model", name, "a model that can be run; of this one only predictions were imported")


def _models(connection: Connection, kind: str, spec: BaseModel, names: Iterable[str], promised: Promised) -> None:
    for name in names:
        _model(connection, kind, spec, name, promised)


def _patterns(connection: Connection, kind: str, spec: BaseModel, patterns: Iterable[str], promised: Promised) -> None:
    unmet = [pattern for pattern in patterns if not fnmatch.filter(promised.models, pattern)]
    if not unmet:
        return
    found = catalog.find_models(connection, unmet)
    exact = {model.name: model for model in found}
    for pattern in unmet:
        if pattern in exact:
            _model(connection, kind, spec, pattern, promised)
    if not any(model.runnable for model in found) and kind not in NEEDS_NO_IMAGES:
        raise BadInput("models", unmet[0], "a model that can be run; of these only predictions were imported")


def _dataset(connection: Connection, kind: str, spec: BaseModel, name: str, promised: Promised) -> None:
    if name in promised.datasets:
        return
    dataset = catalog.get_dataset(connection, name)
    if dataset.source == "external" and kind not in NEEDS_NO_IMAGES:
        raise BadInput("dataset", name, "a data set with images; of this one only predictions were imported")


def _downstream(connection: Connection, kind: str, spec: BaseModel, sources: Iterable[Any], promised: Promised) -> None:
    """Catalogued ones; those of segmentation and detection are folders, which the worker knows."""
    for source in sources:
        if source.task == "classification":
            _dataset(connection, kind, spec, source.dataset, promised)


def _split(connection: Connection, kind: str, spec: BaseModel, wanted: str | None, promised: Promised) -> None:
    name = getattr(spec, "dataset", None)
    if name is not None and name not in promised.datasets:
        catalog.get_dataset(connection, name).evaluation_split(wanted)


def _train_split(connection: Connection, kind: str, spec: BaseModel, wanted: str | None, promised: Promised) -> None:
    name = getattr(spec, "dataset", None)
    if name is not None and name not in promised.datasets:
        catalog.get_dataset(connection, name).training_split(wanted)


Checker = Callable[[Connection, str, BaseModel, Any, Promised], None]
CHECKERS: dict[str, Checker] = {
    "models": _patterns,
    "model": _model,
    "teacher": _model,
    "teachers": _models,
    "student": _model,
    "dataset": _dataset,
    "downstream": _downstream,
    "train_split": _train_split,
    "split": _split,
}
# Left out, these mean "the obvious one", and a data set may have none that is obvious.
MATTERS_WHEN_LEFT_OUT = frozenset({"train_split", "split"})
