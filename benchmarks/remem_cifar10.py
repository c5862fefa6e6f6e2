"""ReMem on real images in one command: four settings, three seeds, a small CNN taught by each, the information plane.

    ZOOGRAFT_SHARED_DATA=... python -m benchmarks.remem_cifar10                  # ~25 CPU minutes; prints the table
    python -m benchmarks.remem_cifar10 --result benchmarks/results/remem_cifar10.json       # table and plane once more

A small ViT is pre-trained with AdamW on the 4,000 CIFAR-10 training images, then fine-tuned by ReMem's recipe in the
settings baseline, SAM, reweighted and both; from two stop points of each a `test_resnet` is distilled. Everything runs
through the command line: `datasets add`, `models add`, `finetune`, `remem`. Validation (a tenth of train) chooses, the
2,000 test images are reported, intervals are Student's t over three seeds, gains are paired with the baseline by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from backend.domain.remem_results import RememResult
from dashboard.figures.information_plane import information_plane

RESULTS = Path(__file__).parent / "results"
SHAPE = ["--input-size", "3,32,32", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--crop-pct", "1.0"]
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 10}
PRETRAINING = {
    "optimizer": "adamw", "lr": 0.002, "weight_decay": 0.05, "schedule": "cosine", "warmup_steps": 60, "epochs": 30,
    "batch_size": 64, "augment": "crop_flip",
}  # fmt: skip
PROTOCOL = {
    "settings": "all", "seeds": 3, "lr": 0.02, "rho": 0.05, "mlp_weight": 0.8, "steps": 120, "stop_points": "60,120",
    "warmup_steps": 10, "batch_size": 64, "augment": "crop_flip", "zero_init_head": False,
    "student_lr": 0.1, "student_steps": 126, "student_warmup_steps": 10, "student_batch_size": 64,
    "student_augment": "crop_flip", "student_temperature": 2,
    "information_updates": 100, "information_images": 1000, "information_heldout_images": 200,
    "information_batch_size": 32,
}  # fmt: skip


def zoograft(*arguments: str, output: Path | None = None) -> None:
    command = [str(Path(sys.executable).parent / "zoograft"), *arguments]
    if output is None:
        subprocess.run(command, check=True)
    else:
        with open(output, "w") as file:
            subprocess.run(command, check=True, stdout=file)


def setting(values: dict[str, Any]) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name}={_text(value)}")]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run(data: Path, changes: dict[str, Any], result: Path) -> None:
    zoograft("datasets", "add", "cifar10", str(data / "cifar10" / "cifar10_sub_imagefolder.zip"))
    kwargs = [part for name, value in VIT.items() for part in ("--kwarg", f"{name}={value}")]
    zoograft("models", "add", "vit", "--arch", "vit_tiny_patch16_224", *kwargs, *SHAPE)
    net = ["--arch", "test_resnet", "--kwarg", "num_classes=10", "--init-seed", "1"]
    zoograft("models", "add", "net", *net, *SHAPE)
    zoograft("finetune", "--model", "vit", "--dataset", "cifar10", "--save-as", "vit-good", *setting(PRETRAINING))
    named = ["--model", "vit-good", "--student", "net", "--dataset", "cifar10", "--save-as", "net-remem", "--json"]
    zoograft("remem", *named, *setting({**PROTOCOL, **changes}), output=result)


def report(job: dict[str, Any], plane: Path) -> None:
    content = job.get("result") or job
    found = RememResult.model_validate({k: v for k, v in content.items() if k in RememResult.model_fields})
    print(f"{found.n_train} to learn from, {found.n_validation} to choose by, {found.n_test} to test")
    print(f"{'setting':10} {'seeds':>5} {'student %':>20} {'teacher %':>20} {'gain, points':>22} {'excess, nats':>13}")
    for row in found.table:
        student = _interval(row.student_accuracy, row.student_accuracy_low, row.student_accuracy_high)
        teacher = _interval(row.teacher_accuracy, row.teacher_accuracy_low, row.teacher_accuracy_high)
        gain = _interval(row.gain, row.gain_low, row.gain_high)
        excess = "" if row.excess_nats is None else f"{row.excess_nats:.4f}"
        print(f"{row.setting:10} {row.n_seeds:5} {student:>20} {teacher:>20} {gain:>22} {excess:>13}")
    for failure in found.failures:
        print("left out:", failure)
    information_plane(found.plane, "light").write_html(plane, include_plotlyjs=True)
    print(f"information plane of {len(found.plane)} teachers: {plane}")


def _interval(mean: float | None, low: float | None, high: float | None) -> str:
    if mean is None:
        return ""
    shown = f"{100 * mean:.1f}"
    return shown if low is None or high is None else f"{shown} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--result", type=Path, help="Report this result instead of computing one.")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="Change the protocol.")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    result = arguments.result or RESULTS / "remem_cifar10.json"
    if arguments.result is None:
        changes = dict(one.split("=", 1) for one in arguments.set)
        run(Path(os.environ["ZOOGRAFT_SHARED_DATA"]), changes, result)
    report(json.loads(result.read_text()), result.with_suffix(".html"))


if __name__ == "__main__":
    main()
