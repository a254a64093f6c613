"""The traffic of recorded pages of a vLLM, out of a real Prometheus that scraped them."""

import re
import shutil
from pathlib import Path

import pytest

from greenbench.contract.errors import UserError
from planning.demand import Demand
from planning.prometheus import Histogram, production, shares
from tests.fakes.prometheus import prometheus, recorded

WINDOW_S = 20


def counted(page: bytes, name: str) -> float:
    found = re.findall(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", page.decode(), re.MULTILINE)
    return sum(map(float, found))


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_rate_lengths_and_cache_of_recorded_pages(tmp_path: Path) -> None:
    """Expected by hand, from the first page and the last."""
    pages = recorded("vllm-0.32.0")

    def grew(name: str) -> float:
        return counted(pages[-1], name) - counted(pages[0], name)

    with prometheus(tmp_path, {"vllm": [(pages, {})], "exporter": [], "gateway": []}) as running:
        found = production(running.url, f"{WINDOW_S}s")
    assert isinstance(found, Demand)
    requests = grew("vllm:request_success_total")
    assert found.rate_per_s == pytest.approx(requests / WINDOW_S, rel=0.25)  # it extrapolates
    for lengths, name in (
        (found.file.prompt_tokens, "vllm:request_prompt_tokens"),
        (found.file.output_tokens, "vllm:request_generation_tokens"),
    ):
        assert isinstance(lengths, dict)
        mean = sum(tokens * share for tokens, share in lengths.items())
        # increase() goes on to the edges of its window, of a sum and a count not quite alike
        assert mean == pytest.approx(grew(f"{name}_sum") / grew(f"{name}_count"), rel=0.06)
        assert sum(lengths.values()) == pytest.approx(1)
    hits = grew("vllm:prefix_cache_hits_total") / grew("vllm:prefix_cache_queries_total")
    assert found.file.cached_share == pytest.approx(hits, rel=0.06)


def test_a_bucket_is_its_geometric_mean_scaled_to_the_true_mean() -> None:
    """√(100·400) = 200 and √(400·1600) = 800, half each: mean 500; a true mean of 600 makes 240 and 960."""
    found = shares(Histogram((100.0, 400.0, 1600.0), (0.0, 30.0, 30.0), 600.0))
    assert found == {240: 0.5, 960: 0.5}


def test_what_does_not_answer_is_one_sentence() -> None:
    with pytest.raises(UserError, match="Prometheus does not answer"):
        production("http://127.0.0.1:9")
    with pytest.raises(UserError, match="--window wants a time"):
        production("http://127.0.0.1:9", "soon")
