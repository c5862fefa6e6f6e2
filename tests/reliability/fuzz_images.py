"""T12: ten thousand files, five hundred of them broken in every way we know; the scan lists exactly those.

    python -m tests.reliability.fuzz_images [--images 10000] [--bad 500] [--seed 0]

Truncated, overwritten, empty, HTML, PostScript, bombs by header; and among the good ones CMYK, palettes with alpha, grey
with alpha, 16-bit grey, 1 × 1, 1 × 30,000, GIF and EXIF-rotated. Values are checked for 16-bit grey and for EXIF. Memory
stays below 1.5 GB. Prints one JSON line; exits 1 on a breach.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend.domain.specs import parse_spec
from backend.prediction_files import load
from backend.settings import Settings
from backend.store import catalog, jobs, migrate, results
from backend.store.session import Store
from backend.submission import submit

MAX_RSS_BYTES = 1.5e9
Rng = np.random.Generator


def peak_rss_bytes() -> int:
    """The most memory this process has held. Not `ru_maxrss`: across an exec that keeps the parent's."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def noise(rng: Rng, width: int = 24, height: int = 24) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def palette(rng: Rng) -> bytes:
    image = noise(rng).quantize(16)
    return saved(image, "PNG", transparency=bytes(range(0, 256, 16)))


def rotated(rng: Rng) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(2, 9))
    return saved(noise(rng, 30, 20), "JPEG", exif=exif)


def sixteen_bits(rng: Rng) -> bytes:
    return saved(Image.fromarray(rng.integers(0, 65536, (20, 20), dtype=np.uint16)), "PNG")


GOOD: dict[str, Callable[[Rng], bytes]] = {
    "rgb.png": lambda rng: saved(noise(rng), "PNG"),
    "rgb.jpg": lambda rng: saved(noise(rng), "JPEG"),
    "cmyk.jpg": lambda rng: saved(noise(rng).convert("CMYK"), "JPEG"),
    "palette-alpha.png": palette,
    "grey-alpha.png": lambda rng: saved(noise(rng).convert("LA"), "PNG"),
    "rgba.png": lambda rng: saved(noise(rng).convert("RGBA"), "PNG"),
    "grey16.png": sixteen_bits,
    "one.png": lambda rng: saved(noise(rng, 1, 1), "PNG"),
    "bits.png": lambda rng: saved(noise(rng).convert("1"), "PNG"),
    "first.gif": lambda rng: saved(noise(rng), "GIF"),
    "rotated.jpg": rotated,
    "rgb.webp": lambda rng: saved(noise(rng), "WEBP"),
    "rgb.bmp": lambda rng: saved(noise(rng), "BMP"),
    "rgb.tif": lambda rng: saved(noise(rng), "TIFF"),
}
RARE: dict[str, Callable[[Rng], bytes]] = {
    "long.png": lambda rng: saved(noise(rng, 1, 30_000), "PNG"),
    "wide.png": lambda rng: saved(noise(rng, 30_000, 1), "PNG"),
}


def truncated(rng: Rng, kind: str) -> bytes:
    content = saved(noise(rng), kind)
    return content[: int(len(content) * rng.uniform(0.2, 0.8))]


def bomb(rng: Rng) -> bytes:
    """A PNG whose header claims a billion pixels, 21 kB of zeros behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 32_000, 32_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 20_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def real_bomb(rng: Rng) -> bytes:
    return saved(Image.new("1", (9000, 9000)), "PNG")


def overwritten(rng: Rng) -> bytes:
    """A PNG with a damaged check sum in its pixels: it cannot be decoded to what it was."""
    content = bytearray(saved(noise(rng), "PNG"))
    at = content.index(b"IDAT") + 4
    for offset in rng.integers(0, 40, 12):
        content[at + int(offset)] ^= int(rng.integers(1, 256))
    return bytes(content)


BAD: dict[str, Callable[[Rng], bytes]] = {
    "empty.jpg": lambda rng: b"",
    "html.jpg": lambda rng: b"<!doctype html><html><body>404 Not Found</body></html>",
    "postscript.png": lambda rng: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "garbage.png": lambda rng: rng.bytes(300),
    "header.png": lambda rng: b"\x89PNG\r\n\x1a\n" + rng.bytes(60),
    "truncated.png": lambda rng: truncated(rng, "PNG"),
    "truncated.jpg": lambda rng: truncated(rng, "JPEG"),
    "truncated.bmp": lambda rng: truncated(rng, "BMP"),
    "truncated.webp": lambda rng: truncated(rng, "WEBP"),
    "overwritten.png": overwritten,
    "zeros.gif": lambda rng: b"GIF89a" + bytes(100),
}
COSTLY: dict[str, Callable[[Rng], bytes]] = {"bomb.png": bomb, "real-bomb.png": real_bomb}


def write_files(folder: Path, n_images: int, n_bad: int, rng: Rng) -> set[str]:
    """The data set on disk; returns the ids of the bad files."""
    places = set(rng.permutation(n_images)[:n_bad].tolist())
    good, bad = list(GOOD.items()), list(BAD.items())
    made: dict[int, bytes] = {}
    names: set[str] = set()
    for i in range(n_images):
        if i in places:
            costly = len(names) < 2 * len(COSTLY)
            name, make = list(COSTLY.items())[len(names) % 2] if costly else bad[i % len(bad)]
        elif i % 997 == 5:
            name, make = list(RARE.items())[i % 2]
        else:
            name, make = good[i % len(good)]
        # Good files repeat after a while: writing them is not what is measured.
        key = hash((name, i % 300)) if i not in places else None
        content = made.get(key) if key is not None else None  # type: ignore[arg-type]
        if content is None:
            content = make(rng)
            if key is not None:
                made[key] = content
        sample_id = f"{'ab'[i % 2]}/{i:05d}-{name}"
        (folder / sample_id).parent.mkdir(parents=True, exist_ok=True)
        (folder / sample_id).write_bytes(content)
        if i in places:
            names.add(sample_id)
    return names


def run_job(store: Store, settings: Settings, kind: str, spec: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """A job the way the runner runs it, in this process."""
    from workers import tasks
    from workers.lifecycle import RunningJob

    record = submit(store, settings, kind, spec).job
    with store.write() as connection:
        claim = jobs.claim(connection, worker="fuzz", host="fuzz", lease_s=3600, job_id=record.id)
    assert claim is not None
    job = RunningJob(
        id=record.id,
        kind=kind,
        spec=parse_spec(kind, claim.job.spec),
        settings=settings,
        store=store,
        fence=claim.fence,
        attempt=1,
        device="cpu",
        scratch=scratch,
    )
    result = tasks.load(kind)(job)
    job.publish(result)
    return result


def check_values(settings: Settings) -> list[str]:
    """16-bit grey is scaled, EXIF orientation applied."""
    from workers.inputs.decoding import decode

    breaches = []
    grey = decode(saved(Image.fromarray(np.array([[40000]], dtype=np.uint16)), "PNG"), settings.max_image_pixels)
    if grey.getpixel((0, 0)) != (156, 156, 156):
        breaches.append(f"I;16 40000 became {grey.getpixel((0, 0))}, not 156")
    exif = Image.Exif()
    exif[0x0112] = 8
    if decode(saved(Image.new("RGB", (30, 20)), "JPEG", exif=exif), settings.max_image_pixels).size != (20, 30):
        breaches.append("EXIF orientation was not applied")
    return breaches


def fuzz(n_images: int, n_bad: int, seed: int) -> dict[str, Any]:
    """Write the files, scan them, and say what was found."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        wanted = write_files(root / "images", n_images, n_bad, rng)
        settings = Settings(data_dir=root / "data")
        settings.data_dir.mkdir()
        (root / "scratch").mkdir()
        migrate.upgrade(settings.database)
        store = Store.open(settings.database, settings=settings)
        try:
            location = str(root / "images")
            run_job(
                store,
                settings,
                "register",
                {"dataset": {"name": "fuzz", "source": "imagefolder", "location": location}},
                root / "scratch",
            )
            model = {
                "name": "m",
                "architecture": "test_resnet",
                "kwargs": {"num_classes": 2},
                "input_size": [3, 32, 32],
            }
            run_job(store, settings, "register", {"model": model}, root / "scratch")
            began = time.perf_counter()
            result = run_job(store, settings, "scan", {"models": ["m"], "dataset": "fuzz"}, root / "scratch")
            scan_s = time.perf_counter() - began
            with store.read() as connection:
                n_classes = catalog.get_dataset(connection, "fuzz").n_classes
                stored = results.current_evaluation(connection, "m", "fuzz", "all")
            predictions = load(stored)
        finally:
            store.close()
        found = set(result["bad_samples"])
        rss = peak_rss_bytes()
        breaches = check_values(settings)
        if found != wanted:
            breaches.append(f"missed {sorted(wanted - found)[:5]}, accused {sorted(found - wanted)[:5]}")
        if len(predictions) != n_images - n_bad or set(predictions.sample_ids.tolist()) & wanted:
            breaches.append(f"{len(predictions)} predictions for {n_images - n_bad} good images")
        if rss > MAX_RSS_BYTES:
            breaches.append(f"{rss / 1e9:.2f} GB of memory")
        return {
            "test": "T12",
            "seed": seed,
            "images": n_images,
            "bad": n_bad,
            "listed": len(found),
            "classes": n_classes,
            "scan_s": round(scan_s, 1),
            "max_rss_gb": round(rss / 1e9, 2),
            "breaches": breaches,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--bad", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as the runner does; more threads than free processors are many times slower
    outcome = fuzz(args.images, args.bad, args.seed)
    print(json.dumps(outcome))
    sys.exit(1 if outcome["breaches"] else 0)


if __name__ == "__main__":
    main()
