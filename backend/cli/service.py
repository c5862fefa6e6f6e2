"""`zoograft up`, `web`, `worker`, `migrate`, `doctor`, `demo`: running the thing."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli.opening import migrate_embedded, open_store, read_settings
from backend.cli.output import Json, note, print_json, print_table
from backend.domain.errors import BadInput, ZoograftError
from backend.settings import Settings, cores_in_slots, environment

if TYPE_CHECKING:
    from backend.store.session import Store

Host = Annotated[str | None, typer.Option(help="Address to listen on; one that others reach needs ZOOGRAFT_TOKEN.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on (8080).")]
SSE_GRACE_S = 2


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)
    app.command("up")(up)
    app.command("web")(web)
    app.command("worker")(worker)
    app.command("migrate")(migrate)
    app.command("doctor")(doctor)


def demo(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the HTML report goes.")] = None,
    json: Json = False,
) -> None:
    """A real zoo on real data in about a minute: train small models on digits, scan, flips, transfers, report."""
    from backend.cli.demo import run_demo
    from backend.cli.follow import require_workers

    require_workers("demo", "demo")
    with open_store() as (settings, store):
        run_demo(settings, store, output=output, json=json)


def up(host: Host = None, port: Port = None, json: Json = False) -> None:
    """Everything on one port: REST, dashboard, and one supervisor that runs the jobs. Ctrl-C stops all of it."""
    settings = read_settings(host=host, port=port)
    with listening(settings, "up") as listener:
        if settings.embedded:
            migrate_embedded(settings)
        with _supervised(settings):
            _serve(settings, listener, json=json)


def web(host: Host = None, port: Port = None, json: Json = False) -> None:
    """REST and dashboard, without a worker."""
    settings = read_settings(host=host, port=port)
    with listening(settings, "web") as listener:
        if settings.embedded:
            migrate_embedded(settings)
        _serve(settings, listener, json=json)


def worker(
    queues: Annotated[str, typer.Option(help="Which queues to work, by commas.")] = "gpu,cpu", json: Json = False
) -> None:
    """Run jobs: a Celery worker where ZOOGRAFT_BROKER_URL is set, else a supervisor that asks the database itself."""
    if not queues or any(queue not in ("gpu", "cpu") for queue in queues.split(",")):
        raise BadInput("--queues", queues, "gpu, cpu, or gpu,cpu")
    settings = read_settings()
    if settings.embedded:
        migrate_embedded(settings)
    changes = {"ZOOGRAFT_LOG_FORMAT": "json"} if json else {}
    sys.stdout.flush()
    # The worker takes our place, so that signals reach it and its exit code is ours.
    os.execve(sys.executable, [sys.executable, *worker_command(settings), "--queues", queues], environment(**changes))


def worker_command(settings: Settings) -> list[str]:
    """What a worker of this installation is, as arguments of Python."""
    return ["-m", "workers.supervisor" if settings.broker_url is None else "workers.app"]


def migrate(json: Json = False) -> None:
    """Bring the database to the newest tables. The embedded default does this by itself."""
    from backend.store.migrate import upgrade

    settings = read_settings()
    if settings.embedded:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    revision = upgrade(settings.database)
    if json:
        print_json({"revision": revision})
    else:
        note(f"the database is at revision {revision}")


def doctor(json: Json = False) -> None:
    """Check database, broker, clocks, disk, devices, versions, and say what to do; exit 1 where something is wrong."""
    from backend import doctor as checks

    findings = checks.check(read_settings())
    if json:
        print_json({"items": findings})
    else:
        print_table(("check", "state", "finding"), ((one.name, one.state, one.message) for one in findings))
    if any(finding.state == "failed" for finding in findings):
        raise typer.Exit(1)


class PortTaken(BadInput):
    """Somebody else listens there; says which port, and how to choose another."""

    def __init__(self, settings: Settings, instead: str) -> None:
        self.field, self.value, self.expected = "port", settings.port, f"a free one, such as: {instead}"
        ZoograftError.__init__(
            self, f"port {settings.port} on {settings.host} is in use; choose another: {instead} (or set ZOOGRAFT_PORT)"
        )


@contextmanager
def listening(settings: Settings, command: str) -> Iterator[socket.socket]:
    """A listening socket.

    Raises:
        PortTaken: the port is.
        BadInput: the address is not ours.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise BadInput("host", settings.host, "an address of this machine, such as 127.0.0.1") from None
    # asyncio turns Nagle's delay off only where the protocol is named; with it every answer's body waits some 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(settings, f"zoograft {command} --port {_free_port(settings)}") from None
        if error.errno == errno.EACCES:
            raise BadInput("port", settings.port, "a port above 1023, or the right to open a lower one") from None
        raise BadInput("host", settings.host, f"an address of this machine ({error.strerror})") from None
    try:
        yield listener
    finally:
        listener.close()


def _free_port(settings: Settings) -> int:
    for port in range(settings.port + 1, min(settings.port + 50, 65_535)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    return settings.port + 1


def _serve(settings: Settings, listener: socket.socket, *, json: bool) -> None:
    """Run the web process on this socket until a signal ends it."""
    import uvicorn

    from backend import logs
    from backend.api.app import create_app
    from backend.store.session import Store

    logs.configure(settings)
    store = Store.open(settings.database, settings=settings)
    app = create_app(settings, dashboard=dashboard_of(settings, store), store=store)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{'127.0.0.1' if shown in ('0.0.0.0', '[::]') else shown}:{settings.port}"
    if json:
        print_json({"url": url})
        sys.stdout.flush()
    else:
        note(f"Zoograft is at {url}   (Ctrl-C stops it)")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=SSE_GRACE_S,
    )
    with _ended_by_signals():
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            store.close()


def dashboard_of(settings: Settings, store: Store) -> Callable[[], Any]:
    """Makes the dashboard's WSGI callable, importing Dash only then."""

    def make() -> Any:
        from dashboard.app import create_app

        return create_app(settings, store).server

    return make


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM end the server, which raises them again afterwards; that is a clean end here."""

    def stop(number: int, frame: object) -> None:
        raise typer.Exit(0)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _supervised(settings: Settings) -> Iterator[None]:
    """A supervisor beside us for as long as the block lasts, started again where it dies, drained at the end."""
    command = [sys.executable, *worker_command(settings.model_copy(update={"broker_url": None}))]
    slots = environment(ZOOGRAFT_CPU_SLOTS=str(cores_in_slots(settings)))
    ending = threading.Event()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=slots)
    running = [child]

    def watch() -> None:
        pause = 1.0
        while not ending.wait(pause):
            code = running[0].poll()
            if code is None:
                pause = 1.0
            elif not ending.is_set():
                note(f"the supervisor ended (exit {code}); starting another")
                running[0] = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=slots)
                pause = min(60.0, pause * 2)

    watcher = threading.Thread(target=watch, name="watch-supervisor", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ending.set()
        watcher.join()
        _drain(running[0], settings.drain_s + 5)


def _drain(child: subprocess.Popen[bytes], seconds: float) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()
