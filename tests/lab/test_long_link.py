"""The lab's link as a bad one: slow, far, lossy. By netem; where the kernel has none, by the lab's delay line."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from left_behind import inventory

from vapor_desktop.lab import guests, wire
from vapor_desktop.lab.host import answers
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.layout import SSH_PORT
from vapor_desktop.lab.processes import LabFailed, alive, wait_until
from vapor_desktop.lab.stage import Stage, remove_guests

CACHE = Path.home() / ".cache/vapor-lab"
SIZE = 4 << 20
SEND = f"""import hashlib, random, socket, sys
data = random.Random(7).randbytes({SIZE})
with socket.create_connection((sys.argv[1], 5001), 20) as out:
    out.sendall(data)
    out.shutdown(socket.SHUT_WR)
    assert out.recv(64) == hashlib.sha256(data).digest()
"""


@pytest.fixture
def link(bare_lab: Lab) -> Iterator[Lab]:
    """Unshaped before and after, whatever happens between."""
    assert bare_lab.sites["a"].link_state.shape == ""
    yield bare_lab
    bare_lab.shape()
    for site in bare_lab.sites.values():
        assert site.link_state.shape == ""


def ping(lab: Lab, count: int, every_s: float) -> tuple[int, float]:
    """Answers of B to A, and the shortest round trip in ms (a busy machine adds, never takes away)."""
    words = ["busybox", "ping", "-q", "-c", str(count), "-i", str(every_s), "-W", "2", lab.sites["b"].address]
    said = lab.sites["a"].exec(words, check=False).stdout
    received = re.search(r"(\d+) packets received", said)
    shortest = re.search(r"min/avg/max = ([\d.]+)/", said)
    assert received, said
    return int(received[1]), float(shortest[1]) if shortest else float("inf")


def send_from_a(lab: Lab) -> float:
    """Seconds that 4 MiB of TCP take from A to the console, arriving whole."""
    a, console = lab.sites["a"], lab.layout.console_address
    with socket.create_server((console, 5001)) as server:
        words = [*a.enter(), "/usr/bin/python3", "-c", SEND, console]
        with subprocess.Popen(words) as sender:
            connection, _ = server.accept()
            start, got, digest = time.monotonic(), 0, hashlib.sha256()
            with connection:
                while chunk := connection.recv(1 << 16):
                    got += len(chunk)
                    digest.update(chunk)
                took_s = time.monotonic() - start
                connection.sendall(digest.digest())
            assert sender.wait(20) == 0
    assert got == SIZE
    return took_s


def test_a_rate_holds_and_is_taken_away(link: Lab) -> None:
    """4 MiB at 40 Mbit/s take 0.84 s; unshaped a blink."""
    link.shape(rate="40mbit")
    assert "40Mbit" in link.sites["a"].link_state.shape
    assert send_from_a(link) > 0.7
    link.shape()
    assert send_from_a(link) < 0.7


def test_a_delay_makes_the_round_trip_longer_by_twice_itself(link: Lab) -> None:
    _, before_ms = ping(link, 10, 0.02)
    link.shape(delay="20ms")
    assert "20ms" in link.sites["a"].link_state.shape
    received, delayed_ms = ping(link, 20, 0.02)
    assert received == 20
    assert 40 <= delayed_ms < 50
    link.shape(delay="20ms", sites=["a"])
    link.shape(sites=["b"])
    assert 20 <= ping(link, 20, 0.02)[1] < 30
    link.shape()
    assert ping(link, 10, 0.02)[1] < 10
    assert before_ms < 10


def test_a_rate_holds_over_a_delay_and_tcp_arrives_whole(link: Lab) -> None:
    link.shape(rate="40mbit", delay="20ms")
    assert 0.7 < send_from_a(link) < 5
    link.shape(delay="20ms")
    assert send_from_a(link) < 5


def test_packets_are_lost(link: Lab) -> None:
    link.shape(loss="30%", sites=["b"])
    received, _ = ping(link, 300, 0.01)
    assert 150 < received < 255  # 210 expected; fewer than 1 in 10^8 runs are outside
    link.shape(loss="100%", sites=["b"])
    assert not answers(link.sites["b"].address, SSH_PORT)
    assert answers(link.sites["a"].address, SSH_PORT)
    link.shape(loss="2%", delay="5ms")
    assert send_from_a(link) > 0.01


@pytest.mark.parametrize("bad", [{"delay": "soon"}, {"delay": "20"}, {"loss": "200%"}, {"loss": "few"}])
def test_what_is_no_shape_is_refused_and_changes_nothing(link: Lab, bad: dict[str, str]) -> None:
    link.shape(delay="20ms")
    before = link.sites["a"].link_state
    with pytest.raises(LabFailed, match=r"is no (delay|loss)"):
        link.shape(**bad)
    assert link.sites["a"].link_state == before


def lines(lab: Lab) -> list[int]:
    return [pid for site in lab.layout.sites.values() for pid in wire.processes(site)]


def test_a_killed_delay_line_tears_the_cable_and_shape_mends_it(link: Lab) -> None:
    plain = inventory(link)
    a = link.sites["a"]
    for site in link.layout.sites.values():  # by itself, since `shape` would take netem where there is one
        wire.lay(site, wire.Line(5_000_000))
    assert ping(link, 5, 0.05)[0] == 5
    pids = lines(link)
    assert len(pids) == 2
    assert not set(pids) & set(a.processes())
    for pid in pids:
        os.kill(pid, 9)
    wait_until(lambda: not any(alive(pid) for pid in pids), "the end of the lines", timeout_s=5)
    assert a.link_state.shape == "delay line dead"
    assert not answers(a.address, SSH_PORT)
    link.shape(delay="5ms", sites=["a"])
    link.shape(sites=["b"])
    assert ping(link, 5, 0.05)[0] == 5
    link.shape()
    assert answers(a.address, SSH_PORT)
    assert inventory(link) == plain


def test_a_line_whose_device_is_deleted_ends_by_itself(link: Lab) -> None:
    layout = link.layout.sites["a"]
    wire.lay(layout, wire.Line(5_000_000))
    [pid] = wire.processes(layout)
    subprocess.run(["ip", "link", "delete", layout.far_device], check=True)
    wait_until(lambda: not alive(pid), "the end of the line", timeout_s=5)


def test_a_shaped_lab_goes_down_without_a_trace(lab_lock: None) -> None:
    lab = Lab("shaped", cache=CACHE)
    before = inventory(lab)
    lab.up(site_service=False)
    try:
        lab.shape(delay="10ms", rate="100mbit")
        lab.kill_site("b")
        assert not answers(lab.sites["b"].address, SSH_PORT)
        lab.revive_site("b")
        assert 20 <= ping(lab, 10, 0.02)[1] < 30, "a power cut of a host does not shorten the way to it"
        pids = lines(lab)
        for pid in pids[:1]:
            os.kill(pid, 9)
        lab.kill_site("a")
    finally:
        lab.down()
    assert inventory(lab) == before
    assert not any(alive(pid) for pid in pids)


@pytest.mark.timeout(400)
def test_replication_over_a_long_link(lab: Lab, tmp_path: Path) -> None:
    """40 ms each way: the first copy and the deltas arrive, each the source's data, and the RPO is kept."""
    remove_guests(lab)
    spec = next(s for s in guests.DEFAULT_GUESTS if s.name == "web")
    guests.add(lab.sites["a"], spec, lab.cache)
    guests.wait_for(lab.sites["a"], "web", "VAPOR-DIARY ", timeout_s=90)
    lab.shape(delay="40ms")
    with KeyringSession(tmp_path):
        stage = Stage(lab, tmp_path)
        stage.open()
        try:
            assert ping(lab, 5, 0.1)[1] >= 80
            a, b = stage.pair()
            stage.compare_every_point()
            stage.protect(a, b, ["web"], rpo_target_s=20)
            row = stage.wait_for_point("web", 3, timeout_s=180)
            assert row.route == "direct"
            assert {c.seq for c in stage.comparisons} >= {1, 2}
            assert [c for c in stage.comparisons if not c.identical] == []
            done = [c for c in stage.backend.cycles(row.key) if c.outcome == "point"]
            assert [c.mode for c in done][-1] == "full"
            assert "delta" in {c.mode for c in done}
            for cycle in done:
                print(f"{cycle.mode}: {cycle.data_bytes >> 20} MiB in {cycle.duration_s:.1f} s")
        finally:
            stage.close()
            lab.shape()
            remove_guests(lab)
