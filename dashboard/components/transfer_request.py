"""What a transfer form asks for: the job's spec, the equal `zoograft` and `curl` commands, and what it costs."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from backend.domain.errors import BadInput
from backend.domain.jobs import Job
from backend.domain.methods import METHODS, Transfer, check_teachers, parse_method
from backend.domain.pairs import PairDetail
from dashboard import formats

SEVERAL = ("multi", "teacher_order")
"""Settings that mean something for several teachers only."""
LARGE = 100_000


def changed(method: str, names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """The parameters that differ from the method's defaults, checked.

    Raises:
        BadInput: a value out of range.
    """
    known = METHODS[method].model_fields
    given: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        if name not in known:
            continue
        default = known[name].default
        if isinstance(default, bool):
            value = value == "true"
        elif value in ("", None):
            value = None
        elif isinstance(default, float) and isinstance(value, int):
            value = float(value)
        if value != default:
            given[name] = value
    parse_method(method, given)
    return given


def specification(
    pair: PairDetail,
    teachers: Sequence[str],
    method: str,
    given: Mapping[str, Any],
    train: str,
    limit: Any,
    device: str,
    control: bool,
) -> dict[str, Any]:
    """The spec of the transfer job, without what is the default anyway.

    Raises:
        BadInput: a number of teachers that the method does not take.
    """
    if not teachers:
        raise BadInput("teachers", list(teachers), "at least one model to learn from")
    check_teachers(parse_method(method, given), teachers)
    kept = {name: value for name, value in given.items() if len(teachers) > 1 or name not in SEVERAL}
    spec: dict[str, Any] = {
        "teachers": list(teachers),
        "student": pair.student,
        "dataset": pair.dataset,
        "method": {"method": method, **kept},
        "train_split": train,
        "split": pair.split,
    }
    if limit not in (None, ""):
        spec["subset"] = {"limit": limit}
    if device != "auto":
        spec["device"] = device
    if not control:
        spec["control"] = False
    return spec


def as_command(spec: Mapping[str, Any]) -> str:
    """The same as a `zoograft` command."""
    method = dict(spec["method"])
    words = ["zoograft", "transfer"]
    words += [word for teacher in spec["teachers"] for word in ("--teacher", teacher)]
    words += ["--student", spec["student"], "--dataset", spec["dataset"], "--method", method.pop("method")]
    words += ["--train-split", spec["train_split"], "--split", spec["split"]]
    if "subset" in spec:
        words += ["--limit", str(spec["subset"]["limit"])]
    for name, value in method.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    if "device" in spec:
        words += ["--device", spec["device"]]
    if not spec.get("control", True):
        words.append("--no-control")
    return " ".join(shlex.quote(word) for word in words)


def as_curl(spec: Mapping[str, Any], base: str, *, token: bool) -> str:
    """The same as a request."""
    body = json.dumps({"kind": "transfer", "spec": dict(spec)})
    secret = ' -H "Authorization: Bearer $ZOOGRAFT_TOKEN"' if token else ""
    return f"curl -X POST {base}/api/v1/jobs{secret} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def n_steps(spec: Mapping[str, Any], n_train: int) -> tuple[int, int]:
    """Optimizer steps of one training, and samples learnt from."""
    params = _params(spec)
    limit = (spec.get("subset") or {}).get("limit")
    samples = min(n_train, limit) if limit else n_train if n_train < LARGE else math.ceil(n_train * 0.1)
    return params.steps or params.epochs * max(1, math.ceil(samples / params.batch_size)), samples


def trainings(spec: Mapping[str, Any]) -> int:
    """How often the student is trained: by every teacher in turn (not in parallel), and once without one to compare."""
    return (1 if at_once(spec) > 1 else len(spec["teachers"])) + bool(spec.get("control", True))


def at_once(spec: Mapping[str, Any]) -> int:
    """Teachers that one step asks."""
    return len(spec["teachers"]) if (spec.get("method") or {}).get("multi") == "parallel" else 1


def cost(spec: Mapping[str, Any], n_train: int, earlier: Sequence[Job]) -> str:
    """How much work this is, and how long it takes by earlier transfers to this student.

    Args:
        n_train: Samples of the split that is learnt from.
        earlier: Jobs of this student; those count that learnt from one of these teachers, as many at a time.
    """
    steps, samples = n_steps(spec, n_train)
    times = trainings(spec)
    text = f"{samples:,} samples; {steps:,} steps{f' for each of {times} trainings' if times > 1 else ''}"
    speeds = sorted(
        job.progress.total / (job.finished_at - job.started_at).total_seconds()
        for job in earlier
        if job.result is not None
        and job.started_at
        and job.finished_at
        and job.finished_at > job.started_at
        and set(job.spec.get("teachers", ())) & set(spec["teachers"])
        and at_once(job.spec) == at_once(spec)
    )
    if not speeds:
        many = f" with {at_once(spec)} teachers at once" if at_once(spec) > 1 else ""
        return f"{text}. How long a step takes{many} is not known yet for this pair; the job says so once it runs."
    seconds = steps * times / speeds[len(speeds) // 2]
    return f"{text}. About {formats.duration(seconds)}, by {len(speeds)} earlier transfer(s) of this pair."


def _params(spec: Mapping[str, Any]) -> Transfer:
    return parse_method(spec["method"]["method"], {k: v for k, v in spec["method"].items() if k != "method"})
