"""Every setting of every process, read from the environment once (prefix ZOOGRAFT_). The only reader of it."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

# What stands between a fault and its harm. Each can be switched off, for the test that shows what it is for.
GUARDS: dict[str, str] = {
    "fence": "a write carries the token of its attempt",
    "reaper_guard": "no job is taken away until the database was reachable for two leases",
    "immediate": "on SQLite a writer takes the lock before it reads",
    "idempotency": "a key and its owner stand for one job",
    "pdeathsig": "the kernel ends a process whose parent has died",
    "parent_poll": "a process looks for its parent by itself",
    "loss_signal": "an attempt that lost its lease is ended",
    "cancel_kill": "a job that does not stop in time is ended by force",
    "stall": "a step that does not come ends the attempt",
    "gpu_lock": "one job at a time on a GPU of this machine",
    "disk": "no job is taken where there is no room for its checkpoints",
    "checksum": "a checkpoint is read only if it is what was written",
}


def default_data_dir() -> Path:
    """The user's data directory, as each platform has it."""
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "zoograft"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "zoograft"
    return Path(os.environ.get("XDG_DATA_HOME", home / ".local" / "share")) / "zoograft"


class Settings(BaseSettings):
    """Frozen; made once at each door (CLI, API factory, supervisor) and passed on as an argument."""

    model_config = SettingsConfigDict(env_prefix="ZOOGRAFT_", frozen=True, extra="ignore")

    data_dir: Path = Field(default_factory=default_data_dir)
    database_url: str | None = None
    broker_url: str | None = None
    artifacts_url: str | None = None

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65_535)
    token: SecretStr | None = None
    allowed_hosts: tuple[str, ...] = ()
    data_roots: tuple[Path, ...] = ()

    lease_s: float = Field(default=90.0, gt=0)
    heartbeat_s: float = Field(default=15.0, gt=0)
    reaper_guard_s: float = Field(default=180.0, ge=0)
    reaper_s: float = Field(default=15.0, gt=0)
    cancel_grace_s: float = Field(default=3.0, ge=0)
    drain_s: float = Field(default=60.0, gt=0)
    poll_s: float = Field(default=0.5, gt=0)
    stall_s: float = Field(default=600.0, gt=0)
    checkpoint_s: float = Field(default=60.0, ge=0)
    checkpoint_steps: int = Field(default=1000, ge=1)
    retry_base_s: float = Field(default=5.0, ge=0)
    retry_max_s: float = Field(default=600.0, ge=0)
    store_patience_s: float = Field(default=1800.0, ge=0)
    min_free_bytes: int = Field(default=1_000_000_000, ge=0)

    threads: int | None = Field(default=None, ge=1, le=1024)
    # Jobs at a time on the CPU; foreground commands and `zoograft up` use the machine's cores, four jobs at most.
    cpu_slots: int = Field(default=1, ge=1, le=256)
    # Whether an idle supervisor imports torch ahead of the next job.
    warm: bool = True
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    log_format: str = Field(default="text", pattern="^(text|json)$")
    # Off-switches for tests only: names of GUARDS, by commas.
    disabled_guards: str = ""

    @field_validator("disabled_guards")
    @classmethod
    def _known_guards(cls, value: str) -> str:
        unknown = {part.strip() for part in value.split(",") if part.strip()} - GUARDS.keys()
        if unknown:
            raise ValueError(f"unknown guards {sorted(unknown)}; known are {sorted(GUARDS)}")
        return value

    @cached_property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'zoograft.db'}"

    @cached_property
    def artifacts(self) -> str:
        return self.artifacts_url or str(self.data_dir / "artifacts")

    @property
    def embedded(self) -> bool:
        """Whether the store is our own SQLite file, migrated and worked without being asked."""
        return self.database_url is None or self.database_url.startswith("sqlite")

    def guard(self, name: str) -> bool:
        """Whether a guard is on; always, except in the tests that take it away."""
        return name not in {part.strip() for part in self.disabled_guards.split(",")}


def cores_in_slots(settings: Settings) -> int:
    """How many CPU jobs fill this machine: one per core or per `threads` cores, four at most; or what was set."""
    if "cpu_slots" in settings.model_fields_set:
        return settings.cpu_slots
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores // (settings.threads or 1)))


def threads_per_job(settings: Settings) -> int:
    """Threads of a CPU job: what was set (here or as OMP_NUM_THREADS), else the machine's cores shared by the slots."""
    if settings.threads is not None:
        return settings.threads
    given = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(given) if given.isdigit() and int(given) else max(1, cores // settings.cpu_slots)


def environment(**changes: str | None) -> dict[str, str]:
    """The environment for a process we start: ours, with changes; None takes a name away."""
    changed = {**os.environ, **{name: value for name, value in changes.items() if value is not None}}
    return {name: value for name, value in changed.items() if changes.get(name, "") is not None}
