"""Promise: expertness of 12 blocks on 2,000 images in one pass, with memory that does not depend on the tokens.

ViT-B/16 with random weights on random images. Prints seconds of the pass and of the co-clustering, and the memory the
measurement adds to a plain forward pass, at 224 and at 112 pixels (196 and 49 tokens): the two must be alike.

    python -m benchmarks.expertness_vitb --images 2000
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "expertness_vitb.json"


def measure(images: int, size: int, batch: int, classes: int, *, expertness: bool, threads: int) -> dict[str, float]:
    """One pass in this process; peak memory is the process's own, so each measurement gets a fresh one."""
    import timm
    import torch

    from workers.science.expertness import block_expertness, cocluster, recorded_energies

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", img_size=size, num_classes=classes).eval()

    def forward() -> None:
        for start in range(0, images, batch):
            generator = torch.Generator().manual_seed(start)
            with torch.no_grad():
                model(torch.randn(min(batch, images - start), 3, size, size, generator=generator))

    began, cpu = time.perf_counter(), time.process_time()
    if not expertness:
        forward()
        passed = {"pass_s": time.perf_counter() - began, "pass_cpu_s": time.process_time() - cpu}
        return {**passed, "peak_bytes": _peak()}
    with recorded_energies(model, images) as energies:
        forward()
    pass_s, pass_cpu_s, peak = time.perf_counter() - began, time.process_time() - cpu, _peak()
    began, cpu = time.perf_counter(), time.process_time()
    found = [
        block_expertness(energy, i, cocluster(energy.energy.numpy().T, classes)) for i, energy in enumerate(energies)
    ]
    return {
        "pass_s": pass_s,
        "pass_cpu_s": pass_cpu_s,
        "peak_bytes": peak,
        "cluster_s": time.perf_counter() - began,
        "cluster_cpu_s": time.process_time() - cpu,
        "energy_bytes": sum(energy.energy.numel() * 4 for energy in energies),
        "expertness_mean": sum(one.expertness or 0.0 for one in found) / len(found),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _fresh(arguments: argparse.Namespace, images: int, size: int, *, expertness: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", "--images", str(images), "--size", str(size)]
    command += ["--batch", str(arguments.batch), "--classes", str(arguments.classes)]
    command += ["--threads", str(arguments.threads), *(["--expertness"] if expertness else [])]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(shown)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--expertness", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(
            json.dumps(
                measure(
                    arguments.images,
                    arguments.size,
                    arguments.batch,
                    arguments.classes,
                    expertness=arguments.expertness,
                    threads=arguments.threads,
                )
            )
        )
        return
    few = min(arguments.images, 8 * arguments.batch, 128)
    few = max(few, arguments.classes)
    rows = {
        "whole": _fresh(arguments, arguments.images, 224, expertness=True),
        "plain_few": _fresh(arguments, few, 224, expertness=False),
        "few": _fresh(arguments, few, 224, expertness=True),
        "plain_few_112": _fresh(arguments, few, 112, expertness=False),
        "few_112": _fresh(arguments, few, 112, expertness=True),
    }
    added = {side: rows[f"few{side}"]["peak_bytes"] - rows[f"plain_few{side}"]["peak_bytes"] for side in ("", "_112")}
    overhead = rows["few"]["pass_cpu_s"] / rows["plain_few"]["pass_cpu_s"]
    whole = rows["whole"]
    print(f"{arguments.images} images, 12 blocks of 3,072 neurons, {arguments.classes} clusters")
    rate = f"{whole['pass_cpu_s']:.1f} CPU s, {arguments.images / whole['pass_cpu_s']:.2f} images each"
    print(f"  pass                    {whole['pass_s']:9.1f} s   ({rate})")
    print(f"  co-clustering           {whole['cluster_s']:9.1f} s   ({whole['cluster_cpu_s']:.1f} CPU s)")
    print(f"  energies kept           {whole['energy_bytes'] / 2**20:9.1f} MiB")
    print(f"  peak of the process     {whole['peak_bytes'] / 2**20:9.1f} MiB")
    print(f"  pass / plain forward    {overhead:9.2f}     ({few} images)")
    print(f"  added memory, 196 tokens{added[''] / 2**20:9.1f} MiB   ({few} images)")
    print(f"  added memory,  49 tokens{added['_112'] / 2**20:9.1f} MiB")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"images": arguments.images, "overhead": overhead, "added_bytes": added, **rows}))


if __name__ == "__main__":
    main()
