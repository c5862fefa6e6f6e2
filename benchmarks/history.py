"""Years of work on a synthetic zoo: a study and single transfers by the hundred, everything that is measured of models,
ReMem and KDEP runs, and one split with real predictions. For `benchmarks.dashboard`, which opens every page on it.

The numbers are drawn, the records are the ones that workers publish; jobs are queued, claimed and published by the
store's own functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from backend.domain.kdep import AlignmentReport, DownstreamResult, DownstreamSet, KdepParams, KdepResult, estimate
from backend.domain.remem import StudentDistillation, TeacherTuning
from backend.domain.remem_protocol import information_plane, setting_table
from backend.domain.remem_results import (
    BlockCriticality,
    BlockExpertness,
    CoCluster,
    CriticalityResult,
    CriticalNeuron,
    ExpertnessResult,
    InfluencedImage,
    InformationResult,
    RememResult,
    StudentScore,
    TeacherSnapshot,
    TunedTeacher,
)
from backend.domain.specs import dump_spec
from backend.domain.studies import StudySpec, plan_study
from backend.domain.transfers import EpochResult, TeacherComparison, TransferResult
from backend.predictions import import_predictions
from backend.settings import Settings
from backend.store import jobs
from backend.store.job_records import new_ids
from backend.store.jobs import NewJob
from backend.store.session import Store

STUDENTS, TEACHERS, EPOCHS, BLOCKS = 10, 15, 20, 12
MEASURED, CANDIDATES, EMBEDDED = 40, 200, 2000
RUNS, IMAGES, CLASSES = 8, 50_000, 1000
BOARD = {"dataset": "synthetic", "split": "val"}
IMAGENET = ("imagenet-like", "val")
PREDICTED = ("predicted-a", "predicted-b")


def fill_history(settings: Settings, models: Sequence[str]) -> dict[str, str]:
    """Store it all.

    Args:
        models: Names of the zoo, those of `benchmarks.web`.

    Returns:
        Ids for addresses: `study`, `job`.
    """
    store = Store.open(settings.database, settings=settings)
    rng = np.random.default_rng(0)
    spec = _study(models)
    with store.write() as connection:
        (parent,) = new_ids(1)
        jobs.add(connection, [NewJob(id=parent, kind="study", queue="cpu", spec=spec.model_dump(mode="json"))])
    children = [dump_spec(child.spec) for child in plan_study(spec) if child.kind == "transfer"]
    done = [_publish(store, "transfer", child, _transfer(rng, child), parent) for child in children]
    again = [{**child, "method": {**child["method"], "seed": 9}} for child in children]
    for single in again:
        _publish(store, "transfer", single, _transfer(rng, single))
    for name, items in _analyses(rng, models):
        told = {"analysis": name, **BOARD, "n_images": IMAGES, "items": items, "failures": []}
        ids = {str(i): f"n{i:08d}" for i in range(IMAGES if name == "criticality" else 0)}
        asked = {"analysis": name, "dataset": "synthetic", "models": [one["model"] for one in items]}
        _publish(store, "analysis", asked, {**told, "sample_ids": ids})
    for number in range(RUNS):
        asked = {"model": models[number], "teacher": models[number], "student": models[-1], "dataset": "synthetic"}
        _publish(store, "remem", asked, _remem(rng, models[number], models[-1]).model_dump(mode="json"))
        made = _kdep(rng, f"made-{number}", models[number], models[-1])
        _publish(store, "kdep", asked, made.model_dump(mode="json"), steps=2000)
    _predictions(store, settings, rng)
    store.close()
    return {"study": str(parent), "job": str(done[-1])}


def _publish(
    store: Store,
    kind: str,
    spec: Mapping[str, Any],
    result: Mapping[str, Any],
    parent: UUID | None = None,
    *,
    steps: int = 200,
) -> UUID:
    """Queue, claim, report and publish one job, as a worker would."""
    (id,) = new_ids(1)
    told = {"distillation": 0.4, "cross_entropy": 0.6}
    events: list[tuple[Any, Mapping[str, Any]]] = []
    if kind in ("transfer", "kdep"):
        events = [
            ("metric", {"step": s, "values": {"loss": 1 / s, **{f"x/{k}": v / s for k, v in told.items()}}})
            for s in range(10, steps + 1, 10)
        ]
    with store.write() as connection:
        jobs.add(connection, [NewJob(id=id, kind=kind, queue="cpu", spec=dict(spec), parent=parent)])
        claim = jobs.claim(connection, worker="bench", host="bench", lease_s=90.0, job_id=id, several=True)
        assert claim is not None, kind
        if events:
            jobs.add_events(connection, id, claim.fence, 1, events)
        jobs.record_progress(connection, id, claim.fence, steps, steps)
        jobs.hold(connection, id, claim.fence)
        jobs.succeed(connection, id, claim.fence, result)
    return id


def _study(models: Sequence[str]) -> StudySpec:
    students = models[:: len(models) // STUDENTS][:STUDENTS]
    teachers = models[7 :: len(models) // TEACHERS][:TEACHERS]
    pairs = [[teacher, student] for student in students for teacher in teachers if teacher != student]
    settings = {"epochs": EPOCHS, "lr": 0.01, "augment": "none"}
    return StudySpec.model_validate(
        {
            "name": "large",
            "dataset": "synthetic",
            "models": sorted({name for pair in pairs for name in pair}),
            "pairs": pairs,
            "methods": ["kl_dp", "kl", "xe_kl"],
            "settings": settings,
            "train_split": "val",
            "split": "val",
        }
    )


def _transfer(rng: np.random.Generator, spec: Mapping[str, Any]) -> dict[str, Any]:
    gain, loss = rng.uniform(0, 0.1, 2).tolist()
    before = float(rng.uniform(0.3, 0.8))
    around = {"transfer_delta": gain - loss, "knowledge_gain": gain, "knowledge_loss": loss}
    spread = {f"{name}{end}": v + d for name, v in around.items() for end, d in (("_low", -0.01), ("_high", 0.01))}
    teacher = TeacherComparison(
        teacher_accuracy=before + float(rng.uniform(-0.1, 0.2)),
        positive_flip_rate_before=0.1,
        negative_flip_rate_before=0.05,
        positive_flip_rate_delta=-0.02,
        negative_flip_rate_delta=0.01,
    )
    epochs = tuple(
        EpochResult(epoch=i + 1, student_accuracy=before, metrics={"loss": 1 / (i + 1)}, **around)
        for i in range(EPOCHS)
    )
    result = TransferResult(
        n_samples=IMAGES,
        n_classes=CLASSES,
        student_accuracy_before=before,
        student_accuracy_after=before + gain - loss,
        student_accuracy_after_low=before - 0.01,
        student_accuracy_after_high=before + 0.01,
        **around,
        **spread,
        transfer_rate=dict.fromkeys((2, 5, 20, 50, 100), 0.5),
        teachers=dict.fromkeys(spec["teachers"], teacher),
        epochs=epochs,
    )
    names = {"student": spec["student"], "teacher_names": list(spec["teachers"]), "method": spec["method"]["method"]}
    return {**result.model_dump(mode="json"), **names, **BOARD, "model": None}


def _analyses(rng: np.random.Generator, models: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every kind of analysis with its items."""
    yield "information", [_information(rng, name).model_dump(mode="json") for name in models[:MEASURED]]
    yield "expertness", [_expertness(rng, name).model_dump(mode="json") for name in models[:MEASURED]]
    yield "criticality", [_criticality(rng, name).model_dump(mode="json") for name in models[:3]]
    common = {"dataset": "synthetic", "n_samples": IMAGES, "n_classes": CLASSES}
    scatter = {"between_scatter": 2.0, "within_scatter": 1.0}
    yield (
        "compactness",
        [{"model": name, **common, **scatter, "compactness": float(rng.uniform(1, 4))} for name in models[:CANDIDATES]],
    )
    yield "logme", [{"model": name, **common, "logme": float(rng.uniform(0, 1))} for name in models[:CANDIDATES]]
    embedded = {"points": rng.normal(size=(EMBEDDED, 2)).tolist(), "labels": rng.integers(0, 100, EMBEDDED).tolist()}
    yield "embedding", [{"model": models[0], "dataset": "synthetic", "n_samples": EMBEDDED, **embedded}]


def _information(rng: np.random.Generator, model: str) -> InformationResult:
    excess = float(rng.uniform(0.05, 0.3))
    return InformationResult(
        model=model,
        data="synthetic/val",
        loss_nats=0.3 + excess,
        floor_nats=0.3,
        excess_nats=excess,
        feature_width=768,
        feature_grid=(14, 14),
        image_size=(224, 224),
        n_images=IMAGES,
        n_heldout=1000,
        updates=3000,
        batch_size=64,
    )


def _expertness(rng: np.random.Generator, model: str) -> ExpertnessResult:
    def block(number: int) -> BlockExpertness:
        sizes = tuple(CoCluster(neurons=int(n), inputs=int(n) // 2 + 1) for n in rng.integers(1, 40, 100))
        return BlockExpertness(
            block=number,
            name=f"blocks.{number}.mlp",
            expertness=float(rng.uniform(0.1, 0.6)),
            n_clusters=100,
            nonempty_clusters=100,
            complete_clusters=90,
            cluster_sizes=sizes,
            n_neurons=sum(one.neurons for one in sizes),
            n_inputs=sum(one.inputs for one in sizes),
            dead_neurons=0,
            dead_inputs=0,
            sparsity=float(rng.uniform(0.2, 0.9)),
            zero_share=0.0,
            bound_bits=1e4,
            expected_bound_bits=5e3,
        )

    blocks = tuple(block(i) for i in range(BLOCKS))
    return ExpertnessResult(model=model, data="synthetic/val", n_images=IMAGES, n_clusters=100, blocks=blocks)


def _criticality(rng: np.random.Generator, model: str) -> CriticalityResult:
    def neuron(block: int, number: int) -> CriticalNeuron:
        shown = tuple(InfluencedImage(index=int(i), influence=0.01) for i in rng.integers(0, IMAGES, 10))
        return CriticalNeuron(block=block, neuron=number, criticality=0.5 / (number + 1), images=shown)

    blocks = tuple(
        BlockCriticality(
            block=i,
            n_neurons=3072,
            n_examined=64,
            mean=0.01,
            maximum=0.5,
            neurons=tuple(neuron(i, number) for number in range(10)),
        )
        for i in range(BLOCKS)
    )
    return CriticalityResult(model=model, data="synthetic/val", n_images=IMAGES, blocks=blocks)


def _remem(rng: np.random.Generator, model: str, student: str) -> RememResult:
    distillation = StudentDistillation(steps=1000, warmup_steps=100)
    stops = (500, 1000, 2000, 4000)

    def teacher(rho: float, seed: int) -> TunedTeacher:
        tuning = TeacherTuning(lr=0.01, rho=rho, steps=4000, warmup_steps=100, stop_points=stops, seed=seed)
        snapshots = tuple(
            TeacherSnapshot(
                stop_point=stop,
                validation_error=0.2,
                test_error=float(rng.uniform(0.1, 0.3)),
                information=_information(rng, model),
                expertness=_expertness(rng, model) if stop == stops[-1] else None,
                students=(StudentScore(distillation=distillation, validation_error=0.3, test_error=0.3),),
            )
            for stop in stops
        )
        return TunedTeacher(
            tuning=tuning,
            setting="sam" if rho else "baseline",
            snapshots=snapshots,
            best_stop_point=stops[-1],
            best_distillation=distillation,
        )

    teachers = tuple(teacher(rho, seed) for rho in (0.0, 0.02, 0.05, 0.1) for seed in range(3))
    return RememResult(
        model=model,
        student=student,
        dataset="synthetic",
        metric="top1",
        n_train=IMAGES,
        n_validation=1000,
        n_test=1000,
        teachers=teachers,
        table=setting_table(teachers),
        plane=information_plane(teachers),
        best=1,
    )


def _kdep(rng: np.random.Generator, made: str, teacher: str, student: str) -> KdepResult:
    sets = tuple(
        DownstreamSet(
            dataset=f"set-{i}", lr=0.1, validation={"0.1": 0.5}, test=estimate(rng.uniform(0.4, 0.8, 3).tolist())
        )
        for i in range(4)
    )
    alignment = AlignmentReport(
        teacher_width=2048,
        student_width=512,
        aligned_width=512,
        expanded=False,
        teacher_std_ratio=3.0,
        std_ratio_before=20.0,
        std_ratio_after=2.0,
    )
    return KdepResult(
        model=made,
        weights_hash="0" * 64,
        teacher=teacher,
        student=student,
        architecture="resnet18",
        dataset="synthetic",
        train_split="val",
        n_samples=IMAGES,
        params=KdepParams(),
        alignments=(alignment,),
        steps=2000,
        loss_first=2.0,
        loss_last=1.0,
        downstream=DownstreamResult(model=made, seeds=(0, 1, 2), sets=sets, average=estimate([0.5, 0.6, 0.55])),
    )


def _predictions(store: Store, settings: Settings, rng: np.random.Generator) -> None:
    """Two models on 50,000 samples of 1,000 classes, with their answers, for the page of a pair."""
    labels = rng.integers(0, CLASSES, IMAGES)
    names = tuple(f"class number {c}" for c in range(CLASSES))
    ids = np.array([f"{label:04d}/image_{i:08d}.jpg" for i, label in enumerate(labels)])
    with tempfile.TemporaryDirectory() as folder:
        for model in PREDICTED:
            top5 = rng.integers(0, CLASSES, (IMAGES, 5))
            top5[:, 0] = np.where(rng.uniform(size=IMAGES) < 0.7, labels, top5[:, 0])
            file = Path(folder) / f"{model}.parquet"
            _write(file, ids, labels, top5)
            import_predictions(
                store, settings, file, model=model, dataset=IMAGENET[0], split=IMAGENET[1], class_names=names
            )


def _write(file: Path, ids: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], top5: np.ndarray[Any, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shares = np.array([0.6, 0.2, 0.1, 0.05, 0.05], dtype=np.float32)
    table = pa.table(
        {
            "sample_id": ids,
            "label": labels,
            "top1": top5[:, 0],
            "p_top1": np.full(len(ids), shares[0]),
            "top5": top5.tolist(),
            "p_top5": np.tile(shares, (len(ids), 1)).tolist(),
        }
    )
    pq.write_table(table, file)
