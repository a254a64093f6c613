"""A tab on Locust's web page: TTFT, time between chunks, tokens/s and J/s, live.

Through Locust's own hooks: the page's extended tabs and tables, the `/stats/requests` response, and
the report that workers send their master. Figures are of the last `WINDOW_S` seconds; J/s is the
power that a telemetry exporter (`python -m telemetry serve`) reports, and absent without one.
"""

import json
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import httpx
from flask import Response, request
from prometheus_client.parser import text_string_to_metric_families

from greenbench.contract.schema import RequestRecord

if TYPE_CHECKING:  # locust patches the whole process when it is imported: its tests need not be
    from locust.env import Environment

WINDOW_S: Final = 10.0
TAB: Final = {"title": "Tokens and joules", "key": "greenbench"}
TABLE: Final = {
    "key": "greenbench",
    "structure": [
        {"key": "name", "title": "Figure"},
        {"key": "value", "title": f"Last {WINDOW_S:g} s"},
        {"key": "n", "title": "Requests behind it"},
    ],
}
# the exporter's counters, the first that is there; summed over devices
JOULES: Final = ("greenbench_gpu_energy_joules_total", "greenbench_cpu_energy_joules_total")

Sample = tuple[float, float | None, float | None, int]  # (unix s, TTFT ms, chunk gap ms, tokens)


class Live:
    """Samples of finished requests: this process's, and on a master those of its workers."""

    def __init__(self, power_url: str | None = None) -> None:
        self._samples: deque[Sample] = deque()
        self._unreported: deque[Sample] = deque(maxlen=10_000)
        self._power = Power(power_url)

    def add(self, record: RequestRecord) -> None:
        if record.error_type is not None or record.end_ns is None:
            return
        gap_ms = None
        if record.chunk_ns and len(record.chunk_ns) > 1:
            gap_ms = (record.chunk_ns[-1] - record.chunk_ns[0]) / (len(record.chunk_ns) - 1) / 1e6
        ttft_ms = None if record.first_token_ns is None else record.first_token_ns / 1e6
        sample = (time.time(), ttft_ms, gap_ms, record.output_tokens or 0)
        self._samples.append(sample)
        self._unreported.append(sample)
        self._trim()

    def take_unreported(self) -> list[Sample]:
        taken = list(self._unreported)
        self._unreported.clear()
        return taken

    def merge(self, samples: list[Sample]) -> None:
        self._samples.extend(tuple(sample) for sample in samples)  # type: ignore[misc]
        self._trim()

    def _trim(self) -> None:
        oldest = time.time() - WINDOW_S
        while self._samples and self._samples[0][0] < oldest:
            self._samples.popleft()

    def rows(self) -> list[dict[str, Any]]:
        """The table. A figure without a source says so; it is never 0."""
        self._trim()
        ttft = sorted(s[1] for s in self._samples if s[1] is not None)
        gaps = sorted(s[2] for s in self._samples if s[2] is not None)
        tokens = sum(s[3] for s in self._samples)
        power_w = self._power.read()
        rows = [
            _row("TTFT p50, ms", _quantile(ttft, 0.5), len(ttft)),
            _row("TTFT p99, ms", _quantile(ttft, 0.99), len(ttft)),
            _row("Time between chunks p50, ms", _quantile(gaps, 0.5), len(gaps)),
            _row("Time between chunks p99, ms", _quantile(gaps, 0.99), len(gaps)),
            _row(
                "Output tokens/s", tokens / WINDOW_S if self._samples else None, len(self._samples)
            ),
            _row("J/s (W)", power_w, None, "no exporter (python -m telemetry serve)"),
        ]
        if power_w is not None and tokens:
            rows.append(_row("J/output token", power_w * WINDOW_S / tokens, len(self._samples)))
        return rows


def _row(
    name: str, value: float | None, n: int | None, absent: str = "no request yet"
) -> dict[str, Any]:
    return {
        "name": name,
        "value": absent if value is None else f"{value:.4g}",
        "n": "" if n is None else n,
    }


def _quantile(values: list[float], share: float) -> float | None:
    return values[min(len(values) - 1, int(share * len(values)))] if values else None


class Power:
    """Watts from an exporter's energy counters: joules between two looks, by the time between them."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._last: tuple[float, float] | None = None
        self._power_w: float | None = None

    def read(self) -> float | None:
        """None without an exporter, before the second look, and after a counter went back."""
        now = time.monotonic()
        if self._last is not None and now - self._last[0] < 1:
            return self._power_w  # counters move every 0.1 s or so: a short span says little
        joules = self._joules()
        before, self._last = self._last, None if joules is None else (now, joules)
        self._power_w = None
        if joules is not None and before is not None and joules >= before[1]:
            self._power_w = (joules - before[1]) / (now - before[0])
        return self._power_w

    def _joules(self) -> float | None:
        if self._url is None:
            return None
        try:
            page = httpx.get(self._url, timeout=0.5, trust_env=False)
            return read_joules(page.raise_for_status().text)
        except (httpx.HTTPError, httpx.InvalidURL):
            return None


def read_joules(page: str) -> float | None:
    """Joules of a Prometheus page, summed over devices; None when it has no energy counter."""
    samples = [each for family in text_string_to_metric_families(page) for each in family.samples]
    for name in JOULES:
        values = [each.value for each in samples if each.name == name]
        if values:
            return sum(values)
    return None


def install(environment: "Environment", live: Live) -> None:
    """Add the tab to the page of this process, and the figures to what workers report."""
    hooks = environment.events

    def report(client_id: str, data: dict[str, Any]) -> None:
        data["greenbench"] = live.take_unreported()

    def merge(client_id: str, data: dict[str, Any]) -> None:
        live.merge(data.get("greenbench", []))

    hooks.report_to_master.add_listener(report)
    hooks.worker_report.add_listener(merge)
    page = environment.web_ui
    if page is None:
        return
    page.template_args |= {"extendedTabs": [TAB], "extendedTables": [TABLE]}
    assert page.app is not None
    page.app.after_request(_extend(live.rows))


def _extend(rows: Callable[[], list[dict[str, Any]]]) -> Callable[[Response], Response]:
    def extend(response: Response) -> Response:
        if request.path.endswith("/stats/requests") and response.is_json:
            stats = [{"key": TABLE["key"], "data": rows()}]
            response.set_data(json.dumps({**(response.json or {}), "extendedStats": stats}))
        return response

    return extend
