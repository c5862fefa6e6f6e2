"""Two supervisors on two hosts, each with a network and a name of its own (Linux namespaces), share one Postgres and
one Redis on a third: every job is completed once, by both hosts together, also when one host falls off the network.

Needs root and `ip`; without, the script says so and exits with 77.
"""

import os
import shutil
import subprocess
import sys
import time

from backend.queue import Dispatcher
from tests.reliability.harness import Lab, arguments, check_exact, sleep_digest, verdict
from tests.services.servers import PostgresServer, RedisServer


def main() -> int:
    options = arguments(__doc__, count=40, steps=20)
    options.db = "postgres+redis"
    reason = cannot()
    if reason:
        print(f'{{"test": "two_hosts", "skipped": "{reason}"}}')
        return 77
    began = time.monotonic()
    number = os.getpid() % 250
    bridge, gateway = f"zgb{number}", f"10.213.{number}.1"
    hosts = [(f"zg{number}{letter}", f"10.213.{number}.{place}") for letter, place in (("a", 11), ("b", 12))]
    try:
        _network(bridge, gateway, hosts)
        breaches, counts = _run(options, bridge, gateway, hosts)
    finally:
        for name, _ in hosts:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)
    return verdict("two_hosts", options, breaches, **counts, seconds=round(time.monotonic() - began, 1))


def cannot() -> str | None:
    """Why this machine cannot, or None."""
    if os.geteuid() or shutil.which("ip") is None or shutil.which("unshare") is None:
        return "network namespaces need root and the programs ip and unshare"
    probe = ["unshare", "--net", "--uts", "true"]
    if subprocess.run(probe, check=False, capture_output=True).returncode:
        return "this machine does not allow namespaces"
    return None


def _network(bridge: str, gateway: str, hosts) -> None:
    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    ip("link", "add", bridge, "type", "bridge")
    ip("addr", "add", f"{gateway}/24", "dev", bridge)
    ip("link", "set", bridge, "up")
    for name, address in hosts:
        ip("netns", "add", name)
        ip("link", "add", f"{name}o", "type", "veth", "peer", "name", f"{name}i")
        ip("link", "set", f"{name}i", "netns", name)
        ip("link", "set", f"{name}o", "master", bridge)
        ip("link", "set", f"{name}o", "up")
        ip("-n", name, "addr", "add", f"{address}/24", "dev", f"{name}i")
        ip("-n", name, "link", "set", f"{name}i", "up")
        ip("-n", name, "link", "set", "lo", "up")


def _run(options, bridge: str, gateway: str, hosts):
    servers = Servers(gateway)
    lab = Lab("sqlite", database_url=servers.postgres.fresh_database(), broker_url=servers.redis.url())
    try:
        for number, (name, _) in enumerate(hosts):
            inside = [
                "ip",
                "netns",
                "exec",
                name,
                "unshare",
                "--uts",
                "sh",
                "-c",
                f'hostname {name} && exec "$@"',
                "sh",
            ]
            lab.start(module=("workers.supervisor", "workers.app")[number], prefix=inside)
        lab.dispatcher = Dispatcher(lab.store, lab.settings, every_s=0.5).start()
        ids = lab.submit({"steps": options.steps, "step_s": 0.05}, options.count)
        breaches = []
        if not lab.until(lambda: sum(lab.job(one).progress.step > 0 for one in ids) >= 2, 60):
            breaches.append("the hosts did not start to work")
        cut = hosts[0][0]
        subprocess.run(["ip", "link", "set", f"{cut}o", "down"], check=True)
        time.sleep(6.0)
        subprocess.run(["ip", "link", "set", f"{cut}o", "up"], check=True)
        if not lab.wait(ids, 180):
            breaches.append("not every job ended")
        breaches += check_exact(lab, ids, sleep_digest(options.steps))
        by = {name: sum(str(lab.job(one).worker).startswith(name) for one in ids) for name, _ in hosts}
        if min(by.values()) == 0:
            breaches.append(f"one host did nothing: {by}")
        attempts = max(lab.job(one).attempt for one in ids)
        lab.stop_workers()
        breaches += [f"left over: {one}" for one in lab.leftovers()]
        if breaches:
            print(lab.log_text()[-4000:], file=sys.stderr)
        return breaches, {"jobs": len(ids), "by_host": list(by.values()), "most_attempts": attempts}
    finally:
        lab.close()
        servers.stop()


class Servers:
    """Postgres and Redis on the address that both hosts reach."""

    def __init__(self, address: str) -> None:
        self.postgres = PostgresServer(address, listen=f"127.0.0.1,{address}")
        self.postgres.start()
        self.redis = RedisServer(address, listen=f"127.0.0.1 {address}")
        self.redis.start()

    def stop(self) -> None:
        self.postgres.stop()
        self.redis.stop()


if __name__ == "__main__":
    sys.exit(main())
