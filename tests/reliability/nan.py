"""T13: a loss, a state or a model that is not finite.

A job whose loss is NaN fails as `nonfinite_loss` naming the step and the term, is not tried again, and its last
checkpoint is finite; neighbours finish; no NaN enters an event. A scan over several models, of which one answers all
NaN and one infinity, scores the others, says why those two are not, ranks neither, and no answer of the REST interface
holds a number that JSON does not have.
"""

import json
import math
import sys
import time

from sqlalchemy import select

from backend.store.tables import job_events
from tests.reliability.harness import Lab, arguments, check_exact, laboratory, sleep_digest, verdict
from tests.reliability.web import web

GOOD, BROKEN = ["test_efficientnet", "test_resnet"], ["all_inf", "all_nan"]


def main() -> int:
    options = arguments(__doc__, count=30, scan=1)
    chance = options.random
    began = time.monotonic()
    breaches: list[str] = []
    with laboratory(options.db, without=options.without) as lab:
        for _ in range(2):
            lab.worker()
        steps = {
            lab.submit({"steps": 9, "fault": "nan", "fault_step": step})[0]: step
            for step in _steps(chance, options.count)
        }
        healthy = lab.submit({"steps": 9}, 5)
        if not lab.wait([*steps, *healthy], 180):
            breaches.append("not every job ended")
        for one, step in steps.items():
            job = lab.job(one)
            if (job.state, job.cause, job.attempt) != ("failed", "nonfinite_loss", 1):
                breaches.append(f"{job.state}, {job.cause} after {job.attempt} attempts")
            if f"step {step}" not in str(job.message) or "'asked'" not in str(job.message):
                breaches.append(f"the message names neither step nor term: {job.message}")
        breaches += check_exact(lab, healthy, sleep_digest(9))
        with lab.store.read() as connection:
            for data in connection.scalars(select(job_events.c.data).where(job_events.c.type == "metric")):
                if not all(math.isfinite(value) for value in data["values"].values()):
                    breaches.append(f"an event holds {data}")
        if options.scan:
            _scan(lab, breaches)
        lab.stop_workers()
        breaches += [f"left over: {one}" for one in lab.leftovers()]
    seconds = round(time.monotonic() - began, 1)
    counts = {"jobs": len(steps), "healthy": len(healthy), "scanned": len(GOOD + BROKEN) * options.scan}
    return verdict("nan", options, breaches, **counts, seconds=seconds)


def _steps(chance, count: int) -> list[int]:
    return [chance.randint(1, 9) for _ in range(count)]


def _scan(lab: Lab, breaches: list[str]) -> None:
    """Scan two models that work and two that do not, and look at everything that is said about it."""
    lab.catalog_zoo()
    _add_broken(lab)
    (one,) = lab.submit({"models": ["*"], "dataset": "digits", "device": "cpu"}, kind="scan")
    lab.wait([one], 120)
    job = lab.job(one)
    if job.state != "succeeded" or job.result is None:
        breaches.append(f"the scan is {job.state} ({job.cause}: {job.message})")
        return
    if sorted(row["model"] for row in job.result["evaluated"]) != GOOD:
        breaches.append(f"scored: {job.result['evaluated']}")
    reasons = {row["model"]: row["reason"] for row in job.result["failed"]}
    if sorted(reasons) != BROKEN or not all("nonfinite_logits" in reason for reason in reasons.values()):
        breaches.append(f"failed: {reasons}")
    with web(lab) as server:

        def get(path: str) -> dict:
            answer = server.client.get(f"/api/v1/{path}")
            if answer.status_code != 200:
                breaches.append(f"{path}: {answer.status_code}")
                return {"items": []}
            return json.loads(answer.text, parse_constant=lambda name: breaches.append(f"{name} in {path}"))

        ranked = {name for row in get("pairs")["items"] for name in (row["teacher"], row["student"])}
        if sorted(ranked) != GOOD:
            breaches.append(f"ranked: {sorted(ranked)}")
        failed = get("evaluations?state=failed")["items"]
        if sorted(row["model"] for row in failed) != BROKEN or any(row["accuracy"] is not None for row in failed):
            breaches.append(f"evaluations: {failed}")
        for path in ("evaluations", "models", "jobs", f"jobs/{one}", f"jobs/{one}/logs", f"pairs/{GOOD[0]}/{GOOD[1]}"):
            get(path)


def _add_broken(lab: Lab) -> None:
    """Catalogue a model whose weights are all NaN, and one whose last layer adds infinity."""
    import timm
    from safetensors.torch import save_file

    entry = {"architecture": "test_resnet", "kwargs": {"num_classes": 10}, "input_size": [3, 32, 32]}
    state = timm.create_model("test_resnet", num_classes=10).state_dict()
    spoiled = {
        "all_nan": {key: value * math.nan if value.is_floating_point() else value for key, value in state.items()},
        "all_inf": {**state, "fc.bias": state["fc.bias"] + math.inf},
    }
    ids = []
    for name, weights in spoiled.items():
        path = lab.folder / f"{name}.safetensors"
        save_file(weights, path)
        ids += lab.submit({"model": {**entry, "name": name, "checkpoint": str(path)}}, kind="register")
    if not lab.wait(ids, 60) or any(lab.job(one).state != "succeeded" for one in ids):
        raise RuntimeError(f"the broken models were not catalogued: {[lab.job(one).message for one in ids]}")


if __name__ == "__main__":
    sys.exit(main())
