"""What travels: every value survives JSON, and nothing else gets in."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from datetime import UTC, datetime, time
from typing import Any

import pytest
from pydantic import ValidationError

from vapor_desktop.model import wire
from vapor_desktop.model.errors import ReplicaFull
from vapor_desktop.model.manifest import Consistency, DiskMode, Epoch, Manifest, PointEntry, seal
from vapor_desktop.model.plans import Address, CheckKind, Plan, PlanVm, Tier, WaitFor
from vapor_desktop.model.policy import RPO_PRESETS_S, Mappings, Policy, Retention, StartGuard, Value

NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
BIG = 5 << 40  # 5 TiB: more than 32 bits everywhere

GRANT = wire.WriteGrant(fence=7, epoch=Epoch(number=2, owner="a"), source_site="a", parent_seq=None)
MANIFEST = seal(
    Manifest(
        vm_uuid="u", vm_name="web01", protection_id="p", source_site="a", target_site="b",
        epoch=Epoch(number=2, owner="a"), next_seq=2,
        points=(PointEntry(seq=1, taken_at=NOON, current_as_of=NOON, files={"vda": "x.qcow2"}, sizes={"vda": BIG}),),
    )
)  # fmt: skip
INCOMING = wire.IncomingView(
    seq=2,
    parent_seq=1,
    checkpoint=None,
    disks={"vda": DiskMode.COMPARE},
    sizes={"vda": BIG},
    received_bytes={"vda": 9},
)
SOURCE = wire.NbdSource(kind="live", path="/run/x.sock", export="vda", bitmap=None)
DISK = wire.DiskTransfer(target="vda", size_bytes=BIG, mode=DiskMode.DELTA, source=SOURCE)
DRAFT = wire.PointDraft(
    protection_id="p", vm_name="web01", checkpoint="vapor-p-1-1", taken_at=NOON, consistency=Consistency.OFF,
    domain_xml="<domain/>",
)  # fmt: skip
CHECK = wire.DoctorCheck(name="libvirt", ok=False, found="no answer", fix="start it")
POLICY = Policy(at_times=(time(20), time(8)), bandwidth_bytes_s=1 << 20, start_guard=StartGuard.START)

SEED_IMAGE = wire.SeedImage(path="/var/lib/libvirt/images/old.qcow2", format="qcow2", disk_bytes=BIG)

PLAN = Plan(
    plan_id="00000000-0000-4000-8000-000000000001", name="Shop", version=3, changed_at=NOON, changed_by="desk",
    tiers=(
        Tier(name="data", delay_s=5, vms=(PlanVm(vm_uuid="u", name="db", checks=(WaitFor(kind=CheckKind.AGENT),)),)),
        Tier(
            pause="Is the DNS moved?",
            vms=(
                PlanVm(
                    vm_uuid="v", name="web", networks={"lan": "dr"}, delay_s=1.5,
                    checks=(WaitFor(kind=CheckKind.TCP, port=443, address="198.51.100.7"),),
                    addresses=(Address(address="198.51.100.7/24", gateway="198.51.100.1", dns=("198.51.100.2",)),),
                ),
            ),
        ),
    ),
)  # fmt: skip

EXAMPLES: list[Value] = [
    wire.PlanWrite(plan=PLAN, expect_version=2),
    wire.TcpProbe(address="198.51.100.7", port=443),
    wire.TcpProbed(open=False, why="connection refused"),
    wire.Identity(
        site_id="b", name="site-b", version="0.1", api_version=1, mover_protocol=1, libvirt_version=None,
        qemu_version="10.0", now=NOON, boot_id="x", replica_root="/r",
    ),
    wire.PointDomain(domain_xml="<domain/>", disks=("vda",), nvram=True),
    wire.Runbook(
        vm_uuid="u", vm_name="web01", seq=None, written_at=NOON, path="/r/u/runbook/runbook.txt", domain_path="",
        text="RUNBOOK: web01\n",
    ),
    wire.CommitRequest(fence=3, epoch=2, reason="it works"),
    wire.EpochRequest(fence=3, new_epoch=Epoch(number=4, owner="a"), reason="overridden at a"),
    wire.LetGoRequest(fence=3, reason="looked through"),
    wire.GiveBackRequest(fence=3, new_epoch=Epoch(number=4, owner="a"), run_epoch=3, reason="undone"),
    wire.AdoptDisk(path="/v/db-0.qcow2", size_bytes=BIG, expect_stamp="7:8:9"),
    wire.AdoptRequest(
        fence=3,
        protection_id="p",
        vm_name="vm",
        source_site="b",
        epoch=Epoch(number=2, owner="b"),
        policy=Policy(),
        mappings=Mappings(networks={"dr": "lan"}),
        settings_version=2,
        seq=41,
        next_seq=42,
        taken_at=NOON,
        current_as_of=NOON,
        checkpoint="vapor-p-2-000000-abcdef",
        consistency=Consistency.OFF,
        domain_xml="<domain/>",
        disks={"vda": wire.AdoptDisk(path="/v/db-0.qcow2", size_bytes=BIG)},
        kept_as="what site-a wrote",
        reason="home",
    ),
    wire.Adopted(manifest=MANIFEST, missing=("vdb",), diverged=("vda",)),
    wire.FoldRequest(fence=3, epoch=Epoch(number=2, owner="b"), done=True),
    wire.FoldPlan(disks={"vda": ("/v/run/2/vda.qcow2", "/v/disks/a.qcow2")}, manifest=MANIFEST),
    wire.ScratchSpace(path="/s", free_bytes=BIG, reserve_bytes=1 << 30, at=NOON),
    wire.TokenExchange(console_name="desk", console_id="c"),
    wire.ConsoleToken(token="t", token_id="i", scope=wire.Scope.OPERATE, expires_at=None),
    wire.SshInfo(port=22, user="vapor", host_keys=("ssh-ed25519 AAAA",), user_key="ssh-ed25519 BBBB"),
    wire.EnrolConsole(console_id="c", console_name="desk", public_key="k"),
    wire.EnrolPeer(
        site_id="b", name="n", public_key="k", host_keys=("h",), address="198.51.100.2", port=22, user="v"
    ),
    wire.PeerCheck(reachable=False, error=ReplicaFull("No space", free_bytes=BIG).to_wire()),
    wire.Health(ok=False, libvirt=False, helper=True, guard_proven=False, checks=(CHECK,)),
    CHECK,
    wire.StorageRoot(path="/r", total_bytes=BIG, free_bytes=1, reserve_bytes=0),
    wire.LeaseRequest(holder="e", holder_name="desk", purpose="cycle", takeover_reason="it died"),
    wire.Lease(vm_uuid="u", holder="e", holder_name="desk", purpose="cycle", fence=1 << 40, expires_at=NOON),
    GRANT,
    wire.ReplicaCreate(
        grant=GRANT, protection_id="p", vm_name="n", target_site="b", policy=POLICY,
        mappings=Mappings(networks={"a": "b"}),
    ),
    wire.SettingsWrite(grant=GRANT, expect_version=4, policy=POLICY, mappings=Mappings(networks={"a": "b"})),
    wire.ReplicaView(
        manifest=MANIFEST, root="/r", used_bytes=BIG, incoming=INCOMING, files_in_chain=3, valid=False,
        seeded=("vda",),
        trouble=ReplicaFull("No space").to_wire(),
    ),
    INCOMING,
    wire.CurrentAsOf(grant=GRANT, seq=1, at=NOON),
    SEED_IMAGE,
    wire.SeedRequest(grant=GRANT, disks={"vda": SEED_IMAGE}),
    wire.SeedState(running=True, disk="vda", done_bytes=1, total_bytes=BIG, error=ReplicaFull("No space").to_wire()),
    wire.PinRequest(grant=GRANT, pin="user:before the upgrade"),
    wire.MergeRequest(grant=GRANT),
    wire.RunRequest(fence=7, new_epoch=Epoch(number=3, owner="b"), seq=1, reason="site-a is dark"),
    wire.Run(epoch=Epoch(number=3, owner="b"), seq=1, disks={"vda": "/r/x"}, domain_xml="<domain/>", nvram=None),
    wire.WatchJob(holder="e", scratch_dir="/s", reserve_bytes=BIG),
    wire.WatchFreeze(holder="e"),
    wire.GuardianEvent(at=NOON, vm_uuid="u", what="job-ended", why="the engine was silent for 60 s"),
    SOURCE,
    DISK,
    DRAFT,
    wire.Transfer(vm_uuid="u", peer_site="b", grant=GRANT, seq=2, disks=(DISK,), draft=DRAFT, deadline_s=1800.0),
    wire.Transferred(
        published=True, seq=2, data_bytes=BIG, zero_bytes=0, wire_bytes=1, read_bytes=BIG, duration_s=0.25,
        manifest=MANIFEST,
    ),
    wire.TpmState(digest="ab" * 32),
    wire.TpmSupport(emulates=False, why="the target has no swtpm", fix="Install it"),
    wire.PlaceTpm(fence=3, as_uuid="u"),
    wire.TpmPlaced(kept=None),
    wire.Progress(done_bytes=BIG, total_bytes=BIG, rate_bytes_s=1e9, disk="vda", wire_bytes=1),
    wire.ScrubSlice(vm_uuid="u", peer_site="b", grant=GRANT, disks=(DISK,), budget_bytes=BIG),
    wire.Scrubbed(checked_bytes=BIG, source_mismatch={"vda": (1, 1 << 26)}, target_mismatch={}, wrapped=True),
    wire.GuardRecord(
        vm_uuid="u", vm_name="web01", epoch=Epoch(number=3, owner="b"), this_site="a", peer_site="b",
        state=wire.GuardState.OTHERS, reason="failed over", changed_at=NOON, changed_by="site-a",
    ),
    wire.GuardRequest(
        fence=7, epoch=Epoch(number=3, owner="a"), state=wire.GuardState.MOVING, vm_name="web01", peer_site="b",
        operation_id="op", reason="planned migration", by="desk",
    ),
    wire.GuardRelease(fence=7, epoch=Epoch(number=3, owner="a"), reason="no longer protected", by="desk"),
    wire.OwnerWord(epoch=None, runs=None),
]  # fmt: skip


def _classes() -> Iterator[type[Value]]:
    for topic in pkgutil.iter_modules(wire.__path__, f"{wire.__name__}."):
        for found in vars(importlib.import_module(topic.name)).values():
            if isinstance(found, type) and issubclass(found, Value) and found.__module__ == topic.name:
                yield found


def _names(value: Value) -> str:
    return type(value).__name__


def test_every_value_has_an_example_here() -> None:
    assert {type(e) for e in EXAMPLES} == set(_classes())


@pytest.mark.parametrize("example", EXAMPLES, ids=_names)
def test_json_and_back_is_the_same_value(example: Value) -> None:
    assert type(example).model_validate_json(example.model_dump_json()) == example


@pytest.mark.parametrize("example", EXAMPLES, ids=_names)
def test_an_unknown_field_is_refused_loudly(example: Value) -> None:
    values: dict[str, Any] = example.model_dump(mode="json") | {"command": "rm -rf /"}
    with pytest.raises(ValidationError, match="command"):
        type(example).model_validate(values)


@pytest.mark.parametrize("example", EXAMPLES, ids=_names)
def test_what_is_required_cannot_be_left_out(example: Value) -> None:
    required = [name for name, field in type(example).model_fields.items() if field.is_required()]
    assert required
    for name in required:
        values = example.model_dump(mode="json")
        del values[name]
        with pytest.raises(ValidationError, match=name):
            type(example).model_validate(values)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, 3601.0, float("nan")])
def test_a_lease_is_never_for_ever_nor_for_nothing(ttl_s: float) -> None:
    with pytest.raises(ValidationError):
        wire.LeaseRequest(holder="e", holder_name="n", purpose="p", ttl_s=ttl_s)


@pytest.mark.parametrize("rpo_s", [5, 7, 900, 86400, *RPO_PRESETS_S.values()])
def test_any_target_from_five_seconds_to_a_day(rpo_s: int) -> None:
    assert Policy(rpo_target_s=rpo_s).rpo_target_s == rpo_s


@pytest.mark.parametrize("values", [{"rpo_target_s": 4}, {"rpo_target_s": 86401}, {"streams": 0}, {"priority": 10}])
def test_a_policy_outside_its_bounds_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate(values)


def test_times_of_day_are_sorted_and_once() -> None:
    assert Policy(at_times=(time(20), time(8), time(20))).at_times == (time(8), time(20))


def test_a_retention_keeps_at_least_the_newest() -> None:
    with pytest.raises(ValidationError):
        Retention(newest=0)
