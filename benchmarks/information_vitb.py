"""Memory and time of mutual information by reconstruction at ViT-B size: features of 2,000 images, then the decoder.

ViT-B/16 with random weights on random images. Prints seconds for the features, per update and in all, the size of the
cache, and the peak memory of the process. With fewer `--updates` than the paper's 2,000 the total is extrapolated, and
says so.

    python -m benchmarks.information_vitb --images 2000 --updates 2000
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import timm
import torch

from backend.domain.remem import InformationParams
from workers.science.information.features import ModelFeatures, cache_bytes
from workers.science.information.reconstruction import Reconstruction, kept_when_they_fit
from workers.science.preprocessed import Preprocessed

RESULTS = Path(__file__).parent / "results" / "information_vitb.json"
PAPER_UPDATES = 2_000


def views(positions: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(int(i))) for i in positions])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--updates", type=int, default=PAPER_UPDATES)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = Preprocessed(timm.create_model("vit_base_patch16_224"), 224, (0.5,) * 3, (0.5,) * 3)
    source = ModelFeatures(model, views, arguments.images)
    params = InformationParams(updates=arguments.updates, batch_size=arguments.batch)

    began, cpu = time.perf_counter(), time.process_time()
    steps = kept_when_they_fit(source, 16 * 2**30, batch_size=16)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            features = end.value
            break
    features_s, features_cpu_s = time.perf_counter() - began, time.process_time() - cpu
    reconstruction = Reconstruction(features, params)
    began, cpu = time.perf_counter(), time.process_time()
    losses = [p.metrics["loss_nats"] for p in reconstruction.fit() if "loss_nats" in p.metrics]
    update_s = (time.perf_counter() - began) / arguments.updates
    update_cpu_s = (time.process_time() - cpu) / arguments.updates
    began = time.perf_counter()
    heldout = ModelFeatures(model, views, min(64, arguments.images))
    loss, floor = reconstruction.score(heldout)
    score_s = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    whole_s = features_s + PAPER_UPDATES * update_s
    measured = "measured" if arguments.updates == PAPER_UPDATES else f"extrapolated from {arguments.updates} updates"

    parameters = sum(p.numel() for p in reconstruction.decoder.parameters())
    print(f"{arguments.images} images, D 768, 14 x 14 grid, decoder of {parameters:,} parameters")
    print(f"  features                {features_s:9.1f} s   ({features_cpu_s:.1f} CPU s)")
    print(f"  cache                   {cache_bytes(source) / 2**20:9.1f} MiB")
    print(f"  one update of {arguments.batch:4}      {update_s:9.3f} s   ({update_cpu_s:.3f} CPU s)")
    print(f"  features + 2,000 updates{whole_s:9.1f} s   ({measured})")
    print(f"  scoring {heldout.n_images:4} images    {score_s:9.1f} s   (R {loss:.4f}, floor {floor:.4f} nats)")
    print(f"  peak of the process     {peak / 2**20:9.1f} MiB")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "images": arguments.images,
                "updates": arguments.updates,
                "features_s": features_s,
                "features_cpu_s": features_cpu_s,
                "update_s": update_s,
                "update_cpu_s": update_cpu_s,
                "whole_s": whole_s,
                "cache_bytes": cache_bytes(source),
                "peak_bytes": peak,
                "losses": losses,
            }
        )
    )


if __name__ == "__main__":
    main()
