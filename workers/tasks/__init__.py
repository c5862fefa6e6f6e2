"""Job kind → where its task lives. A task is a module with `run(job: RunningJob) -> dict`, imported when it is needed.

`TORCH_FREE` kinds run in a process that never imports torch, so they start in milliseconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

TASKS: dict[str, str] = {
    "sync": "workers.tasks.sync:run",
    "register": "workers.tasks.register:run",
    "scan": "workers.tasks.scan:run",
    "flips": "workers.tasks.flips:run",
    "finetune": "workers.tasks.finetune:run",
    "transfer": "workers.tasks.transfer:run",
    "kdep": "workers.tasks.kdep:run",
    "remem": "workers.tasks.remem:run",
    "analysis": "workers.tasks.analysis:run",
    "sleep": "workers.tasks.sleep:run",
}

TORCH_FREE = frozenset({"sleep", "flips"})


def load(kind: str) -> Callable[[Any], dict[str, Any]]:
    """The function that runs a kind of job."""
    module, _, name = TASKS[kind].partition(":")
    task: Callable[[Any], dict[str, Any]] = getattr(importlib.import_module(module), name)
    return task
