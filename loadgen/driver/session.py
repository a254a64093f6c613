"""One client process's part of one measured point: which request is next, when to stop, what is kept.

Knows the run directory, the prompts and the phases; knows neither sockets nor event loops. The drivers
(`longctx.py` in Locust, `openloop.py` on asyncio) ask it for requests, hand it outcomes, and call
`tick` about every `TICK_S`.
"""

import gc
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from greenbench.contract.access import access
from greenbench.contract.config import LivePoint, PhaseConfig
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.run_dir import RunDir, file_sha256, write_atomic
from greenbench.contract.schema import RequestRecord
from loadgen.driver.arrivals import Arrival
from loadgen.driver.client_audit import Audit
from loadgen.driver.phases import PhaseClock
from loadgen.driver.request_builder import Conversation, RequestBuilder, Slot
from loadgen.driver.request_log import EventWriter, Records, Replies, RowWriter
from loadgen.prompts.prompt_file import Prompt, read_prompts
from loadgen.tasks import TASKS
from loadgen.tasks.grading import grade_reply
from loadgen.wire.connection import Target
from loadgen.wire.response import Request, Response, failed

logger = logging.getLogger(__name__)

TICK_S: Final = 0.02


class Session:
    """``shard`` is (index, count): of the run's sequence this process sends index, index + count, …

    ``breathe`` is called between two gradings, so that an event loop stays alive meanwhile.
    """

    def __init__(
        self,
        run_path: Path,
        live: LivePoint,
        client_id: str,
        shard: tuple[int, int] = (0, 1),
        breathe: Callable[[], object] = lambda: None,
    ) -> None:
        point = live.point
        if point.task.name not in TASKS:
            raise UserError(f"unknown task '{point.task.name}'; {nearest(point.task.name, TASKS)}")
        self.live = live
        self.client_id = client_id
        self.run = RunDir(run_path)
        self.access = access(live.base_url, point.server.connection)
        self.target = Target.of(self.access)
        self.timeout_s = point.phases.request_timeout_s
        self.phases = PhaseClock(_share(point.phases, shard))
        self.audit = Audit()
        self.in_flight = 0  # sent, and the reply not over
        self.unfinished = 0  # sent, and no row written
        self.sent = self.ok = self.failed = 0
        self.shard = shard
        self.leads = shard[0] == 0  # writes the phase marks
        task = TASKS[point.task.name]
        self._breathe = breathe
        self._prompts = _prompts(live)
        self._requests = RequestBuilder(live, client_id, self.target, task, self._prompts)
        self._sequence = shard[0]
        self._users = 0  # of this process
        self._records = Records(live.run_id, client_id, self._prompts)
        self._rows = RowWriter(self.run.requests_dir / f"{client_id}.jsonl")
        self._events = EventWriter(self.run.events_path)
        self._replies = Replies()
        self._marked: set[str] = set()
        self.next_tick_ns: int | None = None
        self._closed = False
        gc.collect()
        gc.freeze()  # prompts and modules are never garbage: do not walk them between two reads
        gc.set_threshold(100_000, 50, 1000)

    # --- sending ------------------------------------------------------------------------------

    def conversation(self) -> Conversation:
        """A further user's. User k of shard i of n is number i + k·n of the run."""
        user = self.shard[0] + self._users * self.shard[1]
        self._users += 1
        return Conversation(self.live.point.load.turns, user)

    def next(self, now_ns: int, conversation: Conversation | None = None) -> Request | None:
        """The next request of a closed loop, or None when sending has ended.

        ``conversation``: the user's, which this request carries on or begins anew.
        """
        if not self.phases.admit(now_ns):
            return None
        phase = self.phases.phase_of(now_ns)
        if conversation is None:
            return self._requests.build(Slot(self._step(), phase))
        if conversation.turns == 1:
            return self._requests.build(Slot(self._step(), phase, user=conversation.user))
        if conversation.turn == 0:
            conversation.sequence = self._step()
        sequence, turn = conversation.sequence, conversation.turn
        slot = Slot(sequence, phase, conversation=sequence, turn=turn, user=conversation.user)
        conversation.turn = (turn + 1) % conversation.turns
        whole = self._requests.prompt(sequence).context_tokens
        return self._requests.build(slot, whole * (turn + 1) // conversation.turns)

    def scheduled(self, arrival: Arrival, moment_ns: int) -> Request | None:
        """The request that is due at ``moment_ns`` of an open loop, or None past the end."""
        if not self.phases.admit(moment_ns):
            return None
        slot = Slot(self._step(), self.phases.phase_of(moment_ns), scheduled_mono_ns=moment_ns)
        return self._requests.build(slot, arrival.context_tokens, arrival.output_tokens)

    def _step(self) -> int:
        sequence = self._sequence
        self._sequence += self.shard[1]
        return sequence

    # --- outcomes -----------------------------------------------------------------------------

    def depart(self) -> int:
        """A request goes out now; the number of this client's other open ones."""
        others = self.in_flight
        self.in_flight += 1
        self.unfinished += 1
        self.sent += 1
        return others

    def arrived(self) -> None:
        """A reply is over; its row is written later, by `finish`."""
        self.in_flight -= 1

    def finish(self, request: Request, response: Response, in_flight: int) -> RequestRecord:
        """Write the row of a request that departed and is over, whatever came of it."""
        self.unfinished -= 1
        return self._keep(request, response, in_flight)

    def not_sent(self, request: Request, why: str) -> RequestRecord:
        """A request that was due and could not be sent is a row as well."""
        return self._keep(request, failed("not_sent", why), self.in_flight)

    def _keep(self, request: Request, response: Response, in_flight: int) -> RequestRecord:
        record = self._records.record(request, response, in_flight)
        self._rows.write(record)
        self.audit.add(request, response)
        if record.error_type is not None:
            self.failed += 1
            return record
        self.ok += 1
        if self._requests.sends_whole(request):  # a cut prompt has lost its question: no grading
            self._replies.keep(request.request_id, request.prompt_at, response.text, response.body)
        return record

    def flush(self) -> None:
        """Hand the rows that wait to the operating system."""
        self._rows.flush()

    # --- phases -------------------------------------------------------------------------------

    def tick(self, now_ns: int, next_in_s: float = TICK_S) -> bool:
        """Write the marks that are due. True when the point is over: nothing open, or drained.

        ``next_in_s``: when the caller means to call again; later than that is the event loop's lag.
        """
        if self.next_tick_ns is not None:
            self.audit.loop_lag.add(now_ns - self.next_tick_ns)
        self.next_tick_ns = now_ns + round(next_in_s * 1e9)
        self.flush()
        phases = self.phases
        for name, moment in (
            ("warmup_start", phases.warmup_start),
            ("measure_start", phases.measure_start),
            ("measure_end", phases.measure_end),
        ):
            if moment is not None and moment <= now_ns:
                self._mark(name, moment)
        if "measure_end" not in self._marked:
            return False
        deadline = phases.drain_deadline
        assert deadline is not None
        return self.unfinished == 0 or now_ns >= deadline

    def _mark(self, name: str, moment_ns: int) -> None:
        if name in self._marked:
            return
        self._marked.add(name)
        if name == "measure_start":
            self.audit.window_starts()
        elif name == "measure_end":
            self.audit.window_ends()
        if self.leads:
            self._events.mark(name, moment_ns)

    def close(self) -> None:
        """After the last request: the last marks, the grading, the audit. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        now = time.monotonic_ns()
        self.phases.stop(now)
        self.tick(now)
        self._mark("drain_end", now)
        self._events.close()
        self._rows.close()
        path = self.run.path / "client_audit" / f"{self.client_id}.json"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json.dumps(self.report(), indent=1) + "\n")
        self._grade()

    def report(self) -> dict[str, Any]:
        counts = {
            "sent": self.sent,
            "ok": self.ok,
            "failed": self.failed,
            "rows": self._rows.rows,
        }
        return {"client": self.client_id, "counts": counts} | self.audit.report()

    def _grade(self) -> None:
        outputs = RowWriter(self.run.outputs_dir / f"{self.client_id}.jsonl")
        for request_id, prompt_at, text, raw in self._replies:
            body: Any = msgspec.json.decode(raw) if raw else None
            outputs.write(grade_reply(self._prompts[prompt_at], request_id, text, body))
            outputs.flush()
            self._breathe()
        outputs.close()
        self._replies.close()


def _prompts(live: LivePoint) -> list[Prompt]:
    """The point's prompts. Another file than the one the point was planned with is refused."""
    path = Path(live.prompts_path)
    prompts = read_prompts(path)
    if not prompts:
        raise UserError(f"{path}: holds no prompt; make it anew")
    sha256 = file_sha256(path)
    if sha256 != live.prompts_sha256:
        raise UserError(
            f"{path}: its sha256 is {sha256[:12]}…, and the point was planned with "
            f"{live.prompts_sha256[:12]}…; give every worker the same file"
        )
    if live.point.server.endpoint == "chat":
        _check_chat(live, path, prompts)
    return prompts


def _check_chat(live: LivePoint, path: Path, prompts: list[Prompt]) -> None:
    load = live.point.load
    if load.turns > 1 or load.trace is not None:
        raise UserError(
            "turns and traces send prompts of other lengths than those made, and a chat's message has no "
            "exact one when it is cut; use 'endpoint: completions'"
        )
    if any(prompt.message is None for prompt in prompts):
        raise UserError(f"{path}: its prompts have no messages; make it anew for 'endpoint: chat'")


def _share(phases: PhaseConfig, shard: tuple[int, int]) -> PhaseConfig:
    """A limit of requests is the whole run's: each of several processes takes its part."""
    index, count = shard
    if phases.requests is None or count == 1:
        return phases
    part = phases.requests // count + (index < phases.requests % count)
    return phases.model_copy(update={"requests": part})
