"""The tree of errors crosses process borders whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapor_desktop.model import errors
from vapor_desktop.model.errors import Fate, Unexpected, VaporError, from_wire


def _all(cls: type[VaporError] = VaporError) -> list[type[VaporError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _all(sub))]


CLASSES = [cls for cls in _all() if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_survives_the_wire(cls: type[VaporError]) -> None:
    sent = cls("The link broke", why="cable", fix="Plug it in", site="b", bytes_done=5 << 40)
    received = from_wire(json.loads(json.dumps(sent.to_wire())))
    assert type(received) is cls
    assert (received.what, received.why, received.fix) == ("The link broke", "cable", "Plug it in")
    assert received.details == {"site": "b", "bytes_done": 5 << 40}
    assert received.fate is cls.fate


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in CLASSES]
    assert sorted(codes) == sorted(set(codes))
    assert len(CLASSES) > 30


def test_an_unknown_code_keeps_its_words() -> None:
    received = from_wire(
        {"code": "FROM-THE-FUTURE", "what": "Something new", "why": "w", "fix": "f", "details": {"a": 1}}
    )
    assert type(received) is Unexpected
    assert (str(received), received.details) == ("Something new: w. f", {"a": 1})


words = st.text(max_size=20)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["code", "what", "why", "fix", "details", "self", "cls"]) | words


@given(st.dictionaries(keys, junk | st.dictionaries(keys, junk, max_size=4), max_size=6))
def test_no_peer_can_make_reading_its_error_fail(data: dict[str, object]) -> None:
    received = from_wire(data)
    assert isinstance(received, VaporError)
    assert received.what == str(data.get("what", "unknown error"))


def test_details_may_be_called_like_the_words() -> None:
    received = from_wire(
        {"code": "NOT-FOUND", "what": "No such VM", "details": {"why": "typo", "what": 3, "self": 4}}
    )
    assert received.what == "No such VM"
    assert received.details == {"why": "typo", "what": 3, "self": 4}


def test_the_sentence_a_person_reads() -> None:
    assert str(VaporError("It failed")) == "It failed"
    assert str(VaporError("It failed", why="no space", fix="Free some")) == "It failed: no space. Free some"
    assert str(errors.TokenExpired("The token of site-b is too old")).endswith("`vapor-site token new`")


@pytest.mark.parametrize("name", ["SiteUnreachable", "HypervisorUnreachable", "TransferInterrupted", "DomainBusy"])
def test_what_mends_itself_is_retried(name: str) -> None:
    assert getattr(errors, name).fate is Fate.RETRY


@pytest.mark.parametrize(
    "name", ["CertificateChanged", "HostKeyChanged", "TokenRevoked", "EpochMoved", "ManifestInvalid"]
)
def test_what_a_person_must_decide_is_never_retried(name: str) -> None:
    assert getattr(errors, name).fate is Fate.OPERATOR
