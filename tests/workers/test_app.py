"""The Celery worker's promises are its configuration; how it behaves is in the chaos battery (postgres+redis)."""

import subprocess
import sys
from uuid import uuid4

import pytest

from backend.queue import TASK
from backend.settings import Settings
from workers import app as module
from workers.app import create_app


@pytest.fixture
def app(tmp_path, sqlite_url):
    settings = Settings(data_dir=tmp_path, database_url=sqlite_url, broker_url="redis://127.0.0.1:1/0")
    return create_app(settings)


def test_the_configuration_is_the_one_that_was_found_by_breaking_things(app):
    wanted = {
        "task_acks_late": False,
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_enable_remote_control": False,
        "worker_soft_shutdown_timeout": 45.0,
        "result_backend": None,
        "worker_max_tasks_per_child": None,
    }
    assert {name: getattr(app.conf, name) for name in wanted} == wanted
    assert [queue.name for queue in app.conf.task_queues] == ["gpu", "cpu"]


def test_there_is_one_task_and_it_takes_an_id(app):
    assert [name for name in app.tasks if not name.startswith("celery.")] == [TASK]


def test_a_message_that_names_no_job_or_an_unknown_one_does_nothing(app):
    worker = app.zoograft_worker
    look = app.tasks[TASK]
    for message in ("x", None, 7, "' OR 1=1"):
        look(message)
    assert worker._supervisor is None
    look(str(uuid4()))
    assert worker._supervisor is not None
    worker._supervisor.__exit__()


def test_a_draining_worker_takes_nothing_more(app):
    worker = app.zoograft_worker
    worker._drain[0] = 1
    app.tasks[TASK](str(uuid4()))
    assert worker._supervisor is None


def test_busy_is_told_by_a_lock_that_dies_with_its_holder(app):
    import fcntl

    worker = app.zoograft_worker
    assert worker._idle()
    with open(worker._busy, "a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not worker._idle()
    assert worker._idle()
    worker._busy.unlink()


def test_importing_the_module_reads_no_settings_and_makes_no_app():
    assert "app" not in vars(module)
    with pytest.raises(AttributeError):
        _ = module.nothing


def test_without_a_broker_the_command_says_what_to_run_instead(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "workers.app"],
        env={"PATH": "/usr/bin:/bin", "ZOOGRAFT_DATA_DIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "python -m workers.supervisor" in done.stderr
