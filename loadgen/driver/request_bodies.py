"""Request bodies, encoded once: a 128k-token prompt takes milliseconds to encode and none to cut.

The token ids of each prompt are kept as the bytes they are sent as, with the place where each ends, so
that a shorter prompt (a turn of a conversation, a request of a trace) is a slice.
"""

import json
from array import array
from dataclasses import dataclass, replace
from itertools import accumulate

from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks.task import Task

STAND_IN = -4_711_471_147_114_711  # where the ids go; no token has this id


@dataclass(frozen=True, slots=True)
class Ids:
    """``text``: the ids with commas between. ``ends[i]``: where the (i + 1)-th id ends in it."""

    text: bytes
    ends: "array[int]"


class Bodies:
    """Bodies of one task's requests to one model."""

    def __init__(self, task: Task, model: str, prompts: list[Prompt]) -> None:
        self._task = task
        self._model = model
        self._prompts = prompts
        self._ids = [_encode(prompt.token_ids) for prompt in prompts]
        self._around: dict[int, tuple[bytes, bytes]] = {}  # by output tokens
        self._whole = [
            self.cut(at, p.context_tokens, p.output_tokens)
            if p.message is None
            else json.dumps(task.body(model, p), separators=(",", ":")).encode()
            for at, p in enumerate(prompts)
        ]

    def whole(self, prompt_at: int) -> bytes:
        """The body of a prompt as it stands in the prompt file."""
        return self._whole[prompt_at]

    def cut(self, prompt_at: int, context_tokens: int, output_tokens: int) -> bytes:
        """The body of a prompt's first ``context_tokens`` tokens; a chat's message cannot be cut."""
        ids = self._ids[prompt_at]
        before, after = self._frame(output_tokens)
        return b"".join((before, memoryview(ids.text)[: ids.ends[context_tokens - 1]], after))

    def _frame(self, output_tokens: int) -> tuple[bytes, bytes]:
        """What stands before and after the ids; the prompts of one task differ in nothing else."""
        if output_tokens not in self._around:
            empty = replace(self._prompts[0], token_ids=[STAND_IN], output_tokens=output_tokens)
            text = json.dumps(self._task.body(self._model, empty), separators=(",", ":"))
            before, after = text.split(str(STAND_IN))
            self._around[output_tokens] = before.encode(), after.encode()
        return self._around[output_tokens]


def _encode(token_ids: list[int]) -> Ids:
    words = [b"%d" % token for token in token_ids]
    ends = array("l", accumulate(len(word) + 1 for word in words))
    return Ids(b",".join(words), array("l", (end - 1 for end in ends)))
