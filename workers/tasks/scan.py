"""Scan: models × a split → predictions, accuracies and the flips of every ordered pair.

Models of one preprocessing share one decoding. A model that was scored on the same samples before is not run again; one
that fails becomes a row with its reason and the others go on. Parts of 4,096 samples are committed one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from backend import thumbnails
from backend.domain.catalog import Model
from backend.domain.datasets import Dataset
from backend.domain.errors import ZoograftError
from backend.domain.evaluations import Evaluation, evaluation_key
from backend.domain.progress import Progress
from backend.domain.records import content_hash
from backend.domain.specs import ScanSpec
from backend.pairing import refresh_pairs
from backend.store import catalog, results
from backend.store.results import StoredEvaluation
from workers.inputs.datasets import open_split
from workers.inputs.decoding import BadImage
from workers.inputs.images import Images
from workers.lifecycle import RunningJob
from workers.scan_pass import Entrant, ScanPass, dtype_name
from workers.versions import versions


@dataclass
class _Outcome:
    """What the scan has to say at its end."""

    evaluated: list[Evaluation] = field(default_factory=list)
    cached: list[Evaluation] = field(default_factory=list)
    failed: list[Evaluation] = field(default_factory=list)


def run(job: RunningJob) -> dict[str, Any]:
    """Score what has no score yet, then count the pairs."""
    spec: ScanSpec = job.spec
    with job.store.read() as connection:
        found = catalog.find_models(connection, spec.models)
        dataset = catalog.get_dataset(connection, spec.dataset)
    split = dataset.evaluation_split(spec.split)
    models = [model for model in found if model.runnable or model.name in spec.models]
    images = open_split(dataset, split, job.settings)
    scan = _Scan(job, spec, dataset, split, images)
    scan.score(models)
    changed = [evaluation.model for evaluation in (*scan.outcome.evaluated, *scan.outcome.cached)]
    pairs = refresh_pairs(job.store, job.settings, dataset.name, split, changed=changed)
    if scan.outcome.failed and not changed:
        reasons = "; ".join(f"{one.model}: {one.reason}" for one in scan.outcome.failed[:5])
        raise ZoograftError(f"no model could be scored ({len(scan.outcome.failed)} failed: {reasons})")
    return scan.result(pairs)


class _Scan:
    def __init__(self, job: RunningJob, spec: ScanSpec, dataset: Dataset, split: str, images: Images) -> None:
        self.job, self.spec, self.dataset, self.split, self.images = job, spec, dataset, split, images
        self.indices: npt.NDArray[np.int64] = spec.subset.indices(images.labels)
        self.subset = "all" if len(self.indices) == len(images) else spec.subset.key
        self.outcome = _Outcome()
        self.fingerprint = dataset.splits[split].fingerprint
        self._packed = thumbnails.packed_ids(job.settings, self.fingerprint)
        self._jpegs: dict[str, bytes] = {}

    def score(self, models: list[Model]) -> None:
        waiting = [model for model in models if not (model.weights_hash is not None and self._cached(model))]
        groups: dict[str, list[Model]] = {}
        for model in waiting:
            groups.setdefault("" if model.preprocessing is None else model.preprocessing.key, []).append(model)
        total, done = len(waiting) * len(self.indices), 0
        if self.outcome.cached:
            self.job.log(f"{len(self.outcome.cached)} of {len(models)} models were scored on these samples before")
        for members in groups.values():
            scan_pass = ScanPass(
                self.images,
                self.indices,
                device=self.job.device,
                amp=self.spec.amp,
                batch_size=self.spec.batch_size,
                threads=self.job.loaders(self.spec.loaders),
                artifacts_url=self.job.settings.artifacts,
                keep_logits=self.spec.keep_logits,
                look=self._look,
            )
            left = list(members)
            while left:
                entrants, left = self._prepare(scan_pass, left)
                done += len(self.indices) * (len(members) - len(left) - len(entrants))
                for scored, rate, eta_s in scan_pass.score(entrants):
                    rest = total - done - scored
                    metrics = {"images_per_s": rate, "eta_s": eta_s + rest / max(rate * max(1, len(entrants)), 1e-9)}
                    self.job.record(
                        Progress(step=min(done + scored, total), total=total, unit="images", metrics=metrics)
                    )
                done += len(self.indices) * len(entrants)
                members = left
                for entrant in entrants:
                    self._finish(scan_pass, entrant)
        self._pack_thumbnails()

    def result(self, pairs: int) -> dict[str, Any]:
        def brief(one: Evaluation) -> dict[str, Any]:
            shown = {"model", "accuracy", "n_samples", "images_per_s", "inexpressible_classes"}
            return one.model_dump(mode="json", include=shown)

        outcome = self.outcome
        bad = sorted({name for one in (*outcome.evaluated, *outcome.cached) for name in one.bad_samples})
        return {
            "dataset": self.dataset.name,
            "split": self.split,
            "n_samples": len(self.indices),
            "evaluated": [brief(one) for one in outcome.evaluated],
            "cached": [brief(one) for one in outcome.cached],
            "failed": [{"model": one.model, "reason": one.reason} for one in outcome.failed],
            "bad_samples": bad,
            "pairs": pairs,
        }

    def _prepare(self, scan_pass: ScanPass, models: list[Model]) -> tuple[list[Entrant], list[Model]]:
        """Build as many of the models as fit into memory together; the others wait for the next pass."""
        entrants: list[Entrant] = []
        for position, model in enumerate(models):
            if entrants and not scan_pass.has_room(entrants, model):
                return entrants, models[position:]
            self.job.check()
            try:
                entrant = scan_pass.admit(model, self.dataset)
            except ZoograftError as error:
                self._fail(model, error.message)
                continue
            except Exception as error:  # a model's own code: one that cannot be built is a row, not the end of a scan
                self._fail(model, f"{type(error).__name__}: {error}")
                continue
            if model.weights_hash is None:
                with self.job.write() as connection:
                    catalog.set_weights_hash(connection, model.name, entrant.weights_hash, entrant.param_count)
                model = model.model_copy(update={"weights_hash": entrant.weights_hash})
                if self._cached(model):
                    continue
            entrant.key = self._key(model)
            entrants.append(entrant)
        return entrants, []

    def _key(self, model: Model) -> str:
        preprocessing = "" if model.preprocessing is None else model.preprocessing.key
        weights = model.weights_hash or [model.checkpoint, model.pretrained, model.init_seed]
        return evaluation_key(
            model_hash=content_hash(model.architecture, model.kwargs, weights, model.label_space),
            preprocessing_key=preprocessing,
            fingerprint=self.fingerprint,
            split=self.split,
            subset_key=self.subset,
            dtype=dtype_name(self.spec.amp),
        )

    def _cached(self, model: Model) -> bool:
        """Whether these very weights were scored on these samples, under this name or another."""
        key = self._key(model)
        with self.job.store.read() as connection:
            stored = results.find_evaluation(connection, key)
            own = stored if stored is not None and self._own(stored, model) else None
            if own is None:
                own = results.find_evaluation(connection, self._alias(key, model))
        usable = [one for one in (own, stored) if one is not None and self._usable(one)]
        if not usable:
            return False
        found = usable[0]
        if not self._own(found, model):
            copy = found.evaluation.model_copy(
                update={"id": uuid4(), "model": model.name, "dataset": self.dataset.name, "split": self.split}
            )
            with self.job.write() as connection:
                evaluation = results.record_evaluation(
                    connection,
                    copy,
                    key=self._alias(key, model),
                    predictions_uri=found.predictions_uri,
                    predictions_sha256=found.predictions_sha256,
                    logits_uri=found.logits_uri,
                    job_id=self.job.id,
                )
        else:
            evaluation = found.evaluation
        self.outcome.cached.append(evaluation)
        return True

    def _own(self, stored: StoredEvaluation, model: Model) -> bool:
        return stored.model == model.name and stored.evaluation.dataset == self.dataset.name

    def _alias(self, key: str, model: Model) -> str:
        """The key of a second name for the same content."""
        return content_hash(key, model.name, self.dataset.name)

    def _usable(self, stored: StoredEvaluation) -> bool:
        return stored.evaluation.state == "ready" and not (self.spec.keep_logits and stored.logits_uri is None)

    def _finish(self, scan_pass: ScanPass, entrant: Entrant) -> None:
        if entrant.failure is not None:
            self._fail(entrant.model, entrant.failure, key=entrant.key)
            return
        merged = scan_pass.merge(entrant, self.job.scratch)
        if not len(merged.predictions):
            first = next(iter(merged.bad.items()), ("", ""))
            self._fail(entrant.model, f"no sample could be read (first: {first[0]}: {first[1]})", key=entrant.key)
            return
        evaluation = self._evaluation(
            entrant.model,
            state="ready",
            accuracy=merged.predictions.accuracy,
            n_samples=len(merged.predictions),
            inexpressible_classes=len(entrant.inexpressible),
            bad_samples=tuple(sorted(merged.bad)),
            images_per_s=entrant.images_per_s,
            provenance=self._provenance(entrant.model)
            | {
                "weights_hash": entrant.weights_hash,
                "inexpressible": entrant.inexpressible,
                "bad_reasons": dict(list(merged.bad.items())[:1000]),
            },
        )
        with self.job.write() as connection:
            key = entrant.key
            there = results.find_evaluation(connection, key)
            if there is not None and not self._own(there, entrant.model):
                key = self._alias(key, entrant.model)
            stored = results.record_evaluation(
                connection,
                evaluation,
                key=key,
                predictions_uri=merged.uri,
                predictions_sha256=merged.sha256,
                logits_uri=merged.logits_uri,
                job_id=self.job.id,
            )
            results.forget_evaluation(connection, self._failure_key(entrant.model, entrant.key))
        scan_pass.clear(entrant)
        self.outcome.evaluated.append(stored)
        self.job.log(f"{stored.model}: accuracy {evaluation.accuracy:.4f} on {evaluation.n_samples} samples")

    def _fail(self, model: Model, reason: str, key: str | None = None) -> None:
        evaluation = self._evaluation(model, state="failed", reason=reason[:2000], provenance=self._provenance(model))
        key = self._failure_key(model, key or self._key(model))
        with self.job.write() as connection:
            self.outcome.failed.append(results.record_evaluation(connection, evaluation, key=key, job_id=self.job.id))
        self.job.log(f"{model.name}: failed: {reason}")

    def _failure_key(self, model: Model, key: str) -> str:
        return content_hash("failed", key, model.name, self.dataset.name)

    def _evaluation(self, model: Model, **values: Any) -> Evaluation:
        return Evaluation(
            id=uuid4(),
            model=model.name,
            dataset=self.dataset.name,
            split=self.split,
            subset=self.subset,
            dtype=dtype_name(self.spec.amp),
            n_classes=self.dataset.n_classes,
            created_at=datetime.now(UTC),
            **values,
        )

    def _provenance(self, model: Model) -> dict[str, Any]:
        preprocessing = None if model.preprocessing is None else model.preprocessing.model_dump(mode="json")
        return {
            "spec": self.spec.model_dump(mode="json", exclude={"models"}),
            "seed": self.spec.seed,
            "device": self.job.device,
            "fingerprint": self.fingerprint,
            "preprocessing": preprocessing,
            "versions": versions(),
        }

    def _look(self, index: int, picture: Any) -> None:
        sample_id = self.images.sample_ids[index]
        if sample_id in self._packed or sample_id in self._jpegs:
            return
        if len(self._packed) + len(self._jpegs) < thumbnails.MAX_PACKED:
            self._jpegs[sample_id] = thumbnails.make(picture)

    def _pack_thumbnails(self) -> None:
        """Those that were decoded in this scan, and those that an attempt before this one decoded and lost."""
        if not self.outcome.evaluated:
            return
        for index in self.indices:
            sample_id = self.images.sample_ids[int(index)]
            if sample_id not in self._packed and sample_id not in self._jpegs:
                try:
                    self._look(int(index), self.images.image(int(index)))
                except BadImage:
                    continue
        if self._jpegs:
            thumbnails.pack(self.job.settings, self.fingerprint, self._jpegs)
