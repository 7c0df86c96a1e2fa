"""Drills, without a host: addresses, the copy's definition, isolation, DHCP, pictures, limits, records."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from vapor_desktop.engine.drilling import next_scheduled, state_of
from vapor_desktop.engine.operations.registry import TYPES
from vapor_desktop.model import drills
from vapor_desktop.model.domain_xml.drill import (
    bubble_network,
    build_drill,
    cards,
    gateway_of,
    leaks,
    network_leaks,
)
from vapor_desktop.model.drills import DrillPhase, DrillRecord, DrillVm, Inventory, NetPlan, Nic, plan_nets
from vapor_desktop.model.errors import Conflict, NotFound
from vapor_desktop.model.operations import Operation, OperationKind, OperationState, exclusion
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import DrillState, Phase
from vapor_desktop.site import dhcp
from vapor_desktop.site.bubble_helper import BubbleHelper
from vapor_desktop.site.drill_book import KEEP_ENDED, DrillBook
from vapor_desktop.site.drill_end import _verdict
from vapor_desktop.site.drill_keeper import over, wanted_checks
from vapor_desktop.site.drills import _planned
from vapor_desktop.site.picture import blank, to_png

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MAC, SECOND = "52:54:00:aa:bb:cc", "52:54:00:aa:bb:dd"
ANY = "0.0.0.0"  # noqa: S104 - an address in a packet
ID = "0a1b2c3d-1111-4222-8333-444455556666"
VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"

DOMAIN = f"""<domain type='kvm'><name>web</name><uuid>{VM}</uuid><memory unit='MiB'>512</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a/web.qcow2'/>
<target dev='vda' bus='virtio'/></disk>
<interface type='network'><mac address='{MAC}'/><source network='lan'/><model type='virtio'/></interface>
<interface type='bridge'><mac address='{SECOND}'/><source bridge='br0'/></interface>
<interface type='user'><mac address='52:54:00:00:00:01'/></interface>
<interface type='hostdev'><mac address='52:54:00:00:00:02'/>
<source><address type='pci' domain='0' bus='1' slot='0' function='0'/></source></interface>
<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/></source></hostdev>
<filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>
<serial type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/><protocol type='raw'/></serial>
<serial type='pty'><log file='/var/log/libvirt/qemu/web.log'/></serial>
<channel type='unix'><source mode='bind' path='/x'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<channel type='tcp'><source mode='connect' host='192.0.2.9' service='1'/><target type='virtio' name='spy'/></channel>
<redirdev bus='usb' type='spicevmc'/><vsock model='virtio'><cid auto='no' address='3'/></vsock>
<graphics type='vnc' port='5901' listen='0.0.0.0'/>
</devices></domain>"""


def drill_of(xml: str = DOMAIN) -> str:
    return build_drill(
        xml,
        disks={"vda": "/r/drill/vda.qcow2"},
        networks={"lan": "vapor-drill-0a1b2c3d-0", "br0": "vapor-drill-0a1b2c3d-1"},
        nvram=None,
        kvm=True,
        new_uuid=ID,
        new_name="web-drill-0a1b2c3d",
        tpm=True,
    ).xml


# --- the copy ------------------------------------------------------------------------------------------------
def test_the_copy_has_no_way_out_and_keeps_its_macs() -> None:
    bubble = {"vapor-drill-0a1b2c3d-0", "vapor-drill-0a1b2c3d-1"}
    xml = drill_of()
    assert leaks(xml, bubble) == []
    assert [(n.mac, n.source) for n in cards(xml)] == [
        (MAC, "vapor-drill-0a1b2c3d-0"),
        (SECOND, "vapor-drill-0a1b2c3d-1"),
    ]
    assert (f"<uuid>{ID}</uuid>" in xml, VM in xml, "<name>web-drill-0a1b2c3d</name>" in xml) == (True, False, True)
    for gone in ("hostdev", "filesystem", "tcp", "/var/log", "vsock", "redirdev", ANY, "5901", "spy"):
        assert gone not in xml, gone
    assert "org.qemu.guest_agent.0" in xml


def test_what_leaks_is_named() -> None:
    found = " ".join(leaks(DOMAIN, {"lan"}))
    for word in ("bridge", "user", "hostdev", "filesystem", "serial of type tcp", "channel of type tcp", "vsock"):
        assert word in found
    assert leaks(drill_of(), {"vapor-drill-0a1b2c3d-0"}) == ["a network card of type network"]


def test_the_bubbles_network_leads_nowhere_and_another_is_told() -> None:
    xml = bubble_network("vapor-drill-0a1b2c3d-0", "vdb0a1b2c3d0")
    assert network_leaks(xml, "vdb0a1b2c3d0") == []
    assert network_leaks(xml, "vdb0a1b2c3d1") == ["another bridge than its own"]
    for tag in ("<forward mode='nat'/>", "<ip address='10.0.0.1' prefix='24'/>", "<route address='1.1.1.0'/>"):
        assert network_leaks(xml.replace("</network>", f"{tag}</network>"), "vdb0a1b2c3d0")


# --- addresses -------------------------------------------------------------------------------------------------
def test_known_addresses_are_kept_and_unknown_ones_are_free() -> None:
    nics = [Nic(mac=MAC, source="lan", address="192.168.1.20"), Nic(mac=SECOND, source="lan")]
    [plan] = plan_nets(nics, {"lan": "192.168.1.254/24"})
    assert plan == NetPlan(
        source="lan", gateway="192.168.1.254/24", hosts={MAC: "192.168.1.20", SECOND: "192.168.1.10"}
    )


@pytest.mark.parametrize(
    ("address", "gateway"),
    [("10.1.2.3", "10.1.2.1/24"), ("10.1.2.1", "10.1.2.254/24"), ("", drills.UNKNOWN_NET)],
)
def test_a_network_that_nobody_describes_is_guessed(address: str, gateway: str) -> None:
    [plan] = plan_nets([Nic(mac=MAC, source="br0", address=address)], {})
    assert plan.gateway == gateway
    assert plan.hosts[MAC] == (address or "192.0.2.10")


def test_gateways_of_libvirt_networks() -> None:
    four = "<ip address='192.168.150.1' netmask='255.255.255.0'/>"
    six = "<ip family='ipv6' address='fd00::1'/><ip address='10.0.0.1' prefix='20'/>"
    assert gateway_of(f"<network>{four}</network>") == "192.168.150.1/24"
    assert gateway_of(f"<network>{six}</network>") == "10.0.0.1/20"
    assert gateway_of("<network><bridge name='br0'/></network>") == ""


# --- records -------------------------------------------------------------------------------------------------
def record(drill_id: str = ID, **more: object) -> DrillRecord:
    made = DrillRecord(
        drill_id=drill_id, reason="r", by="desk", created_at=NOON, expires_at=NOON + timedelta(hours=4), boot_id="b1",
        before=Inventory(things={}),
    )  # fmt: skip
    return made.model_copy(update=more)


def join(mac: str, address: str, **more: object) -> drills.DrillJoin:
    net = NetPlan(source="lan", gateway="192.168.1.1/24", hosts={mac: address})
    return drills.DrillJoin.model_validate(
        {"seq": 3, "vm_name": "web", "protection_id": "p", "nets": [net.model_dump()], **more}
    )


def test_vms_of_one_drill_share_a_network_by_its_source_and_never_an_address() -> None:
    first = _planned(record(), VM, join(MAC, "192.168.1.20"))
    both = _planned(first, ID, join(SECOND, "192.168.1.20", vm_name="db"))
    [net] = both.nets
    assert (net.network, net.bridge, net.port) == ("vapor-drill-0a1b2c3d-0", "vdb0a1b2c3d0", "vdp0a1b2c3d0")
    assert len(net.bridge) < 16
    assert net.hosts[MAC] == "192.168.1.20"
    assert net.hosts[SECOND] != "192.168.1.20"
    assert [v.domain_name for v in both.vms] == ["web-drill-0a1b2c3d", "db-drill-0a1b2c3d"]
    assert _planned(both, ID, join(SECOND, "192.168.1.20", vm_name="db")).vms == both.vms  # again: the same copies
    assert all(v.domain_uuid in both.names() for v in both.vms)


def test_when_a_drill_must_end_by_itself() -> None:
    running = record(phase=DrillPhase.RUNNING)
    assert over(running, NOON + timedelta(hours=3), "b1") == ""
    assert "time" in over(running, NOON + timedelta(hours=4), "b1")
    assert "restarted" in over(running, NOON, "b2")
    assert over(record(), NOON + timedelta(minutes=29), "b1") == ""
    assert "nobody" in over(record(), NOON + timedelta(minutes=31), "b1")


def test_a_verdict_stands_and_who_only_cleans_up_gives_none() -> None:
    passed = drills.DrillStop(passed=True, note="well", by="me")
    force = drills.DrillStop(passed=None, by="other", force=True)
    assert _verdict(None, force) == force
    assert _verdict(force, passed) == passed
    assert _verdict(passed, force) == passed.model_copy(update={"force": True})
    assert _verdict(passed, passed.model_copy(update={"passed": False})) == passed


def test_the_book_outlives_its_process_and_forgets_old_ends(tmp_path: Path) -> None:
    book = DrillBook(tmp_path / "drills")
    first = book.add(record())
    with pytest.raises(Conflict):
        book.add(record())
    book.change(ID, lambda r: r.model_copy(update={"phase": DrillPhase.RUNNING}))
    assert DrillBook(tmp_path / "drills").one(ID) == first.model_copy(update={"phase": DrillPhase.RUNNING})
    for n in range(KEEP_ENDED + 5):
        ended = record(f"{n:08x}-1111-4222-8333-444455556666", phase=DrillPhase.ENDED, created_at=NOON + timedelta(n))
        book.add(ended)
    assert ID in {r.drill_id for r in book.all()}, "an open one is never forgotten"
    assert len(book.all()) <= KEEP_ENDED + 2
    with pytest.raises(NotFound):
        book.one("00000000-1111-4222-8333-444455556666")


def test_inventories_are_compared_and_our_own_things_are_found() -> None:
    before = Inventory(things={"domain": ("a u1",), "link": ("lo",)})
    after = Inventory(things={"domain": ("a u1", f"web-drill-0a1b2c3d {ID}"), "link": ("vdb0a1b2c3d0",)})
    assert after.beyond(before) == (f"domain: web-drill-0a1b2c3d {ID}", "link: vdb0a1b2c3d0")
    assert before.beyond(after) == ("link: lo",)
    assert after.ours([ID, "vdb0a1b2c3d0"]) == after.beyond(before)
    assert before.ours([ID]) == ()


def test_what_a_protection_shows_of_its_drill() -> None:
    copy = DrillVm(vm_uuid=VM, vm_name="w", protection_id="p", seq=1, domain_uuid="d", domain_name="n")
    mine = record(phase=DrillPhase.RUNNING, vms=(copy,))
    assert state_of(VM, [mine]) is DrillState.RUNNING
    assert state_of(VM, [mine.model_copy(update={"phase": DrillPhase.CLEANUP})]) is DrillState.CLEANUP_NEEDED
    assert state_of("other", [mine]) is DrillState.NONE


def test_a_drill_is_beside_a_failover_and_two_drills_are_not_beside_each_other() -> None:
    assert exclusion(OperationKind.DRILL, VM) == exclusion(OperationKind.STOP_DRILL, VM)
    assert exclusion(OperationKind.FAILOVER, VM) == exclusion(OperationKind.MIGRATION, VM) == VM
    assert exclusion(OperationKind.DRILL, VM) != VM


def test_checks_that_were_asked_for() -> None:
    copy = DrillVm(
        vm_uuid=VM, vm_name="w", protection_id="p", seq=1, domain_uuid="d", domain_name="n",
        wanted=drills.Wanted(agent=False, tcp_ports=(22, 80), script="true"),
    )  # fmt: skip
    assert [key for key, _ in wanted_checks(copy, [{MAC: "192.0.2.10"}])] == ["dhcp", "tcp:22", "tcp:80", "script"]
    assert [key for key, _ in wanted_checks(copy, [])] == ["tcp:22", "tcp:80", "script"]


@pytest.mark.parametrize(
    "value",
    [
        record(),
        drills.DrillRequest(reason="r", by="b"),
        join(MAC, "192.168.1.20"),
        drills.DrillStop(passed=None, by="b"),
        drills.DrillPicture(png="", boot_s=None, at=NOON),
        drills.LeakTarget(name="n", address="192.0.2.1"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_json_and_back(value: drills.Value) -> None:
    assert type(value).model_validate_json(value.model_dump_json()) == value


# --- schedule ------------------------------------------------------------------------------------------------
def protection(name: str = "web", **more: object) -> Protection:
    made = Protection(
        protection_id=f"p-{name}", vm_uuid=name, vm_name=name, source_site="a", target_site="b", epoch_owner="a",
        policy=Policy(drill_days=30, drill_auto=True), phase=Phase.PROTECTED, created_at=NOON,
    )  # fmt: skip
    return made.model_copy(update=more)


def operation(kind: OperationKind, started_at: datetime, **more: object) -> Operation:
    made = Operation(
        operation_id="o", kind=kind, protection_id="p-web", vm_uuid="web", vm_name="web", asked_by="me",
        engine_id="e", started_at=started_at, seen_at=started_at, state=OperationState.FAILED,
    )  # fmt: skip
    return made.model_copy(update=more)


LATER = NOON + timedelta(days=31)


@pytest.mark.parametrize(
    ("more", "now", "expected"),
    [
        ({}, NOON + timedelta(days=29), None),
        ({}, LATER, "p-web"),
        ({"drilled_at": NOON + timedelta(days=10)}, LATER, None),
        ({"policy": Policy(drill_days=30)}, LATER, None),
        ({"policy": Policy(drill_auto=True)}, LATER, None),
        ({"paused": True}, LATER, None),
        ({"phase": Phase.FAILED_OVER}, LATER, None),
        ({"drill": DrillState.RUNNING}, LATER, None),
    ],
    ids=["not yet", "due", "passed meanwhile", "a reminder only", "never", "paused", "failed over", "one is there"],
)
def test_whose_drill_begins_by_itself(more: dict[str, object], now: datetime, expected: str | None) -> None:
    found = next_scheduled([protection(**more)], {"p-web"}, [], now)  # type: ignore[arg-type]
    assert (found and found.protection_id) == expected


def test_scheduled_drills_are_one_at_a_time_and_tried_once_a_day() -> None:
    both = [protection("web"), protection("db", created_at=NOON - timedelta(days=90))]
    points = {"p-web", "p-db"}
    first = next_scheduled(both, points, [], LATER)
    assert first is not None
    assert first.vm_name == "db", "the one that waits longest"
    assert next_scheduled(both, {"p-web"}, [], LATER) == both[0], "no point, no drill"
    failed = operation(OperationKind.DRILL, LATER - timedelta(hours=23))
    assert next_scheduled(both[:1], points, [failed], LATER) is None
    assert next_scheduled(both[:1], points, [failed], LATER + timedelta(hours=2)) == both[0]
    running = operation(OperationKind.DRILL, LATER, state=OperationState.RUNNING, protection_id="p-x")
    assert next_scheduled(both, points, [running], LATER) is None


def test_a_drill_that_began_by_itself_ends_by_itself() -> None:
    kind = TYPES[OperationKind.DRILL]
    assert [s.name for s in kind.steps_for({})] == ["check", "bubble", "isolation", "start", "checks"]
    assert [s.name for s in kind.steps_for({"scheduled": True})][5:] == ["find", "stop", "settle"]
    assert [s.name for s in kind.steps if s.no_return] == ["start"]


# --- DHCP ------------------------------------------------------------------------------------------------------
def request(kind: int, *options: tuple[int, bytes], mac: str = MAC, ciaddr: str = ANY) -> bytes:
    head = struct.pack("!BBBBIHH4s4s4s4s16s64s128s", 1, 1, 6, 0, 0xBEEF, 0, 0, IPv4Address(ciaddr).packed, bytes(4),
                       bytes(4), bytes(4), bytes.fromhex(mac.replace(":", "")), b"", b"")  # fmt: skip
    body = b"".join(bytes([n, len(v)]) + v for n, v in ((53, bytes([kind])), *options))
    return head + b"\x63\x82\x53\x63" + body + b"\xff"


def said(packet: bytes) -> tuple[int, str]:
    """(message type, address given)."""
    at = packet.index(b"\x63\x82\x53\x63") + 4
    return packet[at + 2], str(IPv4Address(packet[16:20]))


HOSTS = {MAC: "192.168.1.20"}
GATEWAY = "192.168.1.1/24"


@pytest.mark.parametrize(
    ("packet", "expected", "settled"),
    [
        (request(1), (2, "192.168.1.20"), False),
        (request(3, (50, IPv4Address("192.168.1.20").packed)), (5, "192.168.1.20"), True),
        (request(3, ciaddr="192.168.1.20"), (5, "192.168.1.20"), True),
        (request(3, (50, IPv4Address("10.0.0.9").packed)), (6, ANY), False),
    ],
    ids=["discover", "request", "renew", "another address"],
)
def test_dhcp_gives_each_card_its_own_address(packet: bytes, expected: tuple[int, str], settled: bool) -> None:
    made = dhcp.answer(packet, GATEWAY, HOSTS)
    assert made is not None
    assert said(made.packet) == expected
    assert (made.mac, made.address, made.settled) == (MAC, "192.168.1.20", settled)
    assert made.packet[4:8] == struct.pack("!I", 0xBEEF)


@pytest.mark.parametrize(
    "packet",
    [
        request(1, mac=SECOND),
        request(4),
        request(3, (54, IPv4Address("192.168.1.99").packed)),
        b"",
        b"\2" + request(1)[1:],
        request(1)[:200],
    ],
    ids=["stranger", "decline", "another server's", "empty", "a reply", "cut"],
)
def test_dhcp_is_silent_for_everything_else(packet: bytes) -> None:
    assert dhcp.answer(packet, GATEWAY, HOSTS) is None


# --- pictures --------------------------------------------------------------------------------------------------
def test_a_screen_becomes_a_png_and_a_blank_one_is_told() -> None:
    black = b"P6\n4 2\n255\n" + bytes(24)
    drawn = b"P6\n4 2\n255\n" + bytes(21) + b"\xff\xff\xff"
    assert blank(to_png(black))
    assert not blank(to_png(drawn))
    assert to_png(to_png(drawn)) == to_png(drawn)


# --- the second root helper --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"verb": "probe", "bridge": "br0", "port": "vdp0a1b2c3d0", "gateway": GATEWAY}, "INVALID-REQUEST"),
        ({"verb": "probe", "bridge": "vdb0a1b2c3d0", "port": "eth0", "gateway": GATEWAY}, "INVALID-REQUEST"),
        ({"verb": "probe", "bridge": "vdb0a1b2c3d0", "port": "vdp0a1b2c3d0", "gateway": "x"}, "INVALID-REQUEST"),
        ({"verb": "forget-logs", "names": ["../../etc/x-drill-0a1b2c3d"]}, "NOT-ALLOWED"),
        ({"verb": "forget-logs", "names": ["web"]}, "NOT-ALLOWED"),
        ({"verb": "rm"}, "INVALID-REQUEST"),
    ],
    ids=["another's bridge", "another's device", "no address", "a path", "a production VM", "unknown"],
)
def test_the_bubble_helper_touches_nothing_that_no_drill_made(asked: dict[str, object], code: str) -> None:
    ours, its = socket.socketpair()
    helper = BubbleHelper(frozenset({os.geteuid()}))
    thread = threading.Thread(target=helper._connection, args=(its,))
    thread.start()
    with ours:
        ours.sendall(json.dumps(asked).encode() + b"\n")
        answer = json.loads(ours.makefile().readline())
    thread.join()
    assert answer["error"]["code"] == code


def test_the_bubble_helper_hears_its_account_alone() -> None:
    ours, its = socket.socketpair()
    thread = threading.Thread(target=BubbleHelper(frozenset({4242}))._connection, args=(its,))
    thread.start()
    with ours:
        ours.sendall(b'{"verb": "ping"}\n')
        answer = json.loads(ours.makefile().readline())
    thread.join()
    assert answer["error"]["code"] == "NOT-ALLOWED"
