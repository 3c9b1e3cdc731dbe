"""docs/conformance.md says what the tests show, and the tests show every row."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.testing import conformance

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tests() -> list[conformance.Shown]:
    return conformance.collect()


def test_every_row_has_a_test_or_an_exemption(tests: list[conformance.Shown]) -> None:
    assert conformance.missing(tests) == []


def test_every_option_of_complete_levels_has_a_test_that_names_it(tests: list[conformance.Shown]) -> None:
    assert conformance.options_missing(tests) == []


def test_options_that_nobody_names_are_missing() -> None:
    """A test names an option by its own name or in its docstring; one of a row or of options may just use it, others
    not, nor does a part of a name count.
    """
    wrong = conformance.options_missing([])
    assert {"IP_TTL of level 0", "MCAST_JOIN_GROUP of level 0", "MCAST_JOIN_GROUP of level 41"} <= set(wrong)
    here = Path("x")
    by_name = conformance.Shown("test_opt_ip_ttl_x", here, "", "stack", section="OPT")
    by_word = conformance.Shown("test_opt_x", here, "", "stack", section="OPT", named=frozenset({"MCAST_JOIN_GROUP"}))
    by_use = conformance.Shown("test_opt_y", here, "", "stack", section="OPT", mentions=frozenset({"IP_FREEBIND"}))
    used = conformance.Shown("test_x", here, "", "stack", mentions=frozenset({"IP_TOS"}))
    part = conformance.Shown("test_path_mtu", here, "", "stack")
    wrong = conformance.options_missing([by_name, by_word, by_use, used, part])
    assert "IP_FREEBIND of level 0" not in wrong
    assert not {"IP_TTL of level 0", "MCAST_JOIN_GROUP of level 0", "MCAST_JOIN_GROUP of level 41"} & set(wrong)
    assert {"IP_TOS of level 0", "IP_MTU of level 0", "IP_RECVTTL of level 0"} <= set(wrong)


def test_every_excused_option_has_a_reason() -> None:
    names = {name for name, *_ in conformance.options()}
    for name, reason in conformance.OPTIONS_EXEMPT.items():
        assert name in names
        assert len(reason.split()) > 5


def test_the_page_is_current(tests: list[conformance.Shown]) -> None:
    """If not: python -m stack.testing.conformance"""
    assert conformance.PAGE.read_text() == conformance.page(tests, conformance.differences())


def test_every_exemption_has_a_reason() -> None:
    for row, reason in conformance.EXEMPT.items():
        assert row in conformance.ROWS
        assert len(reason.split()) > 5


@pytest.mark.parametrize(
    ("name", "rows", "section"),
    [
        ("test_tcp_07_refused", ("TCP-07",), ""),
        ("test_unx_03_04_names", ("UNX-03", "UNX-04"), ""),
        ("test_core_02_sec_03_raw", ("CORE-02", "SEC-03"), ""),
        ("test_core_05_mm_06_sendfile", ("CORE-05", "MM-06"), ""),
        ("test_tcp_12_100_times", ("TCP-12",), ""),
        ("test_msg_peek", (), "MSG"),
        ("test_tcp_is_fast", (), ""),
        ("test_something_tcp_07", (), ""),
    ],
)
def test_rows_of_a_name(name: str, rows: tuple[str, ...], section: str) -> None:
    assert conformance.rows_of(name) == (rows, section)


def test_what_is_read_of_a_test(tmp_path: Path) -> None:
    """Rows by name or docstring, words, and whether a fixture brings the kernel in, be it through another one."""
    folder = tmp_path / "stack"
    folder.mkdir()
    (folder / "test_sample.py").write_text(
        '''
import pytest

DIFFERENCES = {"TCP-07": "before Linux 6.1 it is so"}

@pytest.fixture(params=["kernel", "ours"])
def world(request): ...

@pytest.fixture
def pair(world): ...

def test_tcp_07_words(pair):
    """What is expected. And more of it."""

def test_old_style():
    """VS-09, VS-10: Forty-four bytes."""

def test_msg_peek_leaves_it(world, sock):
    sock.recv(1, sock.MSG_TRUNC)

def test_without_a_row(world): ...
'''
    )
    named, old, flag, plain = conformance.collect(tmp_path)
    assert (plain.rows, plain.section, plain.where) == ((), "", "kernel, stack")
    assert (named.rows, named.expected, named.where) == (("TCP-07",), "What is expected.", "kernel, stack")
    assert (old.rows, old.expected, old.where) == (("VS-09", "VS-10"), "Forty-four bytes.", "stack")
    assert (flag.section, flag.where) == ("MSG", "kernel, stack")
    assert "MSG_TRUNC" in flag.mentions
    assert conformance.differences(tmp_path) == [("TCP-07", "before Linux 6.1 it is so")]
    text = conformance.page([named, old, flag], conformance.differences(tmp_path))
    assert "| TCP-07 | What is expected. | kernel, stack | [tcp_07_words](../stack/test_sample.py) |" in text
    assert "| TCP-08 | not shown yet | - | - |" in text
    assert "| TCP-07 | before Linux 6.1 it is so |" in text


def test_what_is_missing_is_named() -> None:
    wrong = conformance.missing([])
    assert "TCP-01" in wrong
    assert "MSG_PEEK" in wrong
    assert "CORE-11" not in wrong
    strange = conformance.Shown("test_tcp_99_x", Path("x"), "", "stack", ("TCP-99", "CORE-11"))
    wrong = conformance.missing([strange])
    assert "TCP-99 is no row" in wrong
    assert "CORE-11 is exempt and has a test" in wrong
