"""One point over its whole run: requests, queue, KV usage, memory and power on one time axis."""

import itertools

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.point.point import Point
from analysis.report.plots import COLOURS, DASHES, FRAME, GIB
from analysis.runs.activity import activity, in_flight
from analysis.runs.run import Run
from analysis.runs.scrapes import kv_usage_series, metric_series

TIMELINE_STEPS = 400  # most points a trace of a timeline may have: two in four pixels of a screen


def timeline(run: Run, point: Point) -> go.Figure | None:
    """Requests, the server's queue, KV usage, memory and power of one point; None where it has none of them.

    x is seconds from the start of the measured phase; the window that counts is shaded.
    """
    lanes = [
        lane
        for lane in (_load_lane(run), _kv_lane(run), _memory_lane(run), _power_lane(run))
        if lane[1]
    ]
    if not lanes:
        return None
    zero = run.manifest.phases.get("measure", (run.manifest.created_unix_ns, 0))[0]
    figure = make_subplots(rows=len(lanes), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    looks = itertools.cycle(itertools.product(DASHES, COLOURS))  # no two lines of one look
    for row, (title, traces) in enumerate(lanes, start=1):
        for name, unix_ns, values, step in traces:
            dash, colour = next(looks)
            unix_ns, values = _thin(unix_ns, values)
            figure.add_trace(
                go.Scatter(
                    x=((unix_ns - zero) / 1e9).astype(np.float32),
                    y=_short(np.asarray(values, dtype=float)),
                    name=name,
                    mode="lines",
                    line={"shape": "hv" if step else "linear", "width": 1.5}
                    | {"color": colour, "dash": dash},
                ),
                row=row,
                col=1,
            )
        figure.update_yaxes(title_text=title, rangemode="tozero", row=row, col=1)
    figure.update_xaxes(title_text="seconds since the measured phase began", row=len(lanes), col=1)
    if point.window:
        figure.add_vrect(
            x0=(point.window.start_unix_ns - zero) / 1e9,
            x1=(point.window.end_unix_ns - zero) / 1e9,
            fillcolor="#38a169",
            opacity=0.1,
            line_width=0,
        )
    figure.update_layout(height=130 * len(lanes) + 110, **FRAME)
    return figure


Lane = tuple[str, list[tuple[str, np.ndarray, np.ndarray, bool]]]


def _load_lane(run: Run) -> Lane:
    traces: list[tuple[str, np.ndarray, np.ndarray, bool]] = []
    load = activity(run.requests)
    if len(load.start_ns):
        times, levels = in_flight(load)
        traces.append(("open requests (client)", times, levels, True))
    for metric, name in (
        ("vllm:num_requests_running", "running (server)"),
        ("vllm:num_requests_waiting", "waiting (server)"),
    ):
        series = metric_series(run, metric)
        if series is not None:
            traces.append((name, series.unix_ns, series.values, True))
    return "requests", traces


def _kv_lane(run: Run) -> Lane:
    series = kv_usage_series(run)
    traces = [("KV pool used", series.unix_ns, series.values * 100, True)] if series else []
    return "KV, %", traces


def _memory_lane(run: Run) -> Lane:
    traces: list[tuple[str, np.ndarray, np.ndarray, bool]] = []
    host = run.host[run.host["server_rss_bytes"].notna()]
    if len(host):
        values = host["server_rss_bytes"].to_numpy(dtype=float) / GIB
        traces.append(("server RSS", host["unix_ns"].to_numpy(), values, False))
    for _, samples in run.gpu[run.gpu["mem_used_bytes"].notna()].groupby("gpu_uuid"):
        values = samples["mem_used_bytes"].to_numpy(dtype=float) / GIB
        index = samples["gpu_index"].iloc[0]
        traces.append((f"GPU {index} memory", samples["unix_ns"].to_numpy(), values, False))
    return "memory, GiB", traces


def _power_lane(run: Run) -> Lane:
    traces: list[tuple[str, np.ndarray, np.ndarray, bool]] = []
    for _, samples in run.gpu[run.gpu["power_avg_w"].notna()].groupby("gpu_uuid"):
        values = samples["power_avg_w"].to_numpy(dtype=float)
        index = samples["gpu_index"].iloc[0]
        traces.append((f"GPU {index} power", samples["unix_ns"].to_numpy(), values, False))
    return "power, W", traces


def _thin(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most TIMELINE_STEPS points; of each stretch its lowest and highest, so no peak is lost."""
    if len(times) <= TIMELINE_STEPS:
        return times, values
    keep: list[int] = [0, len(times) - 1]
    for part in np.array_split(np.arange(len(times)), TIMELINE_STEPS // 2):
        keep += [int(part[np.argmin(values[part])]), int(part[np.argmax(values[part])])]
    chosen = np.unique(keep)
    return times[chosen], values[chosen]


def _short(values: np.ndarray) -> np.ndarray:
    """In the fewest bytes that plotly's base64 has for them: counts in two, all else in seven digits."""
    counts = np.all((values % 1 == 0) & (np.abs(values) < 1 << 15))
    return values.astype(np.int16 if counts else np.float32)
