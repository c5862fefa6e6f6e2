"""T1: `kill -9` of a job's process, of its supervisor, or of both, at random moments.

Every job must end once, in the bits of an undisturbed run, leaving no temporary file and no process. `--work transfer`
does it to real transfers (KL+DP between tiny timm models on digits), `--work kdep` to a pre-training with its targets,
training and fine-tunings, `--work remem` to a protocol of two tunings and a distillation: all published weights are
compared by SHA-256, and the results number by number. `--work sleep` takes jobs without torch, which start in
milliseconds.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from typing import Any
from uuid import UUID

from tests.reliability.harness import Lab, arguments, check_exact, laboratory, sleep_digest, verdict

TRAINING = {"batch_size": 32, "lr": 0.01, "seed": 3}
FINETUNING = {"epochs": 1, "batch_size": 64, "lrs": [0.1, 0.01], "seeds": [0, 1, 2]}
TUNING = {
    "settings": "baseline,both",
    **{"lr": 0.05, "steps": 16, "stop_points": [8, 16], "warmup_steps": 1, "batch_size": 32, "augment": "none"},
    **{"student_lr": 0.05, "student_steps": 8, "student_warmup_steps": 1, "student_batch_size": 32},
    **{"student_augment": "none", "information_updates": 3, "information_images": 32, "information_batch_size": 16},
}
SUBSET = {"subset": {"limit": 320, "seed": 1}, "dataset": "digits"}
WORKS: dict[str, dict[str, Any]] = {
    "transfer": {
        "teachers": ["test_resnet"],
        "student": "test_efficientnet",
        "method": {"method": "kl_dp", "epochs": 4, **TRAINING},
        "control": False,
        **SUBSET,
    },
    "kdep": {
        "teacher": "test_resnet",
        "student": "test_efficientnet",
        "params": {"epochs": 4, "views": 2, "augment": "crop", "loss_weight": 1.0, **TRAINING},
        "downstream": [{"dataset": "digits"}],
        "downstream_params": FINETUNING,
        **SUBSET,
    },
    "remem": {"model": "vit", "student": "test_efficientnet", "params": TUNING, **SUBSET},
}
NAMES = frozenset({"model", "published_teacher", "published_student", "provenance"})


def main() -> int:
    options = arguments(__doc__, count=20, jobs=6, workers=2, steps=40, work="sleep")
    training = WORKS.get(options.work)
    began = time.monotonic()
    changes = {"checkpoint_steps": 5} if training else {}
    with laboratory(options.db, without=options.without, **changes) as lab:
        crew = [lab.worker() for _ in range(options.workers)]
        expected = _undisturbed(lab, options.work) if training else None
        ids: list[UUID] = []

        def submit(count: int) -> None:
            spec = {"steps": options.steps, "step_s": 0.1}
            ids.extend(lab.submit_saving(training, count, options.work) if training else lab.submit(spec, count))

        submit(options.jobs)
        kills, orphans = _kill(lab, crew, options, ids, submit)
        finished = lab.wait(ids, 240)
        breaches = [] if finished else ["not every job ended"]
        if training:
            breaches += _check_exact(lab, ids, expected)
        else:
            breaches += check_exact(lab, ids, sleep_digest(options.steps))
        breaches += [f"{orphans} supervisors left processes behind"] if orphans else []
        attempts = [lab.job(one).attempt for one in ids]
        lab.stop_workers()
        breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    return verdict(
        "chaos_kill",
        options,
        breaches,
        work=options.work,
        jobs=len(ids),
        kills=kills,
        attempts=attempts,
        seconds=seconds,
    )


def _kill(lab: Lab, crew, options, ids, submit) -> tuple[dict[str, int], int]:
    """Strike `count` times; returns how often at what, and how many supervisors left processes behind."""
    chance = options.random
    kills = {"child": 0, "supervisor": 0, "both": 0}
    orphans = 0
    deck: list[str] = []
    while sum(kills.values()) < options.count:
        time.sleep(chance.uniform(0.1, 1.2))
        if lab.at_risk():
            continue
        running = lab.job_processes()
        if not running:
            if lab.wait(ids, 0.01):
                submit(2)
            continue
        deck = deck or chance.sample(list(kills), len(kills))  # of each as many, in a random order
        what = deck.pop()
        if what != "supervisor":
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(running), signal.SIGKILL)
        if what != "child":
            number = chance.randrange(len(crew))
            family = lab.descendants(crew[number].pid)
            crew[number].kill()
            crew[number].wait()
            if not lab.until(lambda family=family: not family & lab.alive().keys(), 3.0):
                orphans += 1
            crew[number] = lab.worker()
        kills[what] += 1
    return kills, orphans


def _undisturbed(lab: Lab, work: str) -> dict[str, Any]:
    """What a job ends in that nobody disturbs. What it kept for others to reuse is removed: they make it under fire."""
    lab.catalog_zoo()
    if work == "remem":
        _catalog_vit(lab)
    (one,) = lab.submit_saving(WORKS[work], 1, work)
    if not lab.wait([one], 120) or lab.job(one).state != "succeeded":
        raise RuntimeError(f"the undisturbed {work} did not succeed: {lab.job(one).message}")
    shutil.rmtree(lab.folder / "cache" / "outputs", ignore_errors=True)
    return _ending(lab, one)


def _catalog_vit(lab: Lab) -> None:
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = {"name": "vit", "architecture": "vit_tiny_patch16_224", "kwargs": kwargs, "input_size": [3, 32, 32]}
    (one,) = lab.submit({"model": model}, kind="register")
    if not lab.wait([one], 60) or lab.job(one).state != "succeeded":
        raise RuntimeError(f"the transformer was not catalogued: {lab.job(one).message}")


def _ending(lab: Lab, job_id: UUID) -> dict[str, Any]:
    """Checksums of the published weights, and the result without the names that differ."""
    files = {name: sums for name, sums in lab.published(job_id).items() if name.endswith(".safetensors")}
    return {"weights": files, "result": _nameless(lab.job(job_id).result)}


def _nameless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nameless(one) for key, one in value.items() if key not in NAMES}
    return value


def _check_exact(lab: Lab, ids: list[UUID], expected: dict[str, Any] | None) -> list[str]:
    assert expected is not None
    breaches = []
    for one in ids:
        job = lab.job(one)
        if job.state != "succeeded":
            breaches.append(f"{one} is {job.state} ({job.cause}: {job.message})")
            continue
        ended = _ending(lab, one)
        if ended["weights"] != expected["weights"]:
            breaches.append(f"{one} ended in other bits: {ended['weights']}")
        differ = [key for key, value in expected["result"].items() if ended["result"].get(key) != value]
        if differ:
            breaches.append(f"{one} ended with another {', '.join(differ)}")
        if (times := lab.completions(one)) > 1:
            breaches.append(f"{one} was completed {times} times")
    return breaches


if __name__ == "__main__":
    sys.exit(main())
