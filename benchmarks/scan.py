"""Scan against timm's validate loop: one model, and eight small models of one preprocessing group.

    python -m benchmarks.scan --images FOLDER_OR_ZIP [--model resnet18] [--device cpu] [--output scan.json]

Promises: one model at 1.0 × timm's images/s or more; eight small models, where decoding dominates, 3 × faster than
eight validate runs one after the other. Ratios of medians, both sides measured in turns in the same run.

timm ships `validate.py` in its repository, not in its wheel; `validate` below is its loop: `create_dataset` and
`create_loader` with its defaults (4 loader processes, prefetcher), warm-up, inference mode, cross-entropy and top-1/5
accuracy of every batch. Neither side counts imports, building models or listing files; ours counts committing its parts
and, with --thumbnails, packing thumbnails.

Photos are enlarged (--enlarge) to about the size of ImageNet's, 500 × 375, so that decoding costs what it costs there.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.utils import AverageMeter, accuracy
from torch import nn

from backend import thumbnails
from backend.domain.catalog import Model, ModelSpec
from backend.domain.datasets import Dataset, DatasetSpec
from backend.settings import Settings
from workers.inputs.datasets import open_split, read_dataset
from workers.inputs.models import build, register_model
from workers.scan_pass import ScanPass

SMALL = ("test_resnet", "test_efficientnet", "test_byobnet", "test_convnext", "test_mambaout", "test_nfnet")


def validate(module: nn.Module, folder: Path, model: Model, *, batch_size: int, device: str, workers: int) -> float:
    """timm's validate loop; seconds."""
    assert model.preprocessing is not None
    config = resolve_data_config(model.preprocessing.model_dump())
    dataset = create_dataset("", root=str(folder), split="validation")
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=batch_size,
        use_prefetcher=True,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=workers,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        device=torch.device(device),
    )
    criterion = nn.CrossEntropyLoss().to(device)
    losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    with torch.inference_mode():
        module(torch.randn((batch_size, *config["input_size"]), device=device))
        began = time.perf_counter()
        for batch, target in loader:
            output = module(batch)
            loss = criterion(output, target)
            acc1, acc5 = accuracy(output.detach(), target, topk=(1, 5))
            losses.update(loss.item(), batch.size(0))
            top1.update(acc1.item(), batch.size(0))
            top5.update(acc5.item(), batch.size(0))
    return time.perf_counter() - began


def scan(
    modules: list[nn.Module], models: list[Model], dataset: Dataset, settings: Settings, args: argparse.Namespace
) -> float:
    """One pass of our scan over the same images; seconds."""
    images = open_split(dataset, "all", settings)
    jpegs: dict[str, bytes] = {}
    look = (
        (lambda i, picture: jpegs.setdefault(images.sample_ids[i], thumbnails.make(picture)))
        if args.thumbnails
        else None
    )
    scan_pass = ScanPass(
        images,
        np.arange(len(images)),
        device=args.device,
        amp=False,
        batch_size=args.batch_size,
        threads=args.threads,
        artifacts_url=tempfile.mkdtemp(dir=settings.data_dir),
        look=look,
    )
    entrants = [scan_pass.admit(model, dataset) for model in models]
    for number, (entrant, module) in enumerate(zip(entrants, modules, strict=True)):
        entrant.key, entrant.module = f"{number:064d}", module
    size = models[0].preprocessing.input_size  # type: ignore[union-attr]
    with torch.inference_mode():
        modules[0](torch.randn((args.batch_size, *size), device=args.device))
    began = time.perf_counter()
    for _ in scan_pass.score(entrants):
        pass
    if jpegs:
        thumbnails.pack(settings, f"{time.time_ns():064d}", jpegs)
    elapsed_s = time.perf_counter() - began
    failures = [entrant.failure for entrant in entrants if entrant.failure]
    if failures:
        raise SystemExit(f"a model failed: {failures[0]}")
    return elapsed_s


def compare(
    models: list[Model], n_classes: int, folder: Path, dataset: Dataset, settings: Settings, args: argparse.Namespace
) -> dict[str, Any]:
    """Medians of both sides, in turns, after one turn that does not count (disk caches)."""
    modules = [build(model).to(args.device) for model in models]
    n = dataset.splits["all"].n_samples
    sides: dict[str, Callable[[], float]] = {
        "timm": lambda: sum(
            validate(
                module, folder, model, batch_size=args.timm_batch_size, device=args.device, workers=args.timm_workers
            )
            for module, model in zip(modules, models, strict=True)
        ),
        "zoograft": lambda: scan(modules, models, dataset, settings, args),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.repeats + 1):
        for name, side in sides.items():
            elapsed_s = side()
            if turn:
                seconds[name].append(elapsed_s)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "models": [model.name for model in models],
        "images": n,
        "timm_s": seconds["timm"],
        "zoograft_s": seconds["zoograft"],
        "timm_images_per_s": n * len(models) / median["timm"],
        "zoograft_images_per_s": n * len(models) / median["zoograft"],
        "ratio": median["timm"] / median["zoograft"],
    }


def enlarge(content: bytes, factor: float) -> bytes:
    """The same photo, larger."""
    if factor == 1:
        return content
    with Image.open(io.BytesIO(content)) as image:
        size = round(image.width * factor), round(image.height * factor)
        sink = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(sink, "JPEG", quality=92)
    return sink.getvalue()


def unpack(source: Path, folder: Path, copies: int, factor: float) -> Path:
    """Class folders from a zip or a folder, `copies` times, so that a pass takes long enough to be measured."""
    target = folder / "images"
    if source.is_dir():
        files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.jpg")}
    else:
        with zipfile.ZipFile(source) as file:
            files = {name: file.read(name) for name in file.namelist() if name.lower().endswith((".jpg", ".jpeg"))}
    for name, content in files.items():
        *_, class_name, base = name.split("/")
        larger = enlarge(content, factor)
        for copy in range(copies):
            path = target / class_name / f"{copy}-{'-'.join(name.split('/')[:-2])}-{base}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(larger)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="class folders of JPEGs, or a zip of them")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--enlarge", type=float, default=2.0)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--side", type=int, default=64, help="input side of the eight small models")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--timm-batch-size", type=int, default=256)
    parser.add_argument("--timm-workers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--torch-threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--thumbnails", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)

    with tempfile.TemporaryDirectory() as temporary:
        folder = unpack(args.images, Path(temporary), args.copies, args.enlarge)
        settings = Settings(data_dir=Path(temporary) / "data")
        settings.data_dir.mkdir()
        dataset = read_dataset(DatasetSpec(name="images", source="imagefolder", location=str(folder)), settings)
        kwargs = {"num_classes": dataset.n_classes}
        one = [register_model(ModelSpec(name=args.model, architecture=args.model, kwargs=kwargs))]
        size = (3, args.side, args.side)
        shared = {"input_size": size, "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.95}
        eight = [
            register_model(
                ModelSpec(
                    name=f"{SMALL[i % len(SMALL)]}-{i}",
                    architecture=SMALL[i % len(SMALL)],
                    kwargs=kwargs,
                    init_seed=i,
                    interpolation="bicubic",
                    **shared,
                )
            )
            for i in range(8)
        ]
        results = {
            "one model": compare(one, dataset.n_classes, folder, dataset, settings, args),
            "eight small models": compare(eight, dataset.n_classes, folder, dataset, settings, args),
        }
    promised = {"one model": 1.0, "eight small models": 3.0}
    print(f"{'':20} {'images':>7} {'timm img/s':>11} {'ours img/s':>11} {'ratio':>6} {'promised':>9}")
    for name, row in results.items():
        print(
            f"{name:20} {row['images']:7d} {row['timm_images_per_s']:11.1f} {row['zoograft_images_per_s']:11.1f} "
            f"{row['ratio']:6.2f} {promised[name]:8.1f}×"
        )
        row["promised"] = promised[name]
    if args.output:
        args.output.write_text(json.dumps({"torch": torch.__version__, "device": args.device, **results}, indent=2))


if __name__ == "__main__":
    main()
