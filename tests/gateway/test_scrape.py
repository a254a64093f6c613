"""What a page of /metrics says, held against prometheus_client's parser and against pages that lie."""

import random

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.scrape import Scrape, read_metrics

ENGINE = """\
vllm:num_requests_running{{engine="{engine}",model_name="a, b}} 9"}} {running}
vllm:num_requests_waiting{{engine="{engine}",model_name="a, b}} 9"}} {waiting}
vllm:num_requests_waiting_by_reason{{engine="{engine}",reason="capacity"}} 1e3
vllm:kv_cache_usage_perc{{engine="{engine}"}} {usage}
vllm:cache_config_info{{engine="{engine}",block_size="16",num_gpu_blocks="{blocks}",{more}}} 1.0
# vllm:num_requests_running 5
other_vllm:num_requests_running 7.0
"""


def page(*engines: dict[str, object]) -> str:
    defaults = {"running": 0.0, "waiting": 0.0, "usage": 0.0, "blocks": 64, "more": 'x="y"'}
    return "".join(ENGINE.format(engine=i, **defaults | one) for i, one in enumerate(engines))


def by_the_library(text: str, name: str) -> float:
    families = text_string_to_metric_families(text)
    return sum(s.value for f in families for s in f.samples if s.name == name)


def test_it_reads_what_the_library_reads() -> None:
    rng = random.Random(3)
    for _ in range(50):
        engines = [
            {"running": float(rng.randrange(300)), "waiting": rng.choice((0.0, 1e4, 3.0))}
            for _ in range(rng.randrange(1, 4))
        ]
        text = page(*engines)
        told = read_metrics(text.encode())
        assert told.running == by_the_library(text, "vllm:num_requests_running")
        assert told.waiting == by_the_library(text, "vllm:num_requests_waiting")


def test_the_name_of_older_servers_is_read_too() -> None:
    older = page({"usage": 0.25, "blocks": 100}).replace("kv_cache_usage", "gpu_cache_usage")
    assert read_metrics(older.encode()).free_kv_tokens == 1200
    both = older + page({"usage": 0.25, "blocks": 100})
    assert read_metrics(both.encode()).free_kv_tokens == 2400  # 0.75 of two engines


def test_tokens_are_blocks_times_their_size_or_as_told() -> None:
    told = read_metrics(page({"usage": 0.25}, {"usage": 0.75}).encode())
    assert told.total_kv_tokens == 2 * 64 * 16
    assert told.free_kv_tokens == 64 * 16  # half of both
    newer = read_metrics(page({"more": 'kv_cache_size_tokens="5000"', "usage": 0.9}).encode())
    assert (newer.total_kv_tokens, newer.free_kv_tokens) == (5000, 500)


@pytest.mark.parametrize("said", ["9" * 5000, "-1", "1e3", "٣", ""])
def test_a_size_that_is_no_number_is_unknown(said: str) -> None:
    """Python reads no whole number of more than 4,300 digits."""
    told = read_metrics(page({"more": f'kv_cache_size_tokens="{said}"', "blocks": said}).encode())
    assert told.total_kv_tokens is None and told.running == 0


@pytest.mark.parametrize(("said", "known"), [("True", True), ("False", False), ("maybe", None)])
def test_prefix_caching_is_told_or_unknown(said: str, known: bool | None) -> None:
    more = f'enable_prefix_caching="{said}"'
    assert read_metrics(page({"more": more}, {"more": more}).encode()).prefix_caching is known
    assert read_metrics(page({"more": more}, {}).encode()).prefix_caching is None


@pytest.mark.parametrize("value", ["nan", "-1", "+Inf", "1e400", "0x3", "", "1.5.2", "９"])
def test_a_figure_that_cannot_be_is_unknown_and_never_zero(value: str) -> None:
    told = read_metrics(page({"running": value, "usage": value}, {"running": 2}).encode())
    assert told.running is None
    assert told.free_kv_tokens is None
    assert told.waiting == 0


def test_other_pages_tell_nothing() -> None:
    for other in (b"", b"<html>vllm:num_requests_running 4</html>", b"\xff\x00" * 99, b"{}"):
        assert read_metrics(other) == Scrape()
