"""`make soak MINUTES=60`: everything at work for an hour while servers, recorder, gateway, network, disk and
clock fail by a seeded schedule. Is each record there once, is memory flat, does every hole have its name?

    .venv/bin/python -m scripts.soak [--minutes 60] [--seed 7] [--fake] [--out runs/soak]

Writes soak.html and soak.json; exit code 1 when a check fails. Nothing of the machine is changed: the disk is
a small tmpfs, the stepped clock is that of one process (clock.c), the cut network is a proxy.
"""

import argparse
import os
import shutil
import signal
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from greenbench.contract.errors import UserError, exit_on_user_error
from scripts.soak.accounts import Broken
from scripts.soak.faults import QUIET_SHARE, Fault, Kind, schedule
from scripts.soak.judge import Log, Verdict, judge
from scripts.soak.kept import marked
from scripts.soak.page import keep, write
from scripts.soak.rig import BOOT_S, DRAIN_S, Rig, Wanted, answers

LOOK_S = 0.2
STALL_S = 1.0  # so late a look shows that this process did not get a core
WEIGH_S = 5.0
ANSWERED, WHOLE = "vllm:request_success_total", ("length", "stop")
GRACE_S = 120.0  # beyond the loads' own end


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=7, help="of faults, prompts and arrivals")
    parser.add_argument("--fake", action="store_true", help="the tests' server instead of vLLM")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="made anew")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    return exit_on_user_error(lambda: _soak(options))


def _stop(*_: object) -> None:
    raise SystemExit("stopped")  # what was started is ended on the way out


def _soak(options: argparse.Namespace) -> int:
    if options.minutes <= 0:
        raise UserError(f"--minutes: a number above 0 is wanted, found {options.minutes:g}")
    out: Path = options.out.resolve()
    if (out / "disk").is_dir() and os.path.ismount(out / "disk"):
        raise UserError(f"{out}: a soak is at work here, or was killed: umount {out / 'disk'}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    wanted = Wanted(out, 60 * options.minutes, options.seed, options.fake, uuid.uuid4().hex)
    log = Log()
    try:
        with Rig(wanted) as rig:
            kinds = [kind for kind in Kind if kind not in (Kind.STALL, *rig.skipped)]
            if wanted.fake:
                kinds.remove(Kind.ENGINE)
            log.began_s = time.monotonic()
            Watch(rig, log).until_the_loads_end(schedule(wanted.seed, wanted.length_s, kinds))
            log.ended_s = time.monotonic()
            for kept in reversed(rig.processes):
                kept.stop()
            log.strays = [f"{p.pid} {p.name()}" for p in marked(wanted.mark)]
            keep(rig, log)
            verdict = judge(rig, log)
        write(out, wanted, rig, log, verdict)
    finally:
        for process in marked(wanted.mark):
            with suppress(psutil.Error):
                process.kill()
    _say(verdict, out)
    return 0 if verdict.holds else 1


class Watch:
    """Keeps what runs, weighs it, breaks what is due."""

    def __init__(self, rig: Rig, log: Log) -> None:
        self.rig, self.log = rig, log
        self._weigh_s = 0.0

    def until_the_loads_end(self, faults: list[Fault]) -> None:
        end_s = self.log.began_s + self.rig.wanted.length_s + DRAIN_S + GRACE_S
        last_s = self.rig.wanted.length_s * (1 - QUIET_SHARE)
        waiting = list(faults)
        while any(load.runs for load in self.rig.loads):
            if time.monotonic() > end_s:
                raise UserError("the loads did not end; see open.log and closed.log")
            self._keep(whole=True)
            at_s = time.monotonic() - self.log.began_s
            if waiting and at_s >= waiting[0].at_s:
                fault = waiting.pop(0)
                if at_s < last_s:
                    self._break(fault)
                else:
                    self.rig.skipped[fault.kind] = "No time was left for it (once)."
        self._count()

    def _break(self, fault: Fault) -> None:
        rig, began_s = self.rig, time.monotonic()
        print(f"{began_s - self.log.began_s:7.1f} s  {fault.kind}", end="", flush=True)
        rig.begin(fault.kind)
        while time.monotonic() < began_s + fault.for_s:
            self._keep(whole=False)
        rig.end(fault.kind)
        while not rig.all_up():
            self._keep(whole=False)
            if time.monotonic() > began_s + BOOT_S:
                raise UserError(f"after '{fault.kind}' not all came back; see the logs")
        mended_s = time.monotonic()
        self.log.broken.append(Broken(fault.kind, began_s, mended_s))
        print(f", all is back after {mended_s - began_s:.1f} s", flush=True)

    def _keep(self, whole: bool) -> None:
        """``whole``: nothing is broken just now, so each scrape must be answered."""
        before_s = time.monotonic()
        time.sleep(LOOK_S)
        if (now_s := time.monotonic()) > before_s + LOOK_S + STALL_S:
            self.log.stalls.append(Broken(Kind.STALL, before_s, now_s))
        for kept in self.rig.processes:
            kept.look()
        if time.monotonic() < self._weigh_s:
            return
        self._weigh_s = time.monotonic() + WEIGH_S
        for kept in self.rig.processes:
            kept.weigh()
        for url in (self.rig.exporter_url, self.rig.gateway_url):
            answered = answers(f"{url}/metrics")
            self.log.scrapes += whole
            self.log.scrapes_failed += whole and not answered
        self._count()

    def _count(self) -> None:
        """The server's own counter of answers; a server that started anew begins a new list."""
        with suppress(httpx.HTTPError):
            page = httpx.get(f"{self.rig.server_url}/metrics", timeout=5).text
            answered = sum(
                sample.value
                for family in text_string_to_metric_families(page)
                for sample in family.samples
                if sample.name == ANSWERED and sample.labels["finished_reason"] in WHOLE
            )
            if self.log.counters and answered < self.log.counters[-1][1]:
                self.log.counters.clear()
            self.log.counters.append((time.monotonic(), answered))


def _say(verdict: Verdict, out: Path) -> None:
    for check in verdict.checks:
        print(f"{'holds' if check.holds else 'FAILS'}  {check.name}: {check.found}")
    print(f"{out / 'soak.html'}")


if __name__ == "__main__":
    sys.exit(main())
