"""KDEP on real images in minutes: does SVD + PTS beat random, supervised, 1×1 conv and logits-KD pre-training?

    ZOOGRAFT_SHARED_DATA=... python benchmarks/kdep_cifar10.py run --seed 0     # for each of 0, 1, 2; ~3 CPU minutes
    ZOOGRAFT_SHARED_DATA=... python benchmarks/kdep_cifar10.py report
    ZOOGRAFT_SHARED_DATA=... python benchmarks/kdep_cifar10.py known --seed 3   # what a student knows of its teacher
    ZOOGRAFT_SHARED_DATA=... python benchmarks/kdep_cifar10.py run --long --seed 32 --methods svd_pts conv_before_relu

Teacher: MobileNetV2 with ImageNet weights, 1,280 channels, on CIFAR-10 pictures enlarged to 160 pixels. Student: timm's
`test_resnet` (96 channels, 0.4 M weights) on the 32 pixel originals. Pre-training: 4,000 CIFAR-10 images and their
mirror images, the same epochs, batches and optimizer for every method. Downstream: Caltech-101 (16 classes, 32 pixels),
all weights fine-tuned; the learning rate is the best on a validation quarter of the training images, averaged over
seeds; then all training images are used, and the score of a seed is the mean test accuracy of three fine-tunings.
Intervals are Student's t over seeds, differences are paired by seed.

`--long` has the paper's optimizer (SGD, momentum .9, weight decay 5e-4) and eight times the steps, on four random
crops of every picture and their mirror images; the teacher takes 15 CPU minutes to look at all of them, once. Learning
rates were found on seed 31, for each of its two methods.

`known` pre-trains without fine-tuning and tells, on 2,000 CIFAR-10 images that nobody has seen, the share of the
teacher's variance that can be read off the student's feature by ridge regression, by groups of principal components;
and of a 1×1 convolution the share of the teacher's variance that lies in the 96 directions it has learnt, beside the
largest possible, that of the SVD.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import time
import zipfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from backend.domain.kdep import KdepParams, estimate
from backend.domain.methods import TrainingParams
from workers.science.kdep.downstream import accuracy
from workers.science.kdep.features import find_feature_point, pre_activation_features
from workers.science.kdep.objective import ConnectorObjective, SupervisedObjective, build_objective
from workers.science.kdep.svd import FeatureMoments
from workers.science.kdep.targets import TARGET, alignment_report, build_target_map
from workers.science.preprocessed import Preprocessed
from workers.science.tensor_batches import TensorBatches
from workers.science.training import Training, fit

STUDENT, SIDE, TEACHER_SIDE = "test_resnet", 32, 160
BASE = {
    "epochs": 12, "batch_size": 128, "lr": 4e-3, "optimizer": "adamw", "weight_decay": 0.05, "schedule": "cosine",
    "warmup_steps": 60, "augment": "none", "views": 1, "loss_weight": 1.0, "pts_temperature": 5.0, "pts_exponent": 3.0,
    "channels_last": True,
}  # fmt: skip
METHODS: dict[str, dict[str, str]] = {
    "svd_pts": {},  # the parameters of BASE
    "supervised": {"method": "supervised"},
    "logits": {"method": "logits"},
    "conv_before_relu": {"align": "conv_before_relu"},
}
FINE_TUNE = {
    "epochs": 25, "batch_size": 32, "schedule": "cosine", "weight_decay": 5e-4, "augment": "flip", "channels_last": True
}  # fmt: skip
LONG = {**BASE, "epochs": 24, "optimizer": "sgd", "weight_decay": 5e-4}
LONG_LRS = {"svd_pts": 1.0, "conv_before_relu": 0.3}
CROPS, CROP_AREA, CROP_RATIO = 4, (0.4, 1.0), (3 / 4, 4 / 3)
COMPONENTS = {"1-8": slice(0, 8), "9-32": slice(8, 32), "33-96": slice(32, 96)}
RIDGE = 10.0
LRS, VALIDATION_SEEDS, TEST_SEEDS = (0.02, 0.06), (0, 1), (0, 1, 2)


def read(archive: Path, split: str, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 3, side, side] uint8, shorter side scaled and the middle cut out, with labels, in name order."""
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.startswith(f"{split}/") and not name.endswith("/"))
        classes = sorted({name.split("/")[1] for name in names})
        pictures = []
        for name in names:
            picture = Image.open(io.BytesIO(files.read(name))).convert("RGB")
            scale = side / min(picture.size)
            width, height = (max(side, round(length * scale)) for length in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            left, top = (width - side) // 2, (height - side) // 2
            pictures.append(np.asarray(picture.crop((left, top, left + side, top + side))))
    labels = torch.tensor([classes.index(name.split("/")[1]) for name in names])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), labels


def crops(images: torch.Tensor) -> torch.Tensor:
    """`CROPS` seeded random resized crops of every picture [N, 3, side, side], one after another: [CROPS · N, …]."""
    rng, side, found = np.random.default_rng(0), images.shape[-1], []
    for _ in range(CROPS):
        for image in images:
            area = side * side * rng.uniform(*CROP_AREA)
            ratio = np.exp(rng.uniform(*np.log(CROP_RATIO)))
            width = min(side, max(8, round(np.sqrt(area * ratio))))
            height = min(side, max(8, round(np.sqrt(area / ratio))))
            top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
            cut = image[None, :, top : top + height, left : left + width].float()
            large = F.interpolate(cut, size=(side, side), mode="bicubic", antialias=True)
            found.append(large.clamp(0, 255).round().to(torch.uint8))
    return torch.cat(found)


def teacher_of(data: Path) -> Preprocessed:
    weights = load_file(data / "imagenet-weights-timm" / "mobilenet_v2_1.0_224_quant.fp16.safetensors")
    model = timm.create_model("mobilenetv2_100", pad_type="same")
    model.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    return Preprocessed(model, (3, TEACHER_SIDE, TEACHER_SIDE), [0.5] * 3, [0.5] * 3, "bilinear")


def student_of(seed: int, classes: int) -> Preprocessed:
    torch.manual_seed(seed)
    return Preprocessed(timm.create_model(STUDENT, num_classes=classes), (3, SIDE, SIDE), [0.5] * 3, [0.5] * 3)


class Kept:
    """Targets held in memory, by position; views do not matter, because the pictures are not augmented further."""

    def __init__(self, targets: torch.Tensor) -> None:
        self.targets = targets

    def read(self, view: int, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {TARGET: self.targets[indices]}


@torch.no_grad()
def teacher_outputs(images: torch.Tensor, data: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The teacher's pre-activation features and logits of all pictures; computed once for all methods and seeds."""
    path = folder / f"teacher-{TEACHER_SIDE}.safetensors"
    if not path.exists():
        teacher = teacher_of(data).eval()
        point = find_feature_point(teacher.model, (3, TEACHER_SIDE, TEACHER_SIDE))
        parts: dict[str, list[torch.Tensor]] = {"features": [], "logits": []}
        for start in range(0, len(images), 64):
            x = teacher.prepare(images[start : start + 64].float() / 255)
            parts["features"].append(pre_activation_features(teacher.model, x, point))
            parts["logits"].append(teacher.model(x))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: torch.cat(found) for name, found in parts.items()}, path)
    return load_file(path)


def pretrain(
    method: str, seed: int, data: Path, folder: Path, *, long: bool = False
) -> tuple[Preprocessed, dict[str, object]]:
    images, labels = read(data / "cifar10" / "cifar10_sub_imagefolder.zip", "train", SIDE)
    settings: dict[str, object] = dict(BASE)
    if long:
        images, labels, folder = crops(images), labels.repeat(CROPS), folder / "crops"
        settings = {**LONG, "lr": LONG_LRS[method]}
    # Mirrored copies beside the originals: the same two views for every seed and method, so that the teacher looks
    # once.
    images, labels = torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
    params = KdepParams.model_validate({**settings, **METHODS[method], "seed": seed})
    student = student_of(seed, 1000 if method == "logits" else 10)
    outputs = teacher_outputs(images, data, folder)
    point = find_feature_point(student.model, (3, SIDE, SIDE))
    facts: dict[str, object] = {}
    targets = outputs["logits" if method == "logits" else "features"]
    if params.method == "features" and not params.learnable:
        moments = FeatureMoments.empty(targets.shape[1])
        for part in targets.split(1024):
            moments.update(part)
        target_map = build_target_map(moments, point.width, params)
        targets = target_map(targets)
        facts["alignment"] = alignment_report(target_map, moments, params, [targets]).model_dump()
    objective = build_objective(params, point, outputs["features"].shape[1])
    batches = TensorBatches(images, labels if params.labels_needed else None, params, cached=Kept(targets))
    begun, cpu = time.perf_counter(), time.process_time()
    loss = [p.metrics["loss"] for p in fit(Training(objective, student, batches, params)) if p.metrics]
    if isinstance(objective, ConnectorObjective):
        facts["directions"] = directions(objective, targets)
    facts |= {"loss_first": loss[0], "loss_last": loss[-1]}
    facts |= {"train_s": time.perf_counter() - begun, "train_cpu_s": time.process_time() - cpu}
    return student, facts


@torch.no_grad()
def directions(objective: ConnectorObjective, features: torch.Tensor) -> dict[str, float]:
    """Share of the teacher's variance within the directions that a learnt convolution can produce, and at most."""
    (weight,) = (p.double() for p in objective.parameters() if p.ndim == 2)  # [D_t, D_s]
    centred = features.double() - features.double().mean(0)
    basis = torch.linalg.qr(weight).Q
    values = torch.linalg.svdvals(centred).square()
    within = (centred @ basis).square().sum() / values.sum()
    return {"learnt": float(within), "most": float(values[: weight.shape[1]].sum() / values.sum())}


@torch.no_grad()
def known(student: Preprocessed, data: Path, folder: Path) -> dict[str, float]:
    """Group of the teacher's principal components → R² of a ridge regression from the student's feature, unseen images.

    Components and regression are fitted on the 4,000 training images, R² is of the 2,000 test images.
    """
    archive = data / "cifar10" / "cifar10_sub_imagefolder.zip"
    point = find_feature_point(student.eval().model, (3, SIDE, SIDE))
    seen, unseen = (read(archive, split, SIDE)[0] for split in ("train", "test"))
    teacher = teacher_outputs(seen, data, folder / "seen")["features"].double()
    teacher_unseen = teacher_outputs(unseen, data, folder / "unseen")["features"].double()
    centre = teacher.mean(0)
    components = torch.linalg.svd(teacher - centre, full_matrices=False).Vh[:96].T
    target, target_unseen = (teacher - centre) @ components, (teacher_unseen - centre) @ components
    x, x_unseen = (
        torch.cat(
            [
                pre_activation_features(student.model, student.prepare(part.float() / 255), point)
                for part in images.split(500)
            ]
        ).double()
        for images in (seen, unseen)
    )
    centre, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    x, x_unseen = (x - centre) / scale, (x_unseen - centre) / scale
    fitted = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ target)
    rest = (target_unseen - x_unseen @ fitted).square().sum(0)
    whole = (target_unseen - target_unseen.mean(0)).square().sum(0)
    return {name: float(1 - rest[part].sum() / whole[part].sum()) for name, part in COMPONENTS.items()}


def fine_tune(student: Preprocessed, data: Path) -> dict[str, dict[str, list[float]]]:
    """lr → validation accuracies (trained on three quarters) and test accuracies (on all), one for each tuning seed."""
    archive = data / "caltech101" / "caltech101_16cls.zip"
    (images, labels), (test_images, test_labels) = read(archive, "train", SIDE), read(archive, "test", SIDE)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[::4] = True  # names are sorted by class, so every class gives a quarter
    everything = torch.ones(len(labels), dtype=torch.bool)
    chosen = [(images[held_out].float() / 255, labels[held_out])]
    tested = [(test_images.float() / 255, test_labels)]
    scores: dict[str, dict[str, list[float]]] = {}
    for lr in LRS:
        found: dict[str, list[float]] = {"validation": [], "test": []}
        for name, train, split, seeds in (
            ("validation", ~held_out, chosen, VALIDATION_SEEDS),
            ("test", everything, tested, TEST_SEEDS),
        ):
            for seed in seeds:
                tuned = copy.deepcopy(student)
                torch.manual_seed(seed)
                tuned.model.reset_classifier(16)
                params = TrainingParams.model_validate({**FINE_TUNE, "lr": lr, "seed": seed})
                batches = TensorBatches(images[train], labels[train], params)
                for _ in fit(Training(SupervisedObjective(), tuned, batches, params)):
                    pass
                found[name].append(accuracy(tuned, lambda split=split: split))
        scores[f"{lr:g}"] = found
    return scores


def report(rows: list[dict[str, object]]) -> dict[str, object]:
    """Print the table and return it."""
    table: dict[str, object] = {}
    by_method = {
        method: found for method in ("random", *METHODS) if (found := [row for row in rows if row["method"] == method])
    }
    seeds = sorted(set.intersection(*({int(str(row["seed"])) for row in found} for found in by_method.values())))
    values: dict[str, list[float]] = {}
    for method, found in by_method.items():
        chosen = sorted((row for row in found if row["seed"] in seeds), key=lambda row: int(str(row["seed"])))
        scores: list[dict[str, dict[str, list[float]]]] = [row["scores"] for row in chosen]  # type: ignore[misc]
        means = {lr: np.mean([one[lr]["validation"] for one in scores]) for lr in (f"{lr:g}" for lr in LRS)}
        best = max(means, key=lambda lr: means[lr])
        values[method] = [float(np.mean(one[best]["test"])) for one in scores]
        whole = estimate(values[method])
        table[method] = {"lr": best, "seeds": seeds, **whole.model_dump(mode="json")}
        bounds = f"[{100 * (whole.low or 0):.2f}, {100 * (whole.high or 0):.2f}]"
        each = " ".join(f"{100 * value:.2f}" for value in values[method])
        print(f"{method:18} lr {best:5}  {100 * whole.mean:5.2f} % {bounds}  {each}")
    for method in (method for method in values if method != "svd_pts"):
        difference = estimate([a - b for a, b in zip(values["svd_pts"], values[method], strict=True)])
        table[f"svd_pts - {method}"] = difference.model_dump(mode="json")
        print(f"svd_pts - {method:16} {100 * difference.mean:+6.2f} points "
              f"[{100 * (difference.low or 0):+.2f}, {100 * (difference.high or 0):+.2f}]")  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "known", "report"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*", default=["random", *METHODS])
    parser.add_argument("--long", action="store_true", help="SGD, crops and eight times the steps, for two methods")
    parser.add_argument("--cache", type=Path, default=Path("build/kdep_cache"), help="the teacher's outputs")
    parser.add_argument("--out", type=Path, default=Path("build/kdep_cifar10.jsonl"))
    options = parser.parse_args()
    if options.long and not set(options.methods) <= set(LONG_LRS):
        parser.error(f"--methods: --long has {', '.join(LONG_LRS)}")
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.action == "report":
        table = report([json.loads(line) for line in options.out.read_text().splitlines()])
        options.out.with_suffix(".json").write_text(json.dumps(table, indent=1))
        return
    if "ZOOGRAFT_SHARED_DATA" not in os.environ:
        parser.error(
            "ZOOGRAFT_SHARED_DATA: not set; expected the folder with cifar10, caltech101 and imagenet-weights-timm"
        )
    data = Path(os.environ["ZOOGRAFT_SHARED_DATA"])
    for method in options.methods:
        if method == "random":
            student, facts = student_of(options.seed, 10), {}
        else:
            student, facts = pretrain(method, options.seed, data, options.cache, long=options.long)
        row = {"method": method, "seed": options.seed, **facts}
        if options.action == "known":
            row["known"] = known(student, data, options.cache)
        else:
            row["scores"] = fine_tune(student, data)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(json.dumps({name: row[name] for name in row if name != "alignment"}), flush=True)


if __name__ == "__main__":
    main()
