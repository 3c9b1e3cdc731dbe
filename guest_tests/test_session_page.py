"""`pytest --guest-report`: one page for the whole session, drawn in a real browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from guest_tests.project import Run, run_project

PROJECT = """
    def test_transfers(guest, net):
        with net.serve("api.test:80", lambda request: "x" * 100_000):
            net.mark("here it asks")
            assert len(guest.run("wget -q -O - http://api.test/", check=True).stdout) == 100_000

    def test_fails(guest):
        guest.run("echo '</script><b>'; false", check=True)

    def test_without_a_guest():
        pass
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("project")
    run: Run = run_project(place, PROJECT, "--guest-report=out/page.html")
    assert run.code == 1, run.output
    assert "the page of this session is" in run.output
    return place / "out" / "page.html"


def test_the_page_holds_every_test_with_a_guest_and_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    assert "2 tests with guests" in text
    assert "1 passed, 1 failed" in text
    assert "test_it.py::test_transfers" in text
    assert "test_without_a_guest" not in text
    assert "here it asks" in text
    assert "wget -q -O - http://api.test/" in html.unescape(text)
    assert "TCP 10.0.2.15:" in text  # a packet, by its line
    assert "&lt;/script&gt;&lt;b&gt;" in text  # the failure's output, as text
    outside = text[text.index("</script></head>") :]
    assert not re.search(r"(src|href)=", outside)  # nothing is fetched
    assert outside.count("<script type='application/json'>") == 2


@pytest.mark.long
def test_a_browser_draws_the_charts(page: Path, tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    assert browser is not None, "no chromium: run `make test-long`, which installs it"
    # Unfold everything, as a person would.
    opened = tmp_path / "open.html"
    opened.write_text(page.read_text().replace("<details>", "<details data-open>"))
    words = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    words += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    words += ["--window-size=1200,1400", "--virtual-time-budget=20000"]
    shown = subprocess.run(
        [*words, "--dump-dom", opened.as_uri()], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert shown.count('class="main-svg"') >= 2  # plotly's drawings
    assert shown.count('class="chart js-plotly-plot"') == 2
    assert "seconds since the test began" in shown
    assert len(re.findall(r'class="point"', shown)) > 20  # bars and packets
    picture = tmp_path / "page.png"
    subprocess.run([*words, f"--screenshot={picture}", opened.as_uri()], capture_output=True, check=True, timeout=120)
    assert picture.stat().st_size > 20_000


def test_a_page_of_hundreds_of_tests_is_written_quickly() -> None:
    """Charts are drawn by the reader's browser, when a test is unfolded."""
    from types import SimpleNamespace

    from qemu.guest.plugin.page import SessionPage

    page = SessionPage(Path("unused"))
    packets = [[number / 100, "guest1", True, 60, "TCP a > b [ACK]", "a > b", number * 100] for number in range(200)]
    told = {"end": 2.0, "guests": [], "commands": [], "packets": packets, "omitted": 7, "marks": []}
    for number in range(50):
        page.pytest_runtest_logreport(
            SimpleNamespace(
                nodeid=f"test_{number}", when="call", outcome="passed", failed=False, duration=1.0,
                user_properties=[("seed", 1)], sections=[], guest_timeline=told,
            )
        )  # fmt: skip
    began = time.process_time()
    text = page.page()
    assert time.process_time() - began < 30
    assert text.count("<details>") == 50
    assert "7 packets in the middle are left out" in text
