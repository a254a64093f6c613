"""A boot says each of its stages once, when vLLM's log shows that the one before is over."""

from servers.launch.boot_talk import BootTalk

# lines of vLLM 0.32.0 (CPU build), without their prefixes
LOG = (
    "INFO 11-29 non-default args: {'model': 'm'}",
    "INFO 11-29 Initializing a V1 LLM engine (v0.32.0) with config",
    "INFO 11-29 Loading weights took 0.03 seconds",
    "INFO 11-29 torch.compile took 5.00 s in total",
    "INFO 11-29 init engine (profile, create kv cache, warmup model) took 2.10 seconds",
)


def test_each_stage_is_said_once_when_it_begins() -> None:
    log: list[str] = []
    said: list[str] = []
    talk = BootTalk(said.append, lambda: "\n".join(log))
    for second, line in enumerate(LOG):
        talk.look(second)
        talk.look(second + 0.5)
        log.append(line)
    talk.look(9)
    assert [line.split(maxsplit=2)[2] for line in said] == [
        "importing vLLM",
        "starting the engine",
        "loading the weights",
        "compiling and measuring the memory for the KV cache",
        "capturing graphs and making the KV cache",
        "opening the API",
    ]
    assert [float(line.split()[0]) for line in said] == [0, 1, 2, 3, 4, 9]


def test_a_stage_that_the_log_passes_over_is_not_said() -> None:
    said: list[str] = []
    BootTalk(said.append, lambda: LOG[0] + "\n" + LOG[2]).look(3)
    assert said == ["     3 s  compiling and measuring the memory for the KV cache"]
