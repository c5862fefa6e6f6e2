"""One pass over a split: decode once, score every model of one preprocessing, commit part by part."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from backend.domain.catalog import Model, Preprocessing
from backend.domain.datasets import Dataset
from backend.domain.errors import BadInput
from backend.domain.label_spaces import label_space
from backend.prediction_files import Predictions, concatenate
from backend.store import artifacts
from workers.inputs.images import Images
from workers.inputs.label_spaces import head_outputs
from workers.inputs.loading import Decoded, Decoder, Look
from workers.inputs.models import build, count_parameters, hash_weights
from workers.inputs.transforms import EvalTransform, Normalizer
from workers.scan_parts import PART_SAMPLES, Part, Parts
from workers.science.predict import NonFiniteLogits, Scores, forward, score_logits

_SHARE_OF_MEMORY = 0.5


@dataclass(eq=False)
class Entrant:
    """A model that takes part in a pass: built, on its device, with the meaning of its outputs."""

    model: Model
    module: nn.Module
    outputs: list[int] | None
    weights_hash: str
    param_count: int
    key: str = ""
    failure: str | None = None
    images_per_s: float | None = None
    parts: Parts | None = None

    @property
    def inexpressible(self) -> list[int]:
        """Classes of the data set's space that the head has no output for."""
        return [c for c, output in enumerate(self.outputs or ()) if output < 0]


@dataclass(frozen=True, eq=False)
class Merged:
    """All parts of one model, and where their files are."""

    predictions: Predictions
    bad: dict[str, str]
    uri: str
    sha256: str
    logits_uri: str | None = None


@dataclass
class ScanPass:
    """Scores models of one preprocessing on the samples at `indices`.

    Args:
        threads: Of the decoder; 0 means one for each processor.
        look: Shown every picture (see `Decoder`).
    """

    images: Images
    indices: npt.NDArray[np.int64]
    device: str
    amp: bool
    batch_size: int
    threads: int
    artifacts_url: str
    keep_logits: bool = False
    look: Look | None = None
    _labels: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._labels = torch.from_numpy(self.images.labels)
        self.threads = self.threads or len(os.sched_getaffinity(0))

    @property
    def n_parts(self) -> int:
        return -(-len(self.indices) // PART_SAMPLES)

    def admit(self, model: Model, dataset: Dataset) -> Entrant:
        """Build a model and see that its outputs mean classes of this data set.

        Raises:
            BadInput: it cannot be built, its weights are not those that were added, or its classes do not fit.
        """
        outputs = outputs_for(model, dataset)
        module = build(model)
        weights_hash = hash_weights(module)
        if model.weights_hash is not None and weights_hash != model.weights_hash:
            raise BadInput(
                "checkpoint", model.checkpoint or model.name, "weights that did not change since it was added"
            )
        return Entrant(model, module.to(self.device), outputs, weights_hash, count_parameters(module))

    def has_room(self, entrants: Sequence[Entrant], model: Model) -> bool:
        """Whether one more model fits beside those: parameters may take half of what memory was free."""
        needed = 4 * (model.param_count or 100_000_000)
        if self.device.startswith("cuda"):
            return needed < _SHARE_OF_MEMORY * torch.cuda.mem_get_info(self.device)[0]
        return needed < _SHARE_OF_MEMORY * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def score(self, entrants: Sequence[Entrant]) -> Iterator[tuple[int, float, float]]:
        """Run the pass; after every batch (scored so far in samples × models, images/s, seconds left).

        A model that fails gets its `failure` and is left out from there on.
        """
        if not entrants:
            return
        for entrant in entrants:
            entrant.parts = Parts(self.artifacts_url, entrant.key, with_logits=self.keep_logits)
        preprocessing = entrants[0].model.preprocessing or Preprocessing()
        normalize = Normalizer(preprocessing, self.device)
        began, decoded_images, scored = time.perf_counter(), 0, 0
        total = len(self.indices) * len(entrants)
        decoder = Decoder(
            self.images,
            EvalTransform(preprocessing),
            threads=self.threads,
            batch_size=self.batch_size,
            pin_memory=self.device.startswith("cuda"),
            look=self.look,
        )
        with decoder:
            for number in range(self.n_parts):
                chosen = self.indices[number * PART_SAMPLES : (number + 1) * PART_SAMPLES]
                ids = [self.images.sample_ids[int(i)] for i in chosen]
                pending = [one for one in entrants if one.failure is None and one.parts.find(number, ids) is None]  # type: ignore[union-attr]
                scored += len(chosen) * (len(entrants) - len(pending))
                if not pending:
                    continue
                gathered = {id(one): _Gathered(self.keep_logits) for one in pending}
                bad: dict[int, str] = {}
                for batch in decoder.batches(chosen):
                    bad |= batch.bad
                    self._score_batch([one for one in pending if one.failure is None], batch, normalize, gathered)
                    decoded_images += len(batch) + len(batch.bad)
                    scored += (len(batch) + len(batch.bad)) * len(pending)
                    rate = decoded_images / (time.perf_counter() - began)
                    yield scored, rate, (total - scored) / max(rate * len(pending), 1e-9)
                reasons = {self.images.sample_ids[i]: reason for i, reason in bad.items()}
                for one in pending:
                    if one.failure is None and one.parts is not None:
                        one.parts.commit(number, gathered[id(one)].part(self.images, reasons), ids)
        elapsed_s = time.perf_counter() - began
        for one in entrants:
            one.images_per_s = decoded_images / elapsed_s if decoded_images else None

    def merge(self, entrant: Entrant, scratch: Path) -> Merged:
        """Put the parts of a finished model together into one file (and one of logits)."""
        assert entrant.parts is not None
        predictions: list[Predictions] = []
        bad: dict[str, str] = {}
        logits: list[npt.NDArray[np.float32]] = []
        for number in range(self.n_parts):
            chosen = self.indices[number * PART_SAMPLES : (number + 1) * PART_SAMPLES]
            part = entrant.parts.find(number, [self.images.sample_ids[int(i)] for i in chosen])
            if part is None:
                raise OSError(f"part {number} of {entrant.model.name} vanished while it was being scanned")
            predictions.append(part.predictions)
            bad |= part.bad
            if part.logits is not None:
                logits.append(part.logits)
        merged = concatenate(predictions)
        base, place = self.artifacts_url, f"predictions/{entrant.key}"
        uri, _, sha256 = artifacts.put(base, f"{place}.parquet", merged.to_parquet())
        logits_uri = None
        if self.keep_logits:
            path = scratch / f"{uuid4().hex}.npy"
            try:
                np.save(path, np.concatenate(logits), allow_pickle=False)
                logits_uri, _, _ = artifacts.put(base, f"{place}.logits.npy", path)
            finally:
                path.unlink(missing_ok=True)
        return Merged(merged, bad, uri, sha256, logits_uri)

    def clear(self, entrant: Entrant) -> None:
        """Forget the parts of a model whose evaluation was stored, and the model itself."""
        if entrant.parts is not None:
            entrant.parts.clear(self.n_parts)
        entrant.module = nn.Identity()

    def _score_batch(
        self, entrants: Sequence[Entrant], batch: Decoded, normalize: Normalizer, gathered: dict[int, _Gathered]
    ) -> None:
        if not len(batch) or not entrants:
            return
        labels = self._labels[torch.from_numpy(batch.positions)]
        prepared = normalize(batch.pixels)
        for entrant in entrants:
            try:
                logits = forward(entrant.module, prepared, amp=self.amp)
                expected = len(batch), entrant.model.num_classes or logits.shape[-1]
                if tuple(logits.shape) != expected:
                    raise BadInput("logits", tuple(logits.shape), f"{expected}")
                gathered[id(entrant)].add(
                    batch.positions, score_logits(logits, labels.to(logits.device), entrant.outputs)
                )
            except NonFiniteLogits as error:
                sample_id = self.images.sample_ids[int(batch.positions[error.row])]
                entrant.failure = f"{error} (sample {sample_id})"
            except Exception as error:  # a model's own code: one that fails is a row, not the end of a scan
                first = (str(error).strip().splitlines() or [""])[0]
                oom = isinstance(error, torch.OutOfMemoryError)
                entrant.failure = f"{'cuda_oom' if oom else type(error).__name__}: {first}"
            if entrant.failure is not None:
                entrant.module = nn.Identity()


class _Gathered:
    """The scores of one part of one model, batch after batch."""

    def __init__(self, keep_logits: bool) -> None:
        self._keep_logits = keep_logits
        self._positions: list[npt.NDArray[np.int64]] = []
        self._scores: list[Scores] = []

    def add(self, positions: npt.NDArray[np.int64], scores: Scores) -> None:
        kept = scores.logits if self._keep_logits else scores.logits[:0]
        columns = (scores.top1, scores.p_top1, scores.p_label, scores.top5, scores.p_top5, kept)
        self._positions.append(positions)
        self._scores.append(Scores(*(column.cpu() for column in columns)))

    def part(self, images: Images, bad: dict[str, str]) -> Part:
        if not self._scores:
            nothing = np.zeros(0, dtype=np.int64)
            logits = np.zeros((0, len(images.class_names)), dtype=np.float32) if self._keep_logits else None
            return Part(Predictions(np.array([], dtype=np.str_), nothing, nothing), bad, logits)
        positions = np.concatenate(self._positions)

        def column(name: str) -> npt.NDArray[np.float32]:
            return torch.cat([getattr(scores, name) for scores in self._scores]).numpy()

        predictions = Predictions(
            np.array([images.sample_ids[int(i)] for i in positions], dtype=np.str_),
            images.labels[positions],
            column("top1").astype(np.int64),
            column("p_top1"),
            column("p_label"),
            column("top5").astype(np.int64),
            column("p_top5"),
        )
        return Part(predictions, bad, column("logits") if self._keep_logits else None)


def outputs_for(model: Model, dataset: Dataset) -> list[int] | None:
    """Which output expresses each class of the data set's space; None where the head speaks that space itself.

    Raises:
        BadInput: the spaces are not both named and the numbers of classes differ, or they share no class.
    """
    head, space = model.label_space, dataset.label_space
    if head is None or space is None or head == space:
        if model.num_classes != dataset.n_classes:
            hint = "" if space is not None else "; name the label spaces of both, where classes can be matched"
            raise BadInput(
                "num_classes", model.num_classes, f"{dataset.n_classes} classes, as {dataset.name!r} has{hint}"
            )
        return None
    outputs = head_outputs(label_space(head), label_space(space))
    if all(output < 0 for output in outputs):
        raise BadInput("label_space", head, f"a head that knows at least one class of {space}")
    return outputs


def dtype_name(amp: bool) -> str:
    return "bfloat16" if amp else "float32"
