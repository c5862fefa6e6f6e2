"""T2: a worker is stopped past its lease (SIGSTOP), another takes over, the first wakes (SIGCONT) and goes on writing.

In every second run the first is deaf to the loss of its lease (guard `loss_signal` off), so that only the fencing token
stands between it and a second completion. Without the fence (`--without fence`) jobs are completed twice.
"""

import sys
import time

from tests.reliability.harness import Lab, arguments, check_exact, laboratory, sleep_digest, verdict

STEPS = 20


def main() -> int:
    options = arguments(__doc__, count=20, at_once=4)
    began = time.monotonic()
    breaches: list[str] = []
    counts = {"jobs": 0, "takeovers": 0, "fenced_writes": 0, "completed_twice": 0}
    left = options.count
    muted = True
    while left > 0:
        round_of = min(options.at_once, left)
        left -= round_of
        without = [*options.without, "loss_signal"] if muted else options.without
        with laboratory(options.db.removesuffix("+redis"), without=without, reaper_guard_s=1.0) as lab:
            _run(lab, round_of, muted, breaches, counts)
        muted = not muted
    if counts["fenced_writes"] == 0 and "fence" not in options.without:
        breaches.append("no zombie tried to write: the test showed nothing")
    seconds = round(time.monotonic() - began, 1)
    return verdict("chaos_zombie", options, breaches, **counts, seconds=seconds)


def _run(lab: Lab, count: int, muted: bool, breaches: list[str], counts: dict[str, int]) -> None:
    """`count` jobs, each with a supervisor that is stopped in the middle of it; one healthy supervisor beside them."""
    ids = lab.submit({"steps": STEPS, "step_s": 0.1}, count)
    sleepers = [lab.start() for _ in range(count)]
    if not lab.until(lambda: all(lab.job(one).progress.step > 5 for one in ids), 60):
        breaches.append("the jobs did not start")
        return
    stopped = lab.freeze()
    lab.start()
    if not lab.until(lambda: all(lab.job(one).attempt > 1 for one in ids), 90):
        # One healthy supervisor works them one after the other; waking the first ones now is late enough for some.
        counts["takeovers"] += sum(lab.job(one).attempt > 1 for one in ids)
    else:
        counts["takeovers"] += count
    lab.thaw(stopped)
    lab.wait(ids, 60)
    # The zombies work to their end and try to publish, and so do those who took over.
    lab.until(lambda: lab.log_text().count("attempt ended") >= 2 * count, 15.0)
    counts["jobs"] += count
    counts["completed_twice"] += sum(lab.completions(one) > 1 for one in ids)
    text = lab.log_text()
    counts["fenced_writes"] += text.count("a write of a lost attempt was refused") + text.count("no longer ours")
    breaches += check_exact(lab, ids, sleep_digest(STEPS))
    lab.stop_workers()
    breaches += [f"left over: {one}" for one in lab.leftovers()]
    assert all(process.poll() is not None for process in sleepers)


if __name__ == "__main__":
    sys.exit(main())
