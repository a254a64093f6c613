"""The report in a real browser: figures draw, sections open, the theme switches, nothing is fetched."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.report.answer import answer
from analysis.report.choices import lower
from analysis.report.page import write_report
from analysis.report.tables import decision_rows
from analysis.study import Study, study
from tests.fakes.rundirs import FakeRun, write_run
from tests.fakes.waiting import HUNG_S

websocket = pytest.importorskip("websocket")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0", "--remote-allow-origins=*", "--window-size=1366,900",
)  # fmt: skip

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]


class Page:
    """One tab over the DevTools protocol."""

    def __init__(self, url: str) -> None:
        self._socket = websocket.create_connection(url, timeout=HUNG_S)
        self._last = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def js(self, expression: str) -> Any:
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = HUNG_S) -> None:
        deadline = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < deadline, f"never came true: {expression}"
            time.sleep(0.1)

    def press(self, key: str) -> None:
        code = {"Tab": 9, "Enter": 13}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **text,
            )

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("runs")
    for repeat in range(3):
        for backend, factor, sees in (("cpu_attn", 1.0, None), ("sink_window", 1.9, 1024)):
            for context in (512, 2048, 6144):
                write_run(
                    root,
                    FakeRun(
                        backend=backend,
                        context_tokens=context,
                        ttft_s=(0.05 + 5e-5 * context) * factor,
                        itl_s=0.01 * factor,
                        repeat=repeat,
                        start_factor=1 + 0.005 * repeat,
                        measure_s=15,
                        started_s=repeat,
                        prompts=30,
                        correct_share=1.0,
                        sees_tokens=sees,
                        weights="trained",
                    ),
                )
    write_run(root, FakeRun(backend="broken", status="failed", failure="it died"))
    return study(root)


@pytest.fixture(scope="module")
def report(whole: Study) -> Path:
    out = whole.root / "report.html"
    write_report(whole, out)
    return out


@pytest.fixture(scope="module")
def page(report: Path) -> Iterator[Page]:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        # one load alone: a second one aborts the first, which can be logged as an error
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            tab = Page(_tab_url(Path(profile)))
            tab.send("Page.navigate", url=f"file://{report}")
            tab.until("document.readyState === 'complete'")
            yield tab
            tab.close()
        finally:
            browser.terminate()
            browser.wait(10)


def _tab_url(profile: Path) -> str:
    """The tab's socket, once the browser has written which port it took."""
    import urllib.request

    deadline = time.monotonic() + HUNG_S
    while time.monotonic() < deadline:
        active = profile / "DevToolsActivePort"
        if active.is_file() and active.read_text().strip():
            port = active.read_text().splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as reply:
                tabs = [tab for tab in json.load(reply) if tab["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise AssertionError("Chromium opened no debugging port")


CASE = "document.getElementById('case').innerText"


def text(marked: str) -> str:
    return marked.replace("`", "").replace("**", "")


def asked(page: Page, **fields: str) -> str:
    """What the page says when somebody types a case; each field by keys, as a person does."""
    for name, value in fields.items():
        page.js(f"document.forms.ask.elements.{name}.focus()")
        if name in ("context", "level"):
            page.js(f"document.forms.ask.elements.{name}.select()")
            page.send("Input.insertText", text=value)
        else:
            page.js(
                f"document.forms.ask.elements.{name}.value = '{value}';"
                f"document.forms.ask.elements.{name}.dispatchEvent(new Event('input', {{bubbles: true}}))"
            )
    return " ".join(page.js(CASE).split())


def test_the_first_screen_shows_the_answer_of_the_analysis(page: Page, whole: Study) -> None:
    shown = page.js("document.getElementById('answer').textContent")
    assert shown == text(answer(whole))
    page.until("document.getElementById('band').dataset.drawn === 'yes'")
    assert page.js("document.querySelectorAll('#band .shapelayer path').length") >= 1


def test_ones_own_case_is_answered_from_what_was_measured_alone(page: Page, whole: Study) -> None:
    """At, between and beyond the measured 512, 2,048 and 6,144 tokens and 4 users."""
    decided = {(d.scenario.context_tokens, d.objective.name): d for d in whole.decisions}
    winner = decided[512, "ttft"].winner
    assert winner is not None
    said = asked(page, context="512", by="ttft")
    assert said.startswith(f"Take {winner} at 512 tokens") and "against" in said
    assert f"by {lower(decided[512, 'ttft'].objective.title)}." in said
    between = asked(page, context="3000")
    assert "3,000 tokens is between measured points: not measured" in between
    assert "at 2,048 tokens" in between and "at 6,144 tokens" in between
    state = page.js("location.hash")
    assert "context=3000" in state and "by=ttft" in state
    outside = asked(page, context="100000")
    assert outside == "Not measured: 100,000 tokens. Measured: 512 to 6,144 tokens."
    assert asked(page, context="2048", level="9") == "Not measured: 9 users. Measured: 4 users."
    asked(page, level="4")
    page.js(f"location.hash = '{state}'")  # somebody opens the address that was passed on
    page.until(f"{CASE}.includes('3,000 tokens is between')")
    page.js("location.hash = ''")


def test_csv_and_json_hold_the_table(page: Page, whole: Study) -> None:
    table = "document.querySelector('#decisions table')"
    rows = page.js(f"JSON.parse(asJson({table}))")
    assert [row["Context"] for row in rows] == [
        f"{row.context_tokens:,}" for row in decision_rows(whole)
    ]
    for row, made in zip(decision_rows(whole), rows, strict=True):
        for objective, decision in row.entries:
            if decision is not None and decision.winner:
                assert made[objective.title] == decision.winner
    lines = page.js(f"asCsv({table})").split("\r\n")
    assert lines[0].split(",")[:3] == ["Task", "Load", "Context"]
    assert len(lines) == len(rows) + 2  # the head, and what follows the last line's end
    assert page.js("csvField('=HYPERLINK(1)')") == "'=HYPERLINK(1)"
    offered = page.js("document.querySelectorAll('#decisions .get button').length")
    assert offered == 2


def test_figures_draw_when_they_come_into_view(page: Page) -> None:
    page.js("document.querySelector('#plots details[open] .figure').scrollIntoView()")
    page.until("document.querySelectorAll('#plots details[open] .figure[data-drawn]').length >= 3")
    lines = page.js("document.querySelectorAll('#plots details[open] .js-line').length")
    assert lines >= 6  # two backends in each of three figures at least


def test_a_point_opens_by_click_and_shows_its_timeline(page: Page) -> None:
    page.js("document.querySelector('#points details summary').click()")
    page.js("document.querySelector('#points details .figure').scrollIntoView()")
    page.until("document.querySelector('#points details .figure[data-drawn]') !== null")
    names = page.js(
        "[...document.querySelectorAll('#points details[open] .legendtext')].map(e => e.textContent)"
    )
    assert "open requests (client)" in names
    assert "KV pool used" in names and "server RSS" in names


def test_crossover_figures_open(page: Page) -> None:
    holder = "document.querySelector('#crossovers .figure').closest('details')"
    page.js(f"{holder}.open || {holder}.querySelector('summary').click()")
    page.js("document.querySelector('#crossovers .figure').scrollIntoView()")
    page.until("document.querySelectorAll('#crossovers .figure[data-drawn]').length >= 1")


def test_theme_switches_page_and_figures(page: Page) -> None:
    ink = "getComputedStyle(document.body).color"
    figure = "getComputedStyle(document.querySelector('.figure[data-drawn] .gtitle')).fill"
    before, drawn_before = page.js(ink), page.js(figure)
    page.js("document.getElementById('theme').click()")
    page.until(f"{figure} !== '{drawn_before}'")
    assert page.js(ink) != before
    page.js("document.getElementById('theme').click()")
    page.until(f"{figure} === '{drawn_before}'")


CONTRAST = """(() => {
  const parse = (text) => {
    const c = text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    return text.startsWith("color(") ? c : c.map((v) => v / 255);
  };
  const light = (c) => c.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  return Math.min(...[...document.querySelectorAll("table.heat td")].map((cell) => {
    const style = getComputedStyle(cell);
    const [a, b] = [light(parse(style.color)), light(parse(style.backgroundColor))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
})()"""


def test_depth_maps_are_read_in_light_and_dark(page: Page) -> None:
    """Two maps of 5 × 3 cells, coloured by share, each with its figure; WCAG's contrast for text is 4.5."""
    cells = "[...document.querySelectorAll('table.heat td')]"
    assert page.js(f"{cells}.length") == 30
    colours = page.js(f"new Set({cells}.map(c => getComputedStyle(c).backgroundColor)).size")
    assert colours >= 3  # all right, none right, some right
    for _ in ("one theme", "the other"):
        assert page.js(CONTRAST) >= 4.5
        page.js("document.getElementById('theme').click()")


def test_a_disqualified_backend_leads_to_the_prompts_it_lost(page: Page) -> None:
    page.js("document.querySelector('#decisions a.disqualified').click()")
    page.until("location.hash === '#answers'")
    lost = "document.querySelector('#answers details.lost')"
    assert page.js(f"{lost}.open")  # the first is read without a click
    said = page.js(f"{lost}.innerText")
    assert "“right”" in said and "“wrong”" in said
    second = "document.querySelectorAll('#answers details.lost')[1]"
    page.js(f"{second}.querySelector('summary').focus()")
    page.press("Enter")
    page.until(f"{second}.open")


def test_links_lead_to_their_sections(page: Page) -> None:
    missing = page.js(
        "[...document.querySelectorAll('a[href^=\"#\"]')]"
        ".filter(a => !document.getElementById(a.getAttribute('href').slice(1))).length"
    )
    assert missing == 0
    page.js("document.querySelector('nav a[href=\"#excluded\"]').click()")
    page.until("location.hash === '#excluded'")
    assert "it died" in page.js("document.getElementById('excluded').innerText")


def test_keyboard_reaches_and_opens_a_section(page: Page) -> None:
    page.js("document.querySelectorAll('#points details')[1].querySelector('summary').focus()")
    page.press("Enter")
    page.until("document.querySelectorAll('#points details')[1].open")
    page.js("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.press("Tab")
    assert page.js("document.activeElement !== document.body")


@pytest.mark.parametrize("width", [1024, 1366])
def test_the_page_fits_a_laptop(page: Page, width: int, tmp_path: Path) -> None:
    page.send(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=800,
        deviceScaleFactor=1,
        mobile=False,
    )
    page.until(f"window.innerWidth === {width}")
    page.until(f"document.documentElement.scrollWidth <= {width}", seconds=5)
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_nothing_was_fetched_and_no_error_was_logged(page: Page) -> None:
    asked = [
        e["params"]["request"]["url"]
        for e in page.events
        if e["method"] == "Network.requestWillBeSent"
    ]
    assert asked[0].startswith("file:")
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked
    errors = [
        e
        for e in page.events
        if e["method"] == "Runtime.exceptionThrown"
        or (e["method"] == "Log.entryAdded" and e["params"]["entry"]["level"] == "error")
    ]
    assert errors == []


@pytest.mark.parametrize("width", [1280, 400])
def test_an_anchor_stops_below_the_header_and_tables_scroll_in_themselves(
    page: Page, width: int
) -> None:
    page.send(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    try:
        below = page.js(
            "[...document.querySelectorAll('nav a')].map(a => { location.hash = ''; location.hash = a.hash;"
            " const top = document.querySelector(a.hash + ' h2').getBoundingClientRect().top;"
            " return top - document.querySelector('header').getBoundingClientRect().bottom; })"
        )
        assert len(below) > 10 and min(below) >= 0, below
        assert page.js("document.documentElement.scrollWidth <= innerWidth")
        wide = (
            "[...document.querySelectorAll('main table')].filter(t => t.offsetWidth > innerWidth)"
        )
        assert page.js(
            f"{wide}.every(t => t.parentElement.scrollWidth > t.parentElement.offsetWidth)"
        )
        if width == 400:
            assert page.js(f"{wide}.length") > 0
            prose = (
                "[...document.querySelectorAll('td.prose')].map(c => c.offsetWidth).filter(Boolean)"
            )
            assert min(page.js(prose)) >= 200  # else a sentence stands a word a line
    finally:
        page.send("Emulation.clearDeviceMetricsOverride")
        page.js("location.hash = ''")


def test_in_a_narrow_place_names_lie_below_the_figure(page: Page) -> None:
    page.send(
        "Emulation.setDeviceMetricsOverride",
        width=400,
        height=1800,
        deviceScaleFactor=1,
        mobile=False,
    )
    page.send("Page.reload")
    page.until("document.querySelector('#band')?.dataset.drawn === 'yes'")
    legend, plot = (
        page.js(
            f"(r => [r.left, r.top, r.right, r.bottom])(document.querySelector('#band {part}')"
            ".getBoundingClientRect())"
        )
        for part in (".legend", ".nsewdrag")
    )
    assert legend[1] >= plot[3] and legend[0] >= 0 and legend[2] <= 400
