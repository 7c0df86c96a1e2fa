"""The palette's ranking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapor_desktop.gui.fuzzy import rank, score

TITLES = [
    "Details", "Protect…", "Edit protection…", "Sync now", "Pause", "Resume", "Migrate…", "Fail over…",
    "Reprotect…", "Drill…", "Stop drill…", "Command palette…", "web01", "web02", "db01", "site-a", "site-b",
]  # fmt: skip


def first(query: str) -> str:
    return rank(query, TITLES, str)[0]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("prot", "Protect…"),
        ("fo", "Fail over…"),
        ("sn", "Sync now"),
        ("DB", "db01"),
        ("web2", "web02"),
        ("drill stop", "Stop drill…"),
        ("sb", "site-b"),
        ("repr", "Reprotect…"),
    ],
)
def test_what_is_meant_stands_first(query: str, wanted: str) -> None:
    assert first(query) == wanted


def test_what_does_not_answer_is_not_listed() -> None:
    assert rank("zzz", TITLES, str) == []
    assert score("pause now", "Pause") is None


def test_no_query_keeps_everything_in_its_order() -> None:
    assert rank("", TITLES, str) == TITLES
    assert rank("  ", TITLES, str) == TITLES


def test_of_equals_the_shorter_comes_first() -> None:
    assert rank("web", ["web01-with-a-long-name", "web01"], str) == ["web01", "web01-with-a-long-name"]


@given(st.text(min_size=1, max_size=30), st.data())
def test_every_text_is_found_by_its_own_beginning(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(text)))
    assert score(text[:cut].casefold(), text) is not None or text.casefold() != text.lower()
