"""The page of a session: every test with guests, its timeline, its packets, its evidence; one file, no network needed.

Charts are plotly's (docs/decisions/0025); they are drawn when a test is unfolded. Written at the end of the session,
by the process that collects the reports, so it is complete under pytest-xdist too.
"""

from __future__ import annotations

import html
import json
import time
from pathlib import Path
from typing import Any, Final

import pytest

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1d2329 }
h1 { font-size: 1.5rem } summary { cursor: pointer; padding: .35rem 0 } summary:hover { background: #f2f5f8 }
details { border-bottom: 1px solid #dde3e9 } .outcome { display: inline-block; width: 4.5rem; font-weight: 600 }
.passed { color: #19713b } .failed { color: #b3261e } .skipped { color: #8a6d00 } .seconds { color: #66727e }
pre { background: #f6f8fa; padding: .7rem; overflow: auto; max-height: 24rem; font-size: 12.5px }
.chart { height: 34rem }
table { border-collapse: collapse; font-size: 13px } td { padding: .1rem .8rem .1rem 0; vertical-align: top }
"""
_SCRIPT: Final = """
document.querySelectorAll('details').forEach(test => test.addEventListener('toggle', () => {
  const chart = test.querySelector('.chart');
  if (!test.open || !chart || chart.dataset.drawn) return;
  chart.dataset.drawn = 'yes';
  const figure = JSON.parse(test.querySelector('script[type="application/json"]').textContent);
  Plotly.newPlot(chart, figure.data, figure.layout, {responsive: true, displaylogo: false});
}));
document.querySelectorAll('details[data-open]').forEach(test => { test.open = true; });
"""


class SessionPage:
    """A pytest plugin of its own: listens to reports, writes `path` at the end."""

    def __init__(self, path: Path) -> None:
        """Raises pytest.UsageError without plotly."""
        try:
            import plotly.offline
        except ImportError:
            raise pytest.UsageError("--guest-report needs plotly: pip install 'guestwire[report]'") from None
        self._library: str = plotly.offline.get_plotlyjs()
        self._path = path
        self._tests: dict[str, Any] = {}
        self._began = time.time()

    def pytest_runtest_logreport(self, report: Any) -> None:
        known = self._tests.get(report.nodeid)
        if getattr(report, "guest_timeline", None) is None and known is None:
            return
        # The call's report, or that of a set-up or tear-down that failed.
        if known is None or report.when == "call" or report.failed:
            self._tests[report.nodeid] = report

    def pytest_sessionfinish(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(self.page(), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.write_line(f"guests: the page of this session is {self._path}")

    def page(self) -> str:
        """The whole of it."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self._began))
        counts = {name: sum(each.outcome == name for each in self._tests.values()) for name in ("passed", "failed")}
        title = f"{len(self._tests)} tests with guests, {when}: {counts['passed']} passed, {counts['failed']} failed"
        body = "\n".join(_test(report) for report in self._tests.values())
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f"<style>{_STYLE}</style><script>{self._library}</script></head><body>"
            f"<h1>{html.escape(title)}</h1>\n{body}\n<script>{_SCRIPT}</script></body></html>\n"
        )


def _test(report: Any) -> str:
    failed = report.outcome == "failed"
    outcome = f"<span class='outcome {report.outcome}'>{report.outcome}</span>"
    seconds = f"<span class='seconds'>{report.duration:.2f} s</span>"
    summary = f"<summary>{outcome} {html.escape(report.nodeid)} {seconds}</summary>"
    parts = [f"<details{' data-open' if failed else ''}>{summary}"]
    told = getattr(report, "guest_timeline", None)
    if told is not None:
        # "</" would end the script element early, whatever stands around it.
        data = json.dumps(_figure(told)).replace("</", "<\\/")
        parts.append(f"<div class='chart'></div><script type='application/json'>{data}</script>")
        if told["omitted"]:
            parts.append(f"<p>{told['omitted']} packets in the middle are left out.</p>")
    rows = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in report.user_properties
    )
    if rows:
        parts.append(f"<table>{rows}</table>")
    if failed:
        parts.append(f"<pre>{html.escape(report.longreprtext)}</pre>")
        parts += [
            f"<h4>{html.escape(name)}</h4><pre>{html.escape(text)}</pre>"
            for name, text in report.sections
            if name.startswith("guest")
        ]
    return "".join([*parts, "</details>"])


def _figure(told: dict[str, Any]) -> Any:
    """Above: boots and commands as bars. Below: TCP by sequence number over time, other packets along the bottom."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        row_heights=[0.35, 0.65],
        vertical_spacing=0.06,
        subplot_titles=("guests and commands", "packets: TCP by sequence number"),
    )
    for guest in told["guests"]:
        figure.add_trace(_bar(guest["name"], guest["began"], guest["ready"], "start", "#8a9aa9"), row=1, col=1)
    for command in told["commands"]:
        finished = told["end"] if command["finished"] is None else command["finished"]
        status = "still running" if command["status"] is None else f"status {command['status']}"
        colour = "#2c7be5" if command["status"] == "0" else "#b3261e" if command["status"] else "#c28e00"
        text = f"{html.escape(command['text'])}<br>{status}"
        width = max(finished - command["began"], 1e-3)
        figure.add_trace(_bar(command["guest"], command["began"], width, text, colour), row=1, col=1)
    for name, points in _flows(told["packets"]).items():
        times, heights, texts = zip(*points, strict=True)
        figure.add_trace(
            go.Scatter(
                x=times, y=heights, text=texts, name=name, mode="markers+lines" if name != "other" else "markers",
                marker={"size": 5}, line={"width": 1}, hoverinfo="text+x",
            ),
            row=2,
            col=1,
        )  # fmt: skip
    for moment, text in told["marks"]:
        figure.add_vline(x=moment, line={"width": 1, "dash": "dot"}, annotation_text=html.escape(text))
    figure.update_layout(barmode="overlay", margin={"l": 60, "r": 20, "t": 40, "b": 40}, template="plotly_white")
    figure.update_xaxes(title_text="seconds since the test began", row=2, col=1)
    figure.update_yaxes(title_text="bytes", row=2, col=1)
    return json.loads(figure.to_json())


def _bar(lane: str, begin: float, length: float, text: str, colour: str) -> Any:
    import plotly.graph_objects as go

    return go.Bar(
        x=[length], y=[lane], base=[begin], orientation="h", marker={"color": colour, "line": {"width": 0.5}},
        hovertext=[text], hoverinfo="text", showlegend=False,
    )  # fmt: skip


def _flows(packets: list[list[Any]]) -> dict[str, list[tuple[float, int, str]]]:
    """By flow and direction: (time, bytes since its first packet, what it is)."""
    first: dict[str, int] = {}
    flows: dict[str, list[tuple[float, int, str]]] = {}
    for moment, link, inbound, size, summary, flow, sequence in packets:
        text = f"{link} {'from' if inbound else 'to'} the guest, {size} bytes<br>{html.escape(summary)}"
        if flow is None:
            flows.setdefault("other", []).append((moment, 0, text))
            continue
        base = first.setdefault(flow, sequence)
        flows.setdefault(flow, []).append((moment, (sequence - base + (1 << 31)) % (1 << 32) - (1 << 31), text))
    return flows
