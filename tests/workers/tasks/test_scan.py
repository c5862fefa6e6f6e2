"""Scanning: real models on real images, through a real store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend import thumbnails
from backend.domain.errors import NotFound, ZoograftError
from backend.prediction_files import load
from backend.settings import Settings
from backend.store import artifacts, catalog, results
from backend.store.queries import catalog as queries
from backend.store.session import Store
from workers import scan_parts
from workers.lifecycle import Cancelled

RunTask = Callable[..., dict[str, Any]]

SMALL = {"kwargs": {"num_classes": 10}, "input_size": [3, 32, 32]}
VIT = {"kwargs": {"num_classes": 10, "img_size": 32}}
CIFAR = {"input_size": [3, 32, 32], "crop_pct": 1.0}


@pytest.fixture
def digits(run_task: RunTask) -> None:
    run_task("register", dataset={"name": "digits", "source": "digits"})


def add(run_task: RunTask, name: str, architecture: str, **spec: Any) -> dict[str, Any]:
    return run_task("register", model={"name": name, "architecture": architecture, **spec})["model"]


def current(store: Store, dataset: str, split: str = "val") -> dict[str, results.StoredEvaluation]:
    with store.read() as connection:
        return {one.model: one for one in results.current_evaluations(connection, dataset, split)}


def test_predictions_are_those_of_the_model_on_timms_own_transform(
    run_task: RunTask, store: Store, settings: Settings, digits: None
) -> None:
    import timm
    import torch
    from timm.data import create_transform

    from workers.inputs.datasets import open_split
    from workers.inputs.models import build

    add(run_task, "resnet", "test_resnet", **SMALL)
    result = run_task("scan", models=["resnet"], dataset="digits", keep_logits=True)
    stored = current(store, "digits")["resnet"]
    predictions = load(stored)

    with store.read() as connection:
        model, dataset = catalog.get_model(connection, "resnet"), catalog.get_dataset(connection, "digits")
    images = open_split(dataset, "val", settings)
    config = timm.data.resolve_data_config({"input_size": (3, 32, 32)}, pretrained_cfg=build(model).pretrained_cfg)
    transform = create_transform(**config, is_training=False)
    with torch.inference_mode():
        logits = build(model)(torch.stack([transform(images.image(i)) for i in range(len(images))]))
    kept = np.load(artifacts.fetch(str(stored.logits_uri)))
    np.testing.assert_allclose(kept, logits.numpy(), atol=1e-5)
    assert predictions.sample_ids.tolist() == list(images.sample_ids)
    assert predictions.labels.tolist() == images.labels.tolist()
    assert (predictions.top1 == logits.argmax(1).numpy()).mean() > 0.99  # ties by rounding of another batch size
    probs = torch.softmax(torch.from_numpy(kept), 1)
    np.testing.assert_allclose(predictions.p_top1, probs.max(1).values.numpy(), atol=1e-6)
    np.testing.assert_allclose(predictions.p_label, probs[np.arange(500), predictions.labels].numpy(), atol=1e-6)
    assert predictions.top5 is not None
    assert predictions.top5.shape == (500, 5)
    assert (predictions.top5[:, 0] == predictions.top1).all()
    assert result["evaluated"][0]["accuracy"] == predictions.accuracy == stored.evaluation.accuracy
    assert stored.evaluation.has_logits
    assert {"torch", "timm", "pillow"} <= set(stored.evaluation.provenance["versions"])


def test_the_same_content_is_not_run_twice(
    run_task: RunTask, store: Store, digits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(run_task, "a", "test_resnet", **SMALL)
    add(run_task, "b", "test_vit", **VIT)
    first = run_task("scan", models=["*"], dataset="digits")
    assert [one["model"] for one in first["evaluated"]] == ["a", "b"]
    assert first["pairs"] == 2
    before = current(store, "digits")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a cached model was built")

    with monkeypatch.context() as patched:
        patched.setattr("workers.scan_pass.build", never)
        again = run_task("scan", models=["a", "b"], dataset="digits")
    assert [one["model"] for one in again["cached"]] == ["a", "b"]
    assert again["evaluated"] == []
    assert current(store, "digits") == before

    add(run_task, "twin", "test_resnet", **SMALL)
    with monkeypatch.context() as patched:
        patched.setattr("workers.scan_pass.build", never)
        twin = run_task("scan", models=["twin"], dataset="digits")
    assert [one["model"] for one in twin["cached"]] == ["twin"]
    assert twin["pairs"] == 6
    assert set(current(store, "digits")) == {"a", "b", "twin"}

    with_logits = run_task("scan", models=["a"], dataset="digits", keep_logits=True)
    assert [one["model"] for one in with_logits["evaluated"]] == ["a"]
    assert current(store, "digits")["a"].evaluation.has_logits


def test_a_subset_is_a_result_of_its_own_and_the_whole_split_counts(
    run_task: RunTask, store: Store, settings: Settings, digits: None
) -> None:
    add(run_task, "a", "test_resnet", **SMALL)
    add(run_task, "b", "test_vit", **VIT)
    assert run_task("scan", models=["a", "b"], dataset="digits", limit=50)["n_samples"] == 50
    part = current(store, "digits")["a"]
    assert part.evaluation.n_samples == 50
    assert np.bincount(load(part).labels).tolist() == [5] * 10
    run_task("scan", models=["a"], dataset="digits")
    whole = current(store, "digits")
    assert (whole["a"].evaluation.n_samples, whole["b"].evaluation.n_samples) == (500, 50)
    with store.read() as connection:
        from backend.store.queries.pairs import pairs

        assert {pair.n_samples for pair in pairs(connection, dataset="digits").items} == {50}
    split = catalog_split(store, "digits", "val")
    ids = load(whole["a"]).sample_ids
    jpeg = thumbnails.thumbnail(settings, split, str(ids[0]))
    assert jpeg is not None
    assert jpeg.startswith(b"\xff\xd8")
    assert thumbnails.packed_ids(settings, split) == set(ids.tolist())
    assert thumbnails.thumbnail(settings, split, "none") is None


def catalog_split(store: Store, dataset: str, split: str) -> str:
    with store.read() as connection:
        return catalog.get_dataset(connection, dataset).splits[split].fingerprint


def test_a_failing_model_is_a_row_with_its_reason_and_the_rest_go_on(
    run_task: RunTask, store: Store, digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    from workers.inputs.models import build

    weights = tmp_path / "nan.safetensors"
    good = add(run_task, "good", "test_resnet", **SMALL)
    state = build(catalog_model(store, "good")).state_dict()
    save_file(
        {key: value * float("nan") if value.is_floating_point() else value for key, value in state.items()}, weights
    )
    add(run_task, "nan", "test_resnet", checkpoint=str(weights), **SMALL)
    add(run_task, "seven", "test_resnet", kwargs={"num_classes": 7}, input_size=[3, 32, 32])
    gone = tmp_path / "gone.safetensors"
    save_file(state, gone)
    add(run_task, "gone", "test_resnet", checkpoint=str(gone), init_seed=5, **{**SMALL, "crop_pct": 1.0})
    gone.unlink()

    result = run_task("scan", models=["*"], dataset="digits")
    reasons = {one["model"]: one["reason"] for one in result["failed"]}
    assert [one["model"] for one in result["evaluated"]] == ["good"]
    assert set(reasons) == {"nan", "seven", "gone"}
    assert reasons["nan"].startswith("nonfinite_logits: ")
    assert "7" in reasons["seven"]
    assert "10 classes" in reasons["seven"]
    assert "gone.safetensors" in reasons["gone"]
    assert set(current(store, "digits")) == {"good"}
    with store.read() as connection:
        rows = queries.evaluations(connection, dataset="digits", state="failed").items
    assert {row.model: row.reason for row in rows} == reasons
    assert good["weights_hash"] is not None

    with pytest.raises(ZoograftError, match="no model could be scored"):
        run_task("scan", models=["nan"], dataset="digits")

    save_file(state, gone)
    result = run_task("scan", models=["gone"], dataset="digits")
    assert [one["model"] for one in result["evaluated"] + result["cached"]] == ["gone"]
    with store.read() as connection:
        rows = queries.evaluations(connection, dataset="digits", state="failed").items
    assert {row.model for row in rows} == {"nan", "seven"}


def catalog_model(store: Store, name: str) -> Any:
    with store.read() as connection:
        return catalog.get_model(connection, name)


def test_a_checkpoint_that_changed_is_refused(run_task: RunTask, store: Store, digits: None, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from workers.inputs.models import build

    path = tmp_path / "w.safetensors"
    add(run_task, "good", "test_resnet", **SMALL)
    state = build(catalog_model(store, "good")).state_dict()
    save_file(state, path)
    add(run_task, "mine", "test_resnet", checkpoint=str(path), init_seed=9, **SMALL)
    save_file({key: value + 1 for key, value in state.items()}, path)
    # The weights that were added are those of `good`, which has no score yet.
    result = run_task("scan", models=["mine", "good"], dataset="digits")
    assert [one["model"] for one in result["evaluated"]] == ["good"]
    assert "did not change" in result["failed"][0]["reason"]


def test_a_killed_scan_goes_on_behind_its_last_committed_part(
    run_task: RunTask, start: Callable[..., Any], store: Store, digits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.tasks import scan

    monkeypatch.setattr(scan_parts, "PART_SAMPLES", 100)
    monkeypatch.setattr("workers.scan_pass.PART_SAMPLES", 100)
    add(run_task, "a", "test_resnet", **SMALL)
    undisturbed = run_task("scan", models=["a"], dataset="digits", seed=1)
    expected = load(current(store, "digits")["a"])
    add(run_task, "b", "test_resnet", init_seed=1, **SMALL)

    job = start("scan", {"models": ["b"], "dataset": "digits", "batch_size": 50})
    job.record = stop_after(job.record, 5)  # inside the third part
    with pytest.raises(Cancelled):
        scan.run(job)

    decoded: list[int] = []
    from workers.inputs.loading import Decoder

    batches = Decoder.batches

    def counted(self: Decoder, indices: Any) -> Any:
        decoded.append(len(indices))
        return batches(self, indices)

    monkeypatch.setattr(Decoder, "batches", counted)
    result = run_task("scan", models=["b"], dataset="digits", batch_size=50)
    assert decoded == [100, 100, 100]
    assert result["evaluated"][0]["n_samples"] == 500
    resumed = load(current(store, "digits")["b"])
    assert resumed.sample_ids.tolist() == expected.sample_ids.tolist()
    assert undisturbed["evaluated"][0]["n_samples"] == 500

    add(run_task, "c", "test_resnet", init_seed=2, **SMALL)
    job = start("scan", {"models": ["c"], "dataset": "digits", "batch_size": 50})
    job.record = stop_after(job.record, 5)
    with pytest.raises(Cancelled):
        scan.run(job)
    part = next(Path(job.settings.artifacts).glob("scans/*/00001.parquet"))
    part.write_bytes(part.read_bytes()[:-7] + b"garbage")
    decoded.clear()
    run_task("scan", models=["c"], dataset="digits", batch_size=50)
    assert decoded == [100] * 4  # the damaged part is done again
    assert not list(Path(job.settings.artifacts).glob("scans/*/*.parquet"))


def stop_after(record: Callable[[Any], None], steps: int) -> Callable[[Any], None]:
    left = [steps]

    def recorded(progress: Any) -> None:
        record(progress)
        left[0] -= 1
        if left[0] == 0:
            raise Cancelled

    return recorded


def test_bad_images_are_listed_exactly(run_task: RunTask, store: Store, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    bad = {"dog/02.png": b"", "cat/05.png": b"<html>not found</html>", "dog/08.png": None}
    for name, content in bad.items():
        path = tmp_path / "photos" / name
        path.write_bytes(path.read_bytes()[:200] if content is None else content)
    run_task("register", dataset={"name": "photos", "source": "imagefolder", "location": str(tmp_path / "photos")})
    add(run_task, "two", "test_resnet", kwargs={"num_classes": 2}, input_size=[3, 32, 32])
    result = run_task("scan", models=["two"], dataset="photos", batch_size=4)
    assert result["bad_samples"] == sorted(bad)
    evaluation = current(store, "photos", "all")["two"].evaluation
    assert evaluation.bad_samples == tuple(sorted(bad))
    assert evaluation.n_samples == 17
    assert "cat/05.png" not in load(current(store, "photos", "all")["two"]).sample_ids.tolist()
    assert evaluation.provenance["bad_reasons"]["dog/02.png"] == "the file is empty"


def test_progress_tells_rate_and_time_left(start: Callable[..., Any], run_task: RunTask, digits: None) -> None:
    from workers.tasks import scan

    add(run_task, "a", "test_resnet", **SMALL)
    add(run_task, "b", "test_vit", **VIT)
    job = start("scan", {"models": ["a", "b"], "dataset": "digits", "batch_size": 100})
    seen: list[Any] = []
    job.record = seen.append
    scan.run(job)
    assert [one.step for one in seen] == [100 * k for k in range(1, 11)]
    assert {one.total for one in seen} == {1000}
    assert all(one.metrics["images_per_s"] > 0 for one in seen)
    assert seen[-1].metrics["eta_s"] == pytest.approx(0, abs=1e-6)


def test_unknown_names_are_told(run_task: RunTask, digits: None) -> None:
    add(run_task, "resnet", "test_resnet", **SMALL)
    with pytest.raises(NotFound, match="did you mean resnet"):
        run_task("scan", models=["resnot"], dataset="digits")
    with pytest.raises(NotFound, match="did you mean digits"):
        run_task("scan", models=["resnet"], dataset="digit")


def test_cifar_resnets_score_what_they_should(
    run_task: RunTask, store: Store, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backend.store.queries.pairs import pairs

    monkeypatch.chdir(Path(__file__).parents[3])
    zip_path = shared_data / "cifar10" / "cifar10_sub_imagefolder.zip"
    run_task("register", dataset={"name": "cifar10", "source": "imagefolder", "location": str(zip_path)})
    weights = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
    for name, file in weights.items():
        checkpoint = str(shared_data / "cifar10-weights" / file)
        add(run_task, name, f"examples.cifar_resnet:{name}", checkpoint=checkpoint, **CIFAR)
    result = run_task("scan", models=["resnet*"], dataset="cifar10", keep_logits=True)

    reference = np.load(shared_data / "cifar10" / "test_logits_akamaster_resnet20_56.npz")
    right = {}
    for name in weights:
        stored = current(store, "cifar10", "test")[name]
        predictions = load(stored)
        # The files' names start with the index in the canonical test set.
        at = np.array([int(sample_id.split("/")[1].split("_")[0]) for sample_id in predictions.sample_ids])
        logits = np.load(artifacts.fetch(str(stored.logits_uri)))
        np.testing.assert_allclose(logits, reference[name][at], atol=2e-4)
        right[name] = reference[name][at].argmax(1) == reference["labels"][at]
        assert predictions.accuracy == right[name].mean()
    assert [round(one["accuracy"], 4) for one in result["evaluated"]] == [right[n].mean() for n in weights]
    with store.read() as connection:
        pair = next(p for p in pairs(connection, dataset="cifar10").items if p.teacher == "resnet20")
    assert pair.positive_flip_rate == (right["resnet20"] & ~right["resnet56"]).mean()
    assert pair.n_samples == 2000


def test_mobilenet_with_kwargs_reproduces_its_reference_predictions(
    run_task: RunTask, store: Store, shared_data: Path
) -> None:
    folder = shared_data / "imagenet-sample-images"
    location = str(folder / "imagenet_sample_100_short256.zip")
    run_task(
        "register",
        dataset={"name": "samples", "source": "imagefolder", "location": location, "label_space": "imagenet-1k"},
    )
    weights = shared_data / "imagenet-weights-timm" / "mobilenet_v2_1.0_224_quant.fp16.safetensors"
    same = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "crop_pct": 0.875}
    spec = {"checkpoint": str(weights), "label_space": "imagenet-1k", **same}
    add(run_task, "right", "mobilenetv2_100", kwargs={"pad_type": "same"}, **spec)
    add(run_task, "wrong", "mobilenetv2_100", **spec)
    result = run_task("scan", models=["right", "wrong"], dataset="samples")
    reference = np.load(folder / "reference_logits_100.npz")
    expected = reference["mobilenet_v2_1.0_224_quant"].astype(np.float32).argmax(1)
    found = {one: load(stored) for one, stored in current(store, "samples", "all").items()}
    # In file order of the class folders, as the reference is.
    assert found["right"].labels.tolist() == reference["class_index"].tolist()
    agreement = {name: (predictions.top1 == expected).mean() for name, predictions in found.items()}
    assert agreement["right"] >= 0.97
    assert agreement["wrong"] < agreement["right"]
    assert current(store, "samples", "all")["right"].evaluation.n_classes == 1000
    assert result["failed"] == []
