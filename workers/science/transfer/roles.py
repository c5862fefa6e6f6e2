"""Who takes part in a transfer, and what each says about a batch: computed, or read from the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from backend.domain.errors import BadInput
from workers.science.batch import Batch
from workers.science.preprocessed import Preprocessed, frozen, frozen_copy

FROZEN_STUDENT = "frozen_student"


@dataclass
class Roles:
    """The models of a transfer, each taking a view [B, 3, H, W] in [0, 1] (`Preprocessed`).

    Args:
        student: The model in training, as it is before the transfer: some objectives keep a copy, so a checkpoint is
            loaded into it only after the objective is built.
        teachers: By name, in the order ties are broken; None for one whose outputs every batch brings along.
        transfer_labels: [N], all labels of the transfer set (CRD draws its negatives by them).
    """

    student: nn.Module
    teachers: Mapping[str, nn.Module | None] = field(default_factory=dict)
    transfer_labels: Tensor | None = None


class FrozenModels:
    """Models that only answer: eval mode, no gradient, moved to the device and run only where a batch does not bring
    their outputs along."""

    def __init__(self, models: Mapping[str, nn.Module | None]) -> None:
        self._models = {name: None if model is None else frozen(model) for name, model in models.items()}
        self._device = torch.device("cpu")
        self._there: set[str] = set()

    @classmethod
    def of(cls, roles: Roles, *, teachers: bool = True, frozen_student: bool = False) -> FrozenModels:
        models = dict(roles.teachers) if teachers else {}
        if frozen_student:
            models[FROZEN_STUDENT] = frozen_copy(roles.student)
        return cls(models)

    def to(self, device: torch.device) -> None:
        self._device, self._there = device, set()

    @torch.no_grad()
    def logits(self, name: str, batch: Batch, student_logits: Tensor) -> Tensor:
        """[B, C] of the model `name` on the batch's view.

        Raises:
            BadInput: it has another number of outputs than the student, or cannot be run and is not cached.
        """
        logits: Tensor = batch.outputs[name] if name in batch.outputs else self._model(name)(batch.view)
        if logits.shape != student_logits.shape:
            raise BadInput(
                name, f"{logits.shape[-1]} outputs", f"as many as the student has, {student_logits.shape[-1]}"
            )
        return logits

    @torch.no_grad()
    def features(self, name: str, batch: Batch) -> Tensor:
        """[B, D] of the model `name`; cached under "<name>/features"."""
        key = f"{name}/features"
        return batch.outputs[key] if key in batch.outputs else with_features(self._model(name)).features(batch.view)

    def _model(self, name: str) -> nn.Module:
        model = self._models[name]
        if model is None:
            raise BadInput(name, "no cached outputs", "batches that bring its outputs along, or the model itself")
        if name not in self._there:
            model.to(self._device)
            self._there.add(name)
        return model


def with_features(model: nn.Module) -> Preprocessed:
    """The model, if it can give features.

    Raises:
        BadInput: it is not a `Preprocessed` model.
    """
    if not isinstance(model, Preprocessed):
        raise BadInput("model", type(model).__name__, "a Preprocessed model, which gives features")
    return model


def labels_of(batch: Batch, method: str) -> Tensor:
    """The batch's labels [B].

    Raises:
        BadInput: the transfer set has none.
    """
    if batch.labels is None:
        raise BadInput("labels", None, f"a labelled transfer set: {method} with these settings learns from labels")
    return batch.labels
