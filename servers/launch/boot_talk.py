"""What a person sees while a server boots: each stage as vLLM's log shows it begin."""

from collections.abc import Callable
from typing import Final

from servers.launch.boot_log import stages_over

# What begins when the stage before it is over; the first when the process starts.
BEGINS: Final = {
    None: "importing vLLM",
    "imports": "starting the engine",
    "engine_start": "loading the weights",
    "load": "compiling and measuring the memory for the KV cache",
    "compile": "capturing graphs and making the KV cache",
    "warm_up": "opening the API",
}


class BootTalk:
    """Says each stage once, with the seconds since the start."""

    def __init__(self, say: Callable[[str], None], log: Callable[[], str]) -> None:
        self._say = say
        self._log = log
        self._said: str | None = None

    def look(self, seconds: float) -> None:
        over = stages_over(self._log())
        words = BEGINS[over[-1] if over else None]
        if words != self._said:
            self._said = words
            self._say(f"  {seconds:4.0f} s  {words}")
