"""Nobody shares a virConnect, and none is closed under the feet of whoever has it. On libvirt's own test driver."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from vapor_desktop.hypervisor import link as module
from vapor_desktop.hypervisor.link import MOST, Link
from vapor_desktop.model.errors import DomainNotFound, VaporError

URI = "test:///default"
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Connections that were closed, in order."""
    found: list[Any] = []
    close = module._close
    monkeypatch.setattr(module, "_close", lambda opened: (found.append(opened.conn), close(opened))[1])
    return found


def test_a_thread_has_one_of_its_own_however_deep_it_is(closed: list[Any]) -> None:
    link = Link(URI)
    theirs: list[Any] = []

    def other() -> None:
        with link.call("other") as conn:
            theirs.append(conn)

    with link.call("outer") as conn:
        with link.call("inner") as same:
            assert same is conn
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(10)
    assert theirs[0] is not conn
    with link.call("again") as again:
        assert again in (conn, theirs[0]), "what was given back is used again"
    assert closed == []
    link.close()
    assert sorted(map(id, closed)) == sorted(map(id, (conn, theirs[0])))


def test_what_is_in_use_is_closed_by_the_one_who_has_it(closed: list[Any]) -> None:
    link = Link(URI)
    with link.call("working") as conn:
        link.close()
        assert closed == []
        assert conn.getHostname()
    assert closed == [conn]
    with link.call("after") as another:
        assert another is not conn
    link.close()


def test_no_more_than_a_few_and_one_more_waits() -> None:
    link = Link(URI)
    go, inside = threading.Event(), threading.Semaphore(0)
    lock, together, most = threading.Lock(), [0], [0]

    def work() -> None:
        with link.call("work"):
            with lock:
                together[0] += 1
                most[0] = max(most[0], together[0])
            inside.release()
            go.wait(10)
            with lock:
                together[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(MOST + 2)]
    for thread in threads:
        thread.start()
    for _ in range(MOST):
        assert inside.acquire(timeout=10)
    go.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert most[0] == MOST
    link.close()


def test_one_of_them_listens_for_all_and_another_when_it_is_gone() -> None:
    link = Link(URI)
    listening: list[Any] = []

    def listen(conn: Any) -> list[int]:
        listening.append(conn)
        return []

    link.on_open = listen
    with link.call("one"):
        threads = [threading.Thread(target=link.version) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert len(listening) == 1
    link.close()
    link.version()
    assert len(listening) == 2
    link.close()


def test_many_threads_survive_one_that_closes_again_and_again() -> None:
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

    threads = [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        link.close()
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert wrong == []
    link.close()
