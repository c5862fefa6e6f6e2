"""T21: a worker whose wall clock is an hour off, either way, and a database whose clock jumps ten minutes ahead.

Leases live by the database's clock and waits by the monotonic one, so a worker's skew costs nothing, and a jump of the
database's clock at most one retry. The skew is a preloaded library of a few lines (libfaketime also shifts the clock
that threads wait by, which real skew does not); it needs a C compiler, and without one the script says so and exits
with 77. On SQLite the database is a library inside each process and has its clock, so this asks for Postgres.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import select

from backend.store.session import db_now
from tests.reliability.harness import Lab, arguments, check_exact, laboratory, sleep_digest, verdict

STEPS = 60
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <sys/time.h>
#include <time.h>

/* The offset in seconds lies in a file named by SKEW_FILE, so that it can jump while a program runs. */
#include <stdlib.h>
static long offset(void) {
    const char *name = getenv("SKEW_FILE");
    FILE *file = name ? fopen(name, "r") : NULL;
    long seconds = 0;
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (out) *out = found.tv_sec;
    return found.tv_sec;
}
"""


def main() -> int:
    options = arguments(__doc__, count=4)
    options.db = "postgres"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        print('{"test": "clock", "skipped": "shifting a clock needs a C compiler (cc)"}')
        return 77
    began = time.monotonic()
    breaches: list[str] = []
    attempts: list[int] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        library = folder / "skew.so"
        (folder / "skew.c").write_text(SOURCE)
        build = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(folder / "skew.c"), "-ldl"]
        subprocess.run(build, check=True)
        for number in range(options.count):
            seconds = 3600 if number % 2 == 0 else -3600
            skew = folder / f"skew{number}"
            skew.write_text(str(seconds))
            prefix = ["env", f"LD_PRELOAD={library}", f"SKEW_FILE={skew}"]
            shown = subprocess.run(
                [*prefix, sys.executable, "-c", "import time; print(time.time())"],
                capture_output=True,
                text=True,
                check=True,
            )
            if abs(float(shown.stdout) - time.time() - seconds) > 60:
                raise RuntimeError("the clock did not shift")
            with laboratory(options.db, without=options.without) as lab:
                attempts += _run(lab, prefix, f"{seconds:+d} s", breaches)
        skew = folder / "jump"
        skew.write_text("0")
        skew.chmod(0o644)
        hooked = {"LD_PRELOAD": str(library), "SKEW_FILE": str(skew)}
        with laboratory(options.db, without=options.without, server_environment=hooked) as lab:
            attempts += _jump(lab, skew, breaches)
    seconds_taken = round(time.monotonic() - began, 1)
    return verdict("clock", options, breaches, runs=options.count, attempts=attempts, seconds=seconds_taken)


def _run(lab: Lab, prefix: list[str], name: str, breaches: list[str]) -> list[int]:
    lab.worker()
    lab.start(prefix=prefix)
    ids = lab.submit({"steps": STEPS, "step_s": 0.1}, 3)
    if not lab.wait(ids, 90):
        breaches.append("not every job ended")
    breaches += check_exact(lab, ids, sleep_digest(STEPS))
    if lab.losses():
        breaches.append(f"{name}: {lab.losses()} healthy attempts were taken away")
    lab.stop_workers()
    breaches += [f"left over: {one}" for one in lab.leftovers()]
    return [lab.job(one).attempt for one in ids]


def _jump(lab: Lab, skew: Path, breaches: list[str]) -> list[int]:
    for _ in range(2):
        lab.worker()
    ids = lab.submit({"steps": STEPS, "step_s": 0.1}, 3)
    if not lab.until(lambda: lab.job(ids[0]).progress.step > STEPS // 2, 60):
        breaches.append("the jobs did not start")
    with lab.store.read() as connection:
        before = connection.scalar(select(db_now()))
    skew.write_text("600")
    with lab.store.read() as connection:
        if connection.scalar(select(db_now())) - before < 500:
            raise RuntimeError("the database's clock did not jump")
    if not lab.wait(ids, 90):
        breaches.append("not every job ended")
    breaches += check_exact(lab, ids, sleep_digest(STEPS))
    attempts = [lab.job(one).attempt for one in ids]
    breaches += [f"the jump cost {attempts} attempts"] if max(attempts) > 2 else []
    lab.stop_workers()
    breaches += [f"left over: {one}" for one in lab.leftovers()]
    return attempts


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
