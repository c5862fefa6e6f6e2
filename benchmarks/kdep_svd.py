"""Streaming SVD of a teacher's features: O(D²) memory at 128,000 × 2,048, and agreement with torch.linalg.svd to 1e-5.

    python benchmarks/kdep_svd.py [--samples 131072] [--width 2048] [--json build/kdep_svd.json]

The features are drawn chunk by chunk and never held: as float32 they would fill N · D · 4 bytes. Peak memory is
measured in a process of its own, above what the interpreter with torch takes before it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from workers.science.kdep.svd import FeatureMoments, svd_basis

CHUNK, SHARDS = 1024, 2


def chunk_of(index: int, rows: int, width: int, spectrum: torch.Tensor) -> torch.Tensor:
    """Seeded features, their channels mixed by a rotation that costs nothing: halves are added and subtracted."""
    noise = torch.randn(rows, width, generator=torch.Generator().manual_seed(index)) * spectrum
    half = width // 2
    low, high = noise[:, :half], noise[:, half:]
    return torch.cat([low + high, low - high], dim=1) * 2**-0.5 + 3.0


def stream(samples: int, width: int) -> dict[str, float]:
    """Moments of all chunks in two shards, merged, and their singular vectors; seconds and bytes."""
    torch.set_num_threads(1)
    spectrum = torch.logspace(1, -2, width)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begun, cpu = time.perf_counter(), time.process_time()
    shards = [FeatureMoments.empty(width) for _ in range(SHARDS)]
    for index, start in enumerate(range(0, samples, CHUNK)):
        shards[index % SHARDS].update(chunk_of(index, min(CHUNK, samples - start), width, spectrum))
    moments = shards[0]
    for shard in shards[1:]:
        moments = moments.merge(shard)
    streamed, streamed_cpu = time.perf_counter() - begun, time.process_time() - cpu
    basis = svd_basis(moments, min(512, width))
    whole = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    expected = spectrum[: len(basis.singular_values)].double() * samples**0.5
    return {
        "samples": moments.count, "width": width, "stream_s": streamed, "stream_cpu_s": streamed_cpu,
        "eigh_s": whole - streamed, "peak_bytes_above_start": peak - before, "gram_bytes": width**2 * 8,
        "features_bytes": samples * width * 4,
        "largest_deviation_from_the_drawn_spectrum": float((basis.singular_values / expected - 1).abs().max()),
    }  # fmt: skip


def agreement(samples: int = 4096, width: int = 512) -> dict[str, float]:
    """Against torch.linalg.svd in float64, on features that fit: relative to the largest singular value."""
    spectrum = torch.logspace(1, -2, width)
    features = torch.cat([chunk_of(i, CHUNK, width, spectrum) for i in range(samples // CHUNK)])
    moments = FeatureMoments.empty(width)
    for part in features.split(700):
        moments.update(part)
    basis = svd_basis(moments, width)
    centred = features.double() - features.double().mean(0)
    _, values, vh = torch.linalg.svd(centred, full_matrices=False)
    projection = (basis.project(features.double()).abs() - (centred @ vh.T).abs()).abs().max()
    return {
        "agreement_samples": samples, "agreement_width": width,
        "singular_values_max_relative_error": float(((basis.singular_values - values) / values).abs().max()),
        "vectors_max_error": float(1 - (basis.components * vh.T).sum(0).abs().min()),
        "projection_max_error": float(projection / values[0] * samples**0.5),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=131_072)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--json", type=Path, default=Path("build/kdep_svd.json"))
    parser.add_argument("--stream-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream_only:
        print(json.dumps(stream(options.samples, options.width)))
        return
    command = [sys.executable, __file__, "--stream-only", "--samples", str(options.samples), "--width"]
    child = subprocess.run([*command, str(options.width)], check=True, capture_output=True, text=True)
    figures = {**json.loads(child.stdout), **agreement()}
    for name, value in figures.items():
        print(f"{name:45} {value:.6g}")
    within = figures["peak_bytes_above_start"] <= 8 * figures["gram_bytes"] + 256 * 2**20
    close = max(figures[name] for name in figures if name.endswith("_error")) <= 1e-5
    print(f"memory O(D²): {within}; agreement to 1e-5: {close}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({**figures, "memory_ok": within, "agreement_ok": close}, indent=1))
    if not (within and close):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
