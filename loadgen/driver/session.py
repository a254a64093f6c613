"""One client process's part of one measured point: which request is next, when to stop, what is kept.

Knows the run directory, the prompts and the phases; knows no socket and no event loop. The drivers
(`longctx.py` in Locust, `openloop.py` on asyncio) ask it for requests, hand it outcomes, and call
`tick` about every `TICK_S`.
"""

import gc
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from greenbench.contract.config import LivePoint, PhaseConfig
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.run_dir import RunDir, file_sha256, write_atomic
from greenbench.contract.schema import RequestRecord
from loadgen.driver.arrivals import Arrival
from loadgen.driver.client_audit import Audit
from loadgen.driver.phases import PhaseClock
from loadgen.driver.request_bodies import Bodies
from loadgen.driver.request_log import EventWriter, Replies, RowWriter
from loadgen.prompts.prompt_file import Prompt, read_prompts
from loadgen.tasks import TASKS
from loadgen.tasks.grading import grade_reply
from loadgen.wire.connection import Target, both_clocks, whole_head
from loadgen.wire.response import Exchange, Outgoing, failed

logger = logging.getLogger(__name__)

TICK_S: Final = 0.02
COMPLETIONS_PATH: Final = "/v1/completions"


@dataclass(slots=True)
class Talk:
    """One user's conversation: ``turns`` requests on a growing prefix of one prompt, over and over.

    ``user`` is its number in the run, which its requests' rows carry.
    """

    turns: int
    user: int | None = None
    turn: int = 0
    sequence: int = 0


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
        self.target = Target.from_url(live.base_url)
        self.timeout_s = point.phases.request_timeout_s
        self.phases = PhaseClock(_share(point.phases, shard))
        self.audit = Audit()
        self.in_flight = 0  # sent, and the reply not over
        self.unfinished = 0  # sent, and no row written
        self.sent = self.ok = self.failed = 0
        self.shard = shard
        self.leads = shard[0] == 0  # writes the phase marks
        self._task = TASKS[point.task.name]
        self._breathe = breathe
        self._prompts = _prompts(live)
        self._bodies = Bodies(self._task, live.served_model, self._prompts)
        self._accept = "text/event-stream" if self._task.streaming else "application/json"
        self._heads: dict[int, bytes] = {}  # by length of the body
        self._sequence = shard[0]
        self._users = 0  # of this process
        self._token = os.urandom(4).hex()  # keeps request ids of two runs apart in one server's log
        self._records = RowWriter(self.run.requests_dir / f"{client_id}.jsonl")
        self._events = EventWriter(self.run.events_path)
        self._replies = Replies()
        self._marked: set[str] = set()
        self._next_tick_ns: int | None = None
        self._closed = False
        gc.collect()
        gc.freeze()  # prompts and modules are never garbage: do not walk them between two reads
        gc.set_threshold(100_000, 50, 1000)

    # --- sending ------------------------------------------------------------------------------

    def talk(self) -> Talk:
        """A further user's conversation. User k of shard i of n is number i + k·n of the run."""
        user = self.shard[0] + self._users * self.shard[1]
        self._users += 1
        return Talk(self.live.point.load.turns, user)

    def next(self, now_ns: int, talk: Talk | None = None) -> Outgoing | None:
        """The next request of a closed loop, or None when sending has ended.

        ``talk``: the user's conversation, which this request carries on or begins anew.
        """
        if not self.phases.admit(now_ns):
            return None
        if talk is None:
            return self._outgoing(self._step(), now_ns)
        if talk.turns == 1:
            return self._outgoing(self._step(), now_ns, user=talk.user)
        if talk.turn == 0:
            talk.sequence = self._step()
        prompt = self._prompts[talk.sequence % len(self._prompts)]
        share = prompt.context_tokens * (talk.turn + 1) // talk.turns
        outgoing = self._outgoing(
            talk.sequence,
            now_ns,
            context_tokens=share,
            conversation=talk.sequence,
            turn=talk.turn,
            user=talk.user,
        )
        talk.turn = (talk.turn + 1) % talk.turns
        return outgoing

    def scheduled(self, arrival: Arrival, moment_ns: int) -> Outgoing | None:
        """The request that is due at ``moment_ns`` of an open loop, or None past the end."""
        if not self.phases.admit(moment_ns):
            return None
        return self._outgoing(
            self._step(),
            moment_ns,
            context_tokens=arrival.context_tokens,
            output_tokens=arrival.output_tokens,
            scheduled_mono_ns=moment_ns,
        )

    def _step(self) -> int:
        sequence = self._sequence
        self._sequence += self.shard[1]
        return sequence

    def _outgoing(
        self,
        sequence: int,
        moment_ns: int,
        context_tokens: int | None = None,
        output_tokens: int | None = None,
        scheduled_mono_ns: int | None = None,
        conversation: int | None = None,
        turn: int | None = None,
        user: int | None = None,
    ) -> Outgoing:
        """Request number ``sequence`` of the run, let out at ``moment_ns``.

        Shorter than its prompt where lengths are given.
        """
        prompt_at = sequence % len(self._prompts)
        prompt = self._prompts[prompt_at]
        if context_tokens is None and output_tokens is None:
            body = self._bodies.whole(prompt_at)
        else:
            context_tokens = min(context_tokens or prompt.context_tokens, prompt.context_tokens)
            body = self._bodies.cut(
                prompt_at, context_tokens, output_tokens or prompt.output_tokens
            )
        request_id = f"{self._token}-{self.client_id}-{sequence:06d}"
        if turn is not None:
            request_id += f"-t{turn}"
        return Outgoing(
            request_id=request_id,
            head=whole_head(self._head(len(body)), request_id),
            body=body,
            streaming=self._task.streaming,
            context_tokens=context_tokens or prompt.context_tokens,
            output_tokens=(output_tokens or prompt.output_tokens) if self._task.streaming else 1,
            prompt_at=prompt_at,
            scheduled_mono_ns=scheduled_mono_ns,
            conversation=conversation,
            turn=turn,
            user=user,
            phase=self.phases.phase_of(moment_ns),
        )

    def _head(self, body_bytes: int) -> bytes:
        head = self._heads.get(body_bytes)
        if head is None:
            head = self.target.head(COMPLETIONS_PATH, body_bytes, self._accept)
            self._heads[body_bytes] = head
        return head

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

    def finish(self, outgoing: Outgoing, exchange: Exchange, in_flight: int) -> RequestRecord:
        """Write the row of a request that departed and is over, whatever came of it."""
        self.unfinished -= 1
        return self._keep(outgoing, exchange, in_flight)

    def not_sent(self, outgoing: Outgoing, why: str) -> RequestRecord:
        """A request that was due and could not be sent is a row as well."""
        return self._keep(outgoing, failed("not_sent", why), self.in_flight)

    def _keep(self, outgoing: Outgoing, exchange: Exchange, in_flight: int) -> RequestRecord:
        record = self._record(outgoing, exchange, in_flight)
        self._records.write(record)
        self.audit.add(outgoing, exchange)
        if record.error_type is None:
            self.ok += 1
            whole = self._prompts[outgoing.prompt_at]
            if (outgoing.context_tokens, outgoing.output_tokens) == self._asked(whole):
                # a cut prompt has lost its question: there is nothing to grade
                self._replies.keep(
                    outgoing.request_id, outgoing.prompt_at, exchange.text, exchange.body
                )
        else:
            self.failed += 1
        return record

    def _record(self, outgoing: Outgoing, exchange: Exchange, in_flight: int) -> RequestRecord:
        prompt = self._prompts[outgoing.prompt_at]
        facts = exchange.facts
        chunk_ns = exchange.chunk_ns
        scheduled = outgoing.scheduled_mono_ns
        return RequestRecord(
            run_id=self.live.run_id,
            client_id=self.client_id,
            request_id=outgoing.request_id,
            phase=outgoing.phase,
            task=prompt.task,
            prompt_index=prompt.prompt_index,
            prompt_sha256=prompt.sha256,
            context_tokens_target=outgoing.context_tokens,
            max_output_tokens=outgoing.output_tokens,
            in_flight_at_send=in_flight,
            time_source="kernel" if exchange.kernel_times else "user",
            prompt_tokens=facts.prompt_tokens,
            cached_tokens=facts.cached_tokens,
            output_tokens=facts.output_tokens,
            scheduled_unix_ns=None if scheduled is None else _unix_ns(scheduled),
            sent_unix_ns=exchange.sent_unix_ns,
            sent_mono_ns=exchange.sent_mono_ns,
            connect_ns=exchange.connect_ns,
            send_ns=exchange.send_ns,
            headers_ns=exchange.headers_ns,
            first_token_ns=chunk_ns[0] if chunk_ns else None,
            last_token_ns=chunk_ns[-1] if chunk_ns else None,
            end_ns=exchange.end_ns,
            chunk_ns=chunk_ns,
            chunk_tokens=facts.chunk_tokens if chunk_ns else None,
            http_status=exchange.http_status,
            finish_reason=facts.finish_reason,
            server_metrics=facts.server_metrics,
            error_type=facts.error_type,
            error_message=facts.error_message,
            conversation=outgoing.conversation,
            turn=outgoing.turn,
            user=outgoing.user,
        )

    def _asked(self, prompt: Prompt) -> tuple[int, int]:
        """Prompt and output length of a prompt that is sent whole."""
        return prompt.context_tokens, prompt.output_tokens if self._task.streaming else 1

    # --- phases -------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> bool:
        """Write the marks that are due. True when the point is over: nothing open, or drained."""
        if self._next_tick_ns is not None:
            self.audit.loop_lag.add(now_ns - self._next_tick_ns)
        self._next_tick_ns = now_ns + round(TICK_S * 1e9)
        self._records.flush()
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
        self._records.close()
        path = self.run.path / "client_audit" / f"{self.client_id}.json"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json.dumps(self.report(), indent=1) + "\n")
        self._grade()

    def report(self) -> dict[str, Any]:
        counts = {
            "sent": self.sent,
            "ok": self.ok,
            "failed": self.failed,
            "rows": self._records.rows,
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
    found = file_sha256(path)
    if found != live.prompts_sha256:
        raise UserError(
            f"{path}: its sha256 is {found[:12]}…, and the point was planned with "
            f"{live.prompts_sha256[:12]}…; give every worker the same file"
        )
    return prompts


def _share(phases: PhaseConfig, shard: tuple[int, int]) -> PhaseConfig:
    """A limit of requests is the whole run's: each of several processes takes its part."""
    index, count = shard
    if phases.requests is None or count == 1:
        return phases
    part = phases.requests // count + (index < phases.requests % count)
    return phases.model_copy(update={"requests": part})


def _unix_ns(mono_ns: int) -> int:
    now_unix_ns, now_mono_ns = both_clocks()
    return now_unix_ns - (now_mono_ns - mono_ns)
