"""Requests ready to be written: which prompt, how much of it, under which id and head.

Knows the prompts and the server's address; knows no clock and no connection.
"""

import os
from dataclasses import dataclass
from typing import NamedTuple

from greenbench.contract.config import LivePoint
from greenbench.contract.schema import Phase
from greenbench.contract.served import PATHS
from loadgen.driver.request_bodies import Bodies
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks.task import Task
from loadgen.wire.connection import Target, whole_head
from loadgen.wire.response import Request


@dataclass(slots=True)
class Conversation:
    """One user's turns: ``turns`` requests on a growing prefix of one prompt, over and over.

    ``user`` is its number in the run, which its requests' rows carry.
    """

    turns: int
    user: int | None = None
    turn: int = 0
    sequence: int = 0


class Slot(NamedTuple):
    """A request's place in the run. ``sequence``: its number, which picks the prompt."""

    sequence: int
    phase: Phase
    scheduled_mono_ns: int | None = None
    conversation: int | None = None
    turn: int | None = None
    user: int | None = None


class RequestBuilder:
    """Builds the requests of one client process. Heads are kept by the length of the body."""

    def __init__(
        self, live: LivePoint, client_id: str, target: Target, task: Task, prompts: list[Prompt]
    ) -> None:
        self._client_id = client_id
        self._target = target
        self._streaming = task.streaming
        self._prompts = prompts
        self._bodies = Bodies(task, live.served_model, prompts)
        self._accept = "text/event-stream" if task.streaming else "application/json"
        chat = live.point.server.endpoint == "chat"
        self._path = PATHS["chat" if chat else "completions"]
        self._heads: dict[int, bytes] = {}
        self._token = os.urandom(4).hex()  # keeps request ids of two runs apart in one server's log

    def prompt(self, sequence: int) -> Prompt:
        return self._prompts[sequence % len(self._prompts)]

    def build(
        self, slot: Slot, context_tokens: int | None = None, output_tokens: int | None = None
    ) -> Request:
        """The request of this slot; shorter than its prompt where lengths are given."""
        prompt_at = slot.sequence % len(self._prompts)
        prompt = self._prompts[prompt_at]
        if context_tokens is None and output_tokens is None:
            body = self._bodies.whole(prompt_at)
        else:
            context_tokens = min(context_tokens or prompt.context_tokens, prompt.context_tokens)
            body = self._bodies.cut(
                prompt_at, context_tokens, output_tokens or prompt.output_tokens
            )
        request_id = f"{self._token}-{self._client_id}-{slot.sequence:06d}"
        if slot.turn is not None:
            request_id += f"-t{slot.turn}"
        return Request(
            request_id=request_id,
            head=whole_head(self._head(len(body)), request_id),
            body=body,
            streaming=self._streaming,
            context_tokens=context_tokens or prompt.context_tokens,
            output_tokens=(output_tokens or prompt.output_tokens) if self._streaming else 1,
            prompt_at=prompt_at,
            scheduled_mono_ns=slot.scheduled_mono_ns,
            conversation=slot.conversation,
            turn=slot.turn,
            user=slot.user,
            phase=slot.phase,
        )

    def sends_whole(self, request: Request) -> bool:
        """Whether the request carries its prompt uncut, and asks for as many tokens as that does."""
        prompt = self._prompts[request.prompt_at]
        output_tokens = prompt.output_tokens if self._streaming else 1
        return (request.context_tokens, request.output_tokens) == (
            prompt.context_tokens,
            output_tokens,
        )

    def _head(self, body_bytes: int) -> bytes:
        head = self._heads.get(body_bytes)
        if head is None:
            head = self._target.head(self._path, body_bytes, self._accept)
            self._heads[body_bytes] = head
        return head
