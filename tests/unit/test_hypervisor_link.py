"""A libvirt connection is never closed under the feet of whoever is inside a call. On libvirt's own test driver."""

from __future__ import annotations

import threading

import pytest

from vapor_desktop.hypervisor.link import Link
from vapor_desktop.model.errors import DomainNotFound, VaporError

URI = "test:///default"
NOBODY = "00000000-0000-4000-8000-000000000000"


def test_the_last_one_out_closes_it() -> None:
    link = Link(URI)
    with link.call("outer") as conn:
        with link.call("inner") as same:
            assert same is conn
            link.close()
            assert conn.getHostname()
        assert conn.getHostname(), "one is still inside"
        with link.call("meanwhile") as another:
            assert another is not conn
    assert opened_users(link) == 0
    link.close()


def test_many_threads_survive_one_that_closes_again_and_again() -> None:
    """It crashed the whole process: the site went dark while cycles were inside calls."""
    link, stop = Link(URI), threading.Event()
    wrong: list[VaporError] = []

    def look() -> None:
        while not stop.is_set():
            try:
                with link.domain(NOBODY, "looking"):
                    pass
            except DomainNotFound:
                continue
            except VaporError as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        link.close()
    stop.set()
    for thread in threads:
        thread.join(20)
    assert wrong == []
    link.close()


def opened_users(link: Link) -> int:
    opened = link._opened
    assert opened is not None
    return opened.users


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_retired_is_closed(inside: bool) -> None:
    link = Link(URI)
    with link.call("once"):
        opened = link._opened
        assert opened is not None
        if inside:
            link.close()
    link.close()
    assert opened.retired
    assert opened.users == 0
