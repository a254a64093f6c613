"""vLLM's /metrics: the allow-list, and a server that does not answer."""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from greenbench.contract.access import access
from greenbench.contract.clock import Anchor
from greenbench.contract.schema import ServerMetric
from telemetry.__main__ import record_request
from telemetry.sampler import ScrapeLoop
from telemetry.sensors import prometheus
from tests.fakes.plain_server import PlainServer, page, pages

PAGE = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 12480.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} NaN
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="tiny"} 4711.0
# HELP vllm:generation_tokens_created Number of generation tokens processed.
# TYPE vllm:generation_tokens_created gauge
vllm:generation_tokens_created{engine="0",model_name="tiny"} 1.7954e+09
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="tiny"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 9.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny"} 9.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="tiny"} 1.25
# HELP vllm:iteration_tokens_total Histogram of number of tokens per engine_step.
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="tiny"} 5.0
vllm:iteration_tokens_total_count{engine="0",model_name="tiny"} 40.0
vllm:iteration_tokens_total_sum{engine="0",model_name="tiny"} 4800.0
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="512"} 1.0
"""


def test_only_allow_listed_samples_with_their_labels() -> None:
    rows = {row.metric: row for row in prometheus.parse(PAGE, 5, 7)}
    assert {name: row.value for name, row in rows.items()} == {
        "vllm:num_requests_running": 3.0,
        "vllm:generation_tokens_total": 4711.0,  # and not its _created, nor Python's own counters
        "vllm:time_to_first_token_seconds_count": 9.0,
        "vllm:time_to_first_token_seconds_sum": 1.25,
        "vllm:iteration_tokens_total_count": 40.0,
        "vllm:iteration_tokens_total_sum": 4800.0,
        "vllm:cache_config_info": 1.0,
    }  # a NaN gauge is left out: the server has no value yet
    running = rows["vllm:num_requests_running"]
    assert (running.unix_ns, running.mono_ns) == (5, 7)
    assert running.labels == {"engine": "0", "model_name": "tiny"}
    assert rows["vllm:cache_config_info"].labels["num_gpu_blocks"] == "512"


def test_a_dead_and_a_living_server_are_told_apart_and_info_comes_once() -> None:
    """Guards against reading a failed scrape as 'nothing running'."""
    status = 200

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, *_: object) -> None: ...

    rows: list[ServerMetric] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        loop = ScrapeLoop(url, Anchor.now(), 0.5, rows.append, threading.Event())
        loop.scrape()
        loop.scrape()
        status = 503
        loop.scrape()
        server.shutdown()
    loop.scrape()  # nobody listens any more
    up = [row.value for row in rows if row.metric == "up"]
    assert up == [1.0, 1.0, 0.0, 0.0]
    assert sum(row.metric == prometheus.INFO for row in rows) == 1
    assert len(rows) == 7 + 1 + 6 + 1 + 1 + 1
    assert (loop.good, loop.failed) == (2, 2)
    assert "refused" in str(loop.last_error)


def test_a_page_beyond_its_limits_is_a_failed_scrape_with_its_reason() -> None:
    """216 MB, one byte now and then, a page of samples without end: a row up = 0, and the rest goes on."""
    samples = b'vllm:num_requests_running{engine="%d"} 1\n'
    many = b"".join(samples % number for number in range(prometheus.MOST_SAMPLES + 1))
    with PlainServer(pages({"/metrics": page(many)})) as server:
        with pytest.raises(ValueError, match="over 20000 samples"):
            prometheus.parse(prometheus.fetch(server.url), 0, 0)
        with pytest.raises(OSError, match="the answer to /metrics is over"):
            prometheus.fetch(server.url, most=len(many) - 1)
    rows: list[ServerMetric] = []
    loop = ScrapeLoop("http://127.0.0.1:9", Anchor.now(), 0.5, rows.append, threading.Event())
    loop.scrape()
    assert [(row.metric, row.value) for row in rows] == [("up", 0.0)]


def test_key_and_prefix_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_KEY", "sk-team")
    with PlainServer(pages({"/pre/metrics": page(PAGE.encode())})) as server:
        reached = access(server.url + "/pre/v1", {"api_key_env": "TEAM_KEY"})
        assert "4711" in prometheus.fetch(reached)
    assert b"\r\nAuthorization: Bearer sk-team\r\n" in server.asked[0]


def test_a_recording_beside_a_server_takes_the_connection_of_its_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_KEY", "sk-team")
    (tmp_path / "idle_before").mkdir()
    asked = {"server": {"base_url": "http://h/v1", "api_key_env": "TEAM_KEY"}}
    (tmp_path / "request.json").write_text(json.dumps(asked))
    options = argparse.Namespace(
        run_dir=tmp_path / "idle_before",
        base_url="http://h/v1",
        pid=None,
        period_s=None,
        scrape_s=None,
    )
    server = record_request(options).server
    assert server == access("http://h", {"api_key_env": "TEAM_KEY"})
    (tmp_path / "request.json").unlink()
    assert record_request(options).server == access("http://h")
