"""What a bench run says: ratios, targets, tables in three forms, and that one that could not be measured says why."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from rich.console import Console

from qemu.guest.bench import chart, conditions, peers, plan, report, resources, rows, targets
from qemu.guest.bench.figure import Figure, Row
from qemu.guest.bench.peers import NAMES, OURS, PASST, SLIRP, TAP
from qemu.guest.bench.plan import Options, Section
from stack.patience import MAX_SPIN, Patience
from stack.switching import SwitchInterval
from stack.testing.kernel_host import NoKernelHostError

if TYPE_CHECKING:
    from qemu.guest import Guest


def found() -> dict[str, Any]:
    title = targets.MTU_1500
    reason = "not comparable: no passt on PATH; PASST=path names one"
    bulk = {OURS: [4.0, 5.0, 6.0], PASST: [2.0], SLIRP: [0.5], TAP: [10.0]}
    rows = [
        Row("TCP guest to host", "Gb/s", True, bulk),
        Row("TCP guest to host, CPU of this process", "s/GB", False, {OURS: [0.5]}),
        Row(
            "TCP request/response, median", "us", False, {OURS: [170.0], SLIRP: [200.0], TAP: [250.0]}, {PASST: reason}
        ),
    ]
    guest = Section(title, NAMES, (PASST, SLIRP, TAP), rows, [Figure("memory of QEMU", 99.5, "MiB", "private")])
    rig_row = Row("ring, 64-byte frames read one by one", "/s", True, {OURS: [3e6]})
    return report.content([guest, Section(targets.RIG, (OURS,), (), [rig_row])], {"seconds": "1"})


def test_ratios_say_how_much_better_we_are_whatever_the_unit() -> None:
    rows = found()["sections"][0]["rows"]
    assert rows[0]["ratios"] == [[OURS, PASST, 2.5], [OURS, SLIRP, 10.0], [OURS, TAP, 0.5]]
    assert rows[2]["ratios"][0] == [OURS, SLIRP, pytest.approx(200 / 170)]


def test_every_target_has_a_verdict() -> None:
    judged = {(each["row"], each["target"]): each["met"] for each in found()["targets"]}
    assert judged == {
        ("TCP guest to host", ">= 2 x passt"): True,
        ("TCP guest to host", ">= 8 x slirp"): True,
        ("TCP guest to host", ">= 1 x TAP"): False,
        ("TCP request/response, median", "<= 0.85 x best peer"): True,
        ("ring, 64-byte frames read one by one", ">= 4 M"): False,
    }


def test_a_target_without_its_peer_is_not_comparable() -> None:
    (verdict,) = targets.judge(targets.MTU_65520, Row("TCP host to guest", "Gb/s", True, {OURS: [1.0], PASST: []}))
    assert (verdict.met, verdict.verdict) == (None, "not comparable")


def test_every_target_names_a_row_that_exists() -> None:
    guest = {each.name + q.suffix for each in plan._EVERYTHING for q in each.quantities} | {resources.IDLE}
    rig = {name for name, *_ in plan._RATES} | {f"{plan._TRIP}, median"}
    there = {targets.MTU_1500: guest, targets.RIG: rig}
    there[targets.PAIRS] = {name for name, *_ in plan._PAIR_ROWS}
    there[targets.MTU_65520] = {each.name + q.suffix for each in rows.BULK for q in each.quantities}
    assert [t for t in targets.TARGETS if t.row not in there[t.section]] == []


def test_tables_for_people_say_ratios_first_and_why_a_peer_is_missing() -> None:
    out = io.StringIO()
    report.show(Console(file=out, width=200), found())
    text = out.getvalue()
    assert "5.00 ±20%" in text
    assert "2.50x" in text
    assert "passt: not comparable: no passt on PATH" in text
    assert "memory of QEMU" in text


def test_markdown_is_what_the_documentation_takes() -> None:
    text = report.markdown(json.loads(json.dumps(found())))
    assert "### Targets" in text
    assert "| row | to passt | to slirp | to TAP | guestwire | passt | slirp | TAP |" in text
    assert "| TCP guest to host, Gb/s | 2.50x | 10.00x | 0.50x | 5.00 ±20% | 2.00 | 0.50 | 10.0 |" in text


def test_the_chart_is_an_svg_with_every_row(tmp_path: Path) -> None:
    chart.draw(found(), tmp_path / "bench.svg")
    text = (tmp_path / "bench.svg").read_text()
    assert text.startswith("<?xml")
    assert "TCP guest to host" in text
    assert "passt: not comparable" in text


def test_rows_are_chosen_by_words_in_their_names() -> None:
    options = Options(wanted=("udp", "driver rig: round trip"))
    assert options.wants(targets.MTU_1500, "UDP guest to host")
    assert options.wants(targets.RIG, "round trip of a 1-byte segment")
    assert not options.wants(targets.MTU_1500, "TCP guest to host")
    assert Options().wants("anything", "at all")


@pytest.mark.parametrize(
    ("setting", "said"),
    [("/nowhere/passt", "no /nowhere/passt"), ("true", "built without vhost-user")],
)
def test_a_passt_that_cannot_be_measured_says_why(setting: str, said: str) -> None:
    with pytest.raises(peers.NotComparable, match=said):
        peers.passt_program(setting)


def test_conditions_put_everything_back() -> None:
    window, look = Patience.window, SwitchInterval.look
    with conditions.never_polling():
        assert Patience().window() == 0
    with conditions.always_polling():
        assert Patience().window() == MAX_SPIN
    with conditions.busy_thread_interval_left_alone():
        pass
    assert (Patience.window, SwitchInterval.look) == (window, look)


def test_without_a_namespace_or_a_passt_the_columns_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise NoKernelHostError("no network namespace may be made here: unshare(2) says Operation not permitted")

    monkeypatch.setattr(peers, "KernelHost", refused)
    monkeypatch.setattr(peers, "slirp", lambda guest, mtu: peers.Path(SLIRP, None, "", ""))
    ways: list[rows.Way] = []
    with ExitStack() as stack:
        options = Options(passt="/nowhere/passt")
        notes = plan._add_peers(stack, options, cast("Guest", None), ways, 1500)
    assert [way.name for way in ways] == [SLIRP]
    assert notes[PASST] == "not comparable: no /nowhere/passt"
    assert notes[TAP].startswith("not comparable: no network namespace may be made here")
