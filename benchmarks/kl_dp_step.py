"""Promise: with frozen outputs cached, a KL+DP step costs at most 1.1 × a plain fine-tuning step of the same student,
and is at least 1.7 × faster than asking teacher and frozen student again at every step.

    python -m benchmarks.kl_dp_step --out kl_dp_step.json

The three trainings take turns, one step each, on the same images and views, so that whatever else the machine does
falls on all alike; ratios are medians over rounds of step / step. Making the view and reading the cache count.

The default teacher is larger than the student, as in most of the paper's pairs. With a backward pass of two forward
ones the gain is (4 + teacher / student) / 3 forward passes: 1.67 for equal models, 2 for a teacher twice as dear.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import timm
import torch

from backend.domain.methods import Transfer, parse_method
from backend.domain.progress import Progress
from workers.science.cached_outputs import CachedOutputs
from workers.science.preprocessed import Preprocessed, frozen_copy
from workers.science.tensor_batches import TensorBatches
from workers.science.training import Training, fit
from workers.science.transfer import FROZEN_STUDENT, Roles, build_objective

PROMISE_OVER_PLAIN, PROMISE_OVER_RECOMPUTING = 1.1, 1.7
KINDS = ("plain", "cached", "recomputed")


def load(name: str, args: argparse.Namespace) -> Preprocessed:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=args.classes)
    return Preprocessed(model, args.size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).to(args.device)


def steps(args: argparse.Namespace, folder: Path) -> dict[str, Iterator[Progress]]:
    """One endless training of each kind."""
    generator = torch.Generator().manual_seed(0)
    n = args.batch_size * 4
    images = torch.randint(0, 256, (n, 3, args.size, args.size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, args.classes, (n,), generator=generator)
    shared = {"batch_size": args.batch_size, "epochs": 10_000, "views": 1, "amp": args.amp, "augment": "paper"}
    teacher, student = load(args.teacher, args), load(args.student, args)

    def begin(params: Transfer, roles: Roles, cached: CachedOutputs | None = None) -> Iterator[Progress]:
        batches = TensorBatches(images, labels, params, cached=cached)
        return fit(Training(build_objective(params, roles), roles.student, batches, params, device=args.device))

    kl_dp, ce = parse_method("kl_dp", shared), parse_method("ce", shared)
    cache = CachedOutputs(
        folder, {"teacher": "t", FROZEN_STUDENT: "s"}, n_samples=n, views=1, data_key="d", view_key="v"
    )
    models = {"teacher": teacher, FROZEN_STUDENT: frozen_copy(student)}
    for _ in cache.fill(models, TensorBatches(images, labels, kl_dp).view, device=args.device):
        pass
    return {
        "plain": begin(ce, Roles(load(args.student, args))),
        "cached": begin(kl_dp, Roles(load(args.student, args), {"teacher": None}), cache),
        "recomputed": begin(kl_dp, Roles(load(args.student, args), {"teacher": teacher})),
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of each step, by kind; the order within a round turns, so that none is always first."""
    trainings = steps(args, folder)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for round_number in range(args.warm_up + args.rounds):
        turn = round_number % len(KINDS)
        for kind in KINDS[turn:] + KINDS[:turn]:
            synchronise(args.device)
            begun = time.perf_counter()
            next(trainings[kind])
            synchronise(args.device)
            if round_number >= args.warm_up:
                seconds[kind].append(time.perf_counter() - begun)
    return seconds


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="resnet34")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(args, Path(folder))
    over_plain = statistics.median(c / p for c, p in zip(seconds["cached"], seconds["plain"], strict=True))
    faster = statistics.median(r / c for r, c in zip(seconds["recomputed"], seconds["cached"], strict=True))

    print(
        f"{args.teacher} → {args.student}, {args.size} px, batch {args.batch_size}, {args.device}, {args.rounds} rounds"
    )
    for kind in KINDS:
        print(f"  {kind:<12} {statistics.median(seconds[kind]) * 1e3:9.1f} ms a step (median)")
    met = over_plain <= PROMISE_OVER_PLAIN and faster >= PROMISE_OVER_RECOMPUTING
    print(f"  KL+DP cached / plain        {over_plain:5.2f} ×   promise ≤ {PROMISE_OVER_PLAIN}")
    print(f"  recomputed / KL+DP cached   {faster:5.2f} ×   promise ≥ {PROMISE_OVER_RECOMPUTING}")
    print("  kept" if met else "  NOT kept")
    if args.out:
        record = {
            "benchmark": "kl_dp_step",
            "cached_over_plain": over_plain,
            "recomputed_over_cached": faster,
            "promises": {"cached_over_plain": PROMISE_OVER_PLAIN, "recomputed_over_cached": PROMISE_OVER_RECOMPUTING},
            "met": met,
            "median_step_s": {kind: statistics.median(values) for kind, values in seconds.items()},
            "settings": {name: value for name, value in vars(args).items() if name != "out"},
            "machine": {
                "platform": platform.platform(),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        args.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
