"""What is compared: model, kinds of server, lengths; what one request gave, and one kind at one length."""

from dataclasses import dataclass

from loadgen.prompts.prompt_file import Prompt

MODEL = "retriever-32k"
BACKENDS = {"exact": "cpu_attn", "window": "sink_window(window=512)"}
SECOND = "-2"  # a kind's other server
CORES = {
    "exact": 0,
    "exact-2": 1,
    "window-2": 0,
    "window": 1,
}  # of the two; one server of each serves
LENGTHS = (500, 2_000, 10_000)  # prompt tokens
DEPTH = 0.98  # where the record that is asked for stands: the window's 512 tokens hold it
LONGEST = 12_000  # tokens of a sequence
CALIBRATION_PROMPTS, TRAFFIC_PROMPTS = (
    30,
    64,
)  # a length; 29 are the fewest that the answer gate can judge
USERS = 8
BUSY = 0.1  # share of the cores that others may take in a turn before its figures are in doubt
ROUND_S = 45.0  # about what one round of the traffic takes the policy
BOOT_S = 300.0
STRATEGIES = {
    "exact": "two exact servers",
    "window": "two window servers",
    "random": "one of each, at random",
    "policy": "one of each, by the policy",
}
USED = {  # the servers that may take requests
    "exact": ("exact", "exact" + SECOND),
    "window": ("window", "window" + SECOND),
    "random": ("exact", "window"),
    "policy": ("exact", "window"),
}
SINGLE = ("exact", "window")  # strategies of one kind of server


def kind(name: str) -> str:
    """Of a server's name."""
    return name.removesuffix(SECOND)


@dataclass(frozen=True)
class Answer:
    """One request. Seconds since the round's start; ``why``: the gateway's reason without its figures."""

    strategy: str
    round: int
    user: int
    context: int
    index: int
    pool: str
    rule: str
    why: str
    sent_s: float
    first_s: float
    end_s: float
    right: bool

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.sent_s


@dataclass(frozen=True)
class Measured:
    """A kind of server at one length, one request at a time: medians. ``verdict``: against the exact server's
    answers on the same prompts.
    """

    pool: str
    context: int
    ttft_s: float
    e2e_s: float
    right: int
    count: int
    verdict: str


Prompts = dict[int, list[Prompt]]


def say(words: str) -> None:
    print(words, flush=True)
