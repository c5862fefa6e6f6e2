"""T11: checkpoints that were flipped, cut off, swapped for another job's, forged, or replaced by a pickle bomb.

A resumed job goes on from the one before, or starts anew, and says so; it never loads a damaged state silently and never
executes anything (a canary file tells). Without `checksum` flipped bits in the tensors are loaded as if nothing was.
"""

import pickle
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path
from uuid import uuid4

import torch

from backend.domain.specs import SleepSpec
from backend.settings import Settings
from backend.store import artifacts
from backend.store.job_records import Checkpoint
from tests.reliability.harness import arguments, verdict
from workers.inputs.checkpoints import save_state
from workers.lifecycle import RunningJob

KINDS = ("flip", "cut", "other spec", "bomb", "header", "gone")


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def main() -> int:
    options = arguments(__doc__, count=200)
    chance = options.random
    began = time.monotonic()
    breaches: list[str] = []
    counts = {"fell_back": 0, "anew": 0}
    torch.manual_seed(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        canary = folder / "canary"
        settings = Settings(data_dir=folder, disabled_guards=",".join(options.without))
        states = [{"weights": torch.randn(64, 8), "step": step} for step in (10, 20)]
        for number in range(options.count):
            spec = SleepSpec(steps=100)
            job = _job(settings, folder / str(number), spec)
            pointers = [_keep(job, state) for state in states]
            damaged = 2 if chance.random() < 0.3 else 1
            for pointer in pointers[-damaged:]:
                _damage(chance, Path(pointer.uri), chance.choice(KINDS), canary)
            job.checkpoints = tuple(reversed(pointers))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = job.resume_state()
            wanted = states[0] if damaged == 1 else None
            if canary.exists():
                breaches.append(f"run {number}: executed code from a checkpoint")
                canary.unlink()
            if (found is None) != (wanted is None):
                breaches.append(f"run {number}: loaded {'nothing' if found is None else 'a damaged state'}")
            elif found is not None and not torch.equal(found["weights"], wanted["weights"]):
                breaches.append(f"run {number}: loaded a damaged state silently")
            told = [data["message"] for kind, data in job._pending if kind == "log"]
            if sum("cannot be used" in line for line in told) != damaged:
                breaches.append(f"run {number}: did not say what was wrong: {told}")
            counts["anew" if found is None else "fell_back"] += 1
    seconds = round(time.monotonic() - began, 1)
    return verdict("corrupt_ckpt", options, breaches, runs=options.count, **counts, seconds=seconds)


def _job(settings: Settings, scratch: Path, spec: SleepSpec) -> RunningJob:
    scratch.mkdir()
    return RunningJob(uuid4(), "sleep", spec, settings, None, 1, 1, "cpu", scratch)  # type: ignore[arg-type]


def _keep(job: RunningJob, state) -> Checkpoint:
    """What `RunningJob.checkpoint` writes, without a store to point to it."""
    header = {"spec": job._spec_hash(), "step": str(state["step"])}
    saved = save_state(job.scratch / f"checkpoint-{state['step']}.safetensors", state, metadata=header)
    uri, _, sha256 = artifacts.put(job.settings.artifacts, job._place(saved.path.name), saved.path)
    return Checkpoint(uri, sha256, state["step"])


def _damage(chance, path: Path, how: str, canary: Path) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif how == "other spec":
        save_state(path, {"weights": torch.zeros(64, 8), "step": 99}, metadata={"spec": "another"})
    elif how == "bomb":
        path.write_bytes(pickle.dumps({"weights": Bomb(canary)}))
    elif how == "header":
        size = chance.choice([2**63 - 1, 10**9, len(content) + 1, 0])
        path.write_bytes(struct.pack("<Q", size) + content[8:])
    else:
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
