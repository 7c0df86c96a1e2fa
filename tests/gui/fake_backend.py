"""A Backend in memory, for tests of the window only: the world it shows is set by the test."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from vapor_desktop.engine.backend import OnCheck, OnSeed
from vapor_desktop.engine.ports import CycleRecord, Event, PointRow, RpoSample
from vapor_desktop.model.about import About, Component
from vapor_desktop.model.drills import DrillPicture
from vapor_desktop.model.errors import InvalidRequest, NotFound, VaporError
from vapor_desktop.model.operations import Operation, OperationKind, StepRow, StepState
from vapor_desktop.model.plans import Plan, PlanMode, PlanStatus
from vapor_desktop.model.policy import Mappings, Policy
from vapor_desktop.model.rpo import health
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import Phase, RpoHealth, severity
from vapor_desktop.model.view import (
    BothSides,
    Check,
    DiskStatus,
    DisksView,
    DiskVerdictView,
    DrillStatus,
    EngineView,
    FailoverPoint,
    FailoverPreview,
    KeptRunView,
    LeaseHolder,
    ProtectionSettings,
    ProtectionStatus,
    ProtectRequest,
    ReprotectPreview,
    SettingsEdit,
    SideView,
    SiteProbe,
    SiteStatus,
    Snapshot,
    VmStatus,
)
from vapor_desktop.model.wire import ImageFormat, Progress, Runbook, SeedState

NOW = datetime(2026, 11, 20, 10, 42, 5, tzinfo=UTC)
MIB = 1 << 20


def site(name: str, host: str = "192.168.122.129") -> Site:
    """A paired site."""
    return Site(
        site_id=f"id-{name}", name=name, api_url=f"https://{host}:7770/api/v1", cert_pem="pem", cert_sha256="ab" * 32,
        ssh_host=host, ssh_port=22, ssh_user="vapor", ssh_host_keys=("ssh-ed25519 AAAA",),
        replica_root="/var/lib/libvirt/images/vapor", paired_at=NOW,
    )  # fmt: skip


def site_status(name: str, *, reachable: bool | None = True, **more: Any) -> SiteStatus:
    """A site as last seen."""
    values: dict[str, Any] = {
        "site": site(name), "reachable": reachable, "last_seen_at": NOW, "clock_offset_s": 0.012,
        "clock_error_s": 0.002, "latency_s": 0.004, "version": "0.1.0", "libvirt_version": "9.0.0",
        "qemu_version": "7.2.9", "free_bytes": 180 << 30, "total_bytes": 500 << 30,
        "peers": ("id-site-b",) if name == "site-a" else ("id-site-a",),
    }  # fmt: skip
    return SiteStatus(**(values | more))


def protection(name: str, *, target_s: int = 300, phase: Phase = Phase.PROTECTED, **more: Any) -> Protection:
    """A protection from site-a to site-b."""
    return Protection(
        protection_id=f"p-{name}", vm_uuid=f"00000000-0000-4000-8000-{abs(hash(name)) % 10**12:012d}", vm_name=name,
        source_site="id-site-a", target_site="id-site-b", policy=Policy(rpo_target_s=target_s),
        epoch_owner="id-site-a", phase=phase, created_at=NOW - timedelta(days=30), **more,
    )  # fmt: skip


def status(name: str, rpo_s: float | None = 60.0, *, now: datetime = NOW, **more: Any) -> ProtectionStatus:
    """One row, consistent in itself."""
    fields = ProtectionStatus.__dataclass_fields__
    own = {key: more.pop(key) for key in list(more) if key in fields}
    prot = own.pop("protection", None) or protection(name, **more)
    seq = own.get("last_seq", 41)
    rpo = health(rpo_s, prot.policy.rpo_target_s, seq is not None)
    flag = "" if rpo is RpoHealth.WITHIN else f" · {rpo.value}"
    taken = now - timedelta(seconds=rpo_s) if rpo_s is not None else now - timedelta(hours=1)
    values: dict[str, Any] = {
        "protection": prot, "source_name": "site-a", "target_name": "site-b", "rpo_now_s": rpo_s, "rpo_health": rpo,
        "severity": severity(prot.phase, rpo), "last_seq": seq, "last_point_taken_at": taken, "current_as_of": taken,
        "point_count": 15, "oldest_taken_at": now - timedelta(days=3), "progress": None, "cycle_started_at": None,
        "next_due_at": now + timedelta(seconds=40), "last_sent_bytes": 212 * MIB, "last_duration_s": 9.2,
        "attainable_rpo_s": 18.4, "source_power": "running", "route": "direct",
        "status_text": f"{prot.phase.value}{flag}",
    }  # fmt: skip
    return ProtectionStatus(**(values | own))


def vm(name: str, *, protectable: bool = True, reason: str = "") -> VmStatus:
    """A VM that nothing protects."""
    disk = DiskVerdictView("vda", "delta" if protectable else "refused", "qcow2 v3", "", 20 << 30)
    return VmStatus(
        f"uuid-{name}", name, "id-site-a", "site-a", "running", ("default",), (disk,), protectable, reason
    )


def world(now: datetime = NOW, **more: Any) -> Snapshot:
    """A small, varied world."""
    running = Progress(
        done_bytes=400 * MIB, total_bytes=1050 * MIB, rate_bytes_s=46e6, disk="vda", wire_bytes=9 * MIB
    )
    values: dict[str, Any] = {
        "at": now, "engine": "here", "engine_seen_at": now,
        "sites": (site_status("site-a"), site_status("site-b")),
        "pairs": (("id-site-a", "id-site-b", "direct"),),
        "protections": (
            status("web01", 62, now=now),
            status("web02", 250, now=now),
            status("db01", 754, now=now, last_error="The link broke off: connection reset", failures=2),
            status("mail", 41, now=now, phase=Phase.SYNCING, progress=running,
                   cycle_started_at=now - timedelta(seconds=9), status_text="syncing"),
            status("files", None, now=now),
            status("build", 30, now=now, paused=True, phase=Phase.PAUSED, status_text="paused"),
        ),
        "unprotected": (vm("scratch"), vm("legacy", protectable=False, reason="Disk vdb is a shared LUN")),
    }  # fmt: skip
    return Snapshot(**(values | more))


def disk_status(target: str, **more: Any) -> DiskStatus:
    """A disk of a protected VM."""
    values: dict[str, Any] = {
        "target": target, "bus": "virtio", "format": "qcow2", "source": f"/images/web01-{target}.qcow2",
        "size_bytes": 20 << 30, "allocated_bytes": 7 << 30, "kind": "delta", "reason": "", "fix": "",
        "in_point": True, "seeded": False, "replica_bytes": 8 << 30, "received_bytes": None, "last_mode": "delta",
        "last_why": "bitmap valid", "last_sent_bytes": 212 * MIB, "last_seq": 41, "scrub_reached_bytes": 3 << 30,
        "scrub_passed_at": NOW - timedelta(days=2), "verified": True,
    }  # fmt: skip
    return DiskStatus(**(values | more))


RAW: dict[str, Any] = {
    "format": "raw", "source": "/dev/vg0/web01-data", "size_bytes": 1 << 40, "kind": "compare",
    "reason": "A raw disk keeps no record of changes: each cycle reads all of it and sends what differs",
    "fix": "Convert it to qcow2 for a short RPO", "last_mode": "compare", "last_sent_bytes": 40 * MIB,
    "last_why": "A raw disk keeps no record of changes: each cycle reads all of it and sends what differs",
    "scrub_reached_bytes": 90 << 30, "scrub_passed_at": None, "replica_bytes": 610 << 30,
}  # fmt: skip


MIGRATION = (
    StepRow(name="check", title="Look whether it would start at the target"),
    StepRow(name="pre-sync", title="Sync while it runs, and compare both sides"),
    StepRow(name="shut-down", title="Shut it down"),
    StepRow(name="resume", title="Let it run at the target", no_return=True),
    StepRow(name="settle", title="Tell the source whose it is"),
)


REPROTECT = ReprotectPreview(
    "p-db01", "db01", "site-b", "site-a", "bitmap", "bitmap: 1.2 GiB", "a bitmap has noted every write since",
    1 << 30, 1 << 30, False, ("“db01” goes on running at site-b", "site-a does not start it any more"),
)  # fmt: skip

PLAN_STEPS = (
    StepRow(name="check", title="Look whether all of it can run"),
    StepRow(name="tier-1", title="Tier 1: data"),
    StepRow(name="vm-u-db", title="db01", parent="tier-1"),
    StepRow(name="pause-2", title="Ask a person before Tier 2"),
    StepRow(name="tier-2", title="Tier 2"),
    StepRow(name="vm-u-web", title="web01", parent="tier-2"),
    StepRow(name="report", title="Look what runs"),
)


def migration(done: int = 1, now: datetime = NOW, **more: Any) -> Operation:
    """A planned migration of db01 with so many steps done and the next one running."""
    steps = []
    for n, step in enumerate(MIGRATION):
        began = now - timedelta(seconds=60 - 10 * n)
        known: dict[str, Any] = {}
        if n < done:
            known = {"state": StepState.DONE, "started_at": began, "ended_at": began + timedelta(seconds=4)}
        elif n == done:
            known = {"state": StepState.RUNNING, "started_at": began, "note": "reading vda"}
        steps.append(step.model_copy(update=known))
    values: dict[str, Any] = {
        "operation_id": "op-1", "kind": OperationKind.MIGRATION, "protection_id": "p-db01", "vm_uuid": "u-db01",
        "vm_name": "db01", "reason": "new rack", "asked_by": "anna", "engine_id": "e-1",
        "started_at": now - timedelta(seconds=60), "seen_at": now, "steps": tuple(steps),
    }  # fmt: skip
    return Operation(**(values | more))


class FakeBackend:
    """Answers from its attributes. ``asked`` lists every verb; ``fail[verb]`` is raised; ``hang`` blocks all."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.shot = snapshot or world()
        self.asked: list[tuple[Any, ...]] = []
        self.fail: dict[str, VaporError] = {}
        self.checks: dict[str, list[Check]] = {}
        self.hang: threading.Event | None = None  # set it to let go
        self.samples: list[RpoSample] = []
        self.threads: set[str] = set()
        self.networks: tuple[str, ...] = ("default", "lan0", "dmz")
        self.cert: str = "ab12" * 16
        self.policies: dict[str, tuple[Policy, Mappings]] = {}
        self.version = 3
        self.chain_limit = 32
        self.disk_view = DisksView((disk_status("vda"), disk_status("vdb", **RAW)))
        self.seeding: list[SeedState] = []
        self.drill_records: list[DrillStatus] = []
        self.holders: tuple[LeaseHolder, ...] = ()

    def about(self) -> About:
        """As the engine would say it."""
        self._take("about")
        versions = (("Vapor Desktop", "0.1.0"), ("libvirt client", "9.0.0"), ("Database", "SQLite 3.40.1, schema 7"))
        return About(versions, (Component("lxml", "6.0", "BSD-3-Clause"), Component("nameless", "1", "")))

    def _take(self, verb: str, *args: Any) -> None:
        self.threads.add(threading.current_thread().name)
        self.asked.append((verb, *args))
        if self.hang is not None:
            self.hang.wait(30)
        if verb in self.fail:
            raise self.fail[verb]

    def verbs(self) -> list[str]:
        """What was asked, without the snapshots."""
        return [call[0] for call in self.asked if call[0] != "snapshot"]

    def snapshot(self) -> Snapshot:
        self._take("snapshot")
        return self.shot

    def normalise_url(self, text: str) -> str:
        host = text.strip().removeprefix("https://").removesuffix("/").removesuffix("/api/v1")
        if not host or " " in host or "://" in host:
            raise InvalidRequest(
                f"“{text}” is not the address of a site", fix="Write a host name or https://HOST:7770"
            )
        return f"https://{host if ':' in host else host + ':7770'}/api/v1"

    def probe_site(self, url: str) -> SiteProbe:
        self._take("probe_site", url)
        return SiteProbe(url, url.split("/")[2].split(":")[0], "pem", self.cert)

    def add_site(self, probe: SiteProbe, token: str, on_check: OnCheck) -> Site:
        for check in self.checks.get("add_site", []):
            on_check(check)
        self._take("add_site", probe.api_url, token)
        return site(f"site-{probe.host}", probe.host)

    def pair_sites(self, site_a: str, site_b: str, on_check: OnCheck) -> str:
        for check in self.checks.get("pair_sites", []):
            on_check(check)
        self._take("pair_sites", site_a, site_b)
        return "direct"

    def remove_site(self, site_id: str) -> None:
        self._take("remove_site", site_id)

    def site_networks(self, site_id: str) -> Sequence[str]:
        self._take("site_networks", site_id)
        return self.networks

    def vms(self, site_id: str) -> Sequence[VmStatus]:
        self._take("vms", site_id)
        mine = [p.protection for p in self.shot.protections if p.protection.source_site == site_id]
        covered = [replace(vm(p.vm_name), vm_uuid=p.vm_uuid) for p in mine]
        return [*self.shot.unprotected, *covered] if site_id == "id-site-a" else []

    def preflight(self, request: ProtectRequest, on_check: OnCheck) -> Sequence[Check]:
        checks = self.checks.get("preflight", [Check("space", "Space at the target", "ok", "180 GiB free")])
        for check in checks:
            on_check(check)
        self._take("preflight", request)
        return checks

    def protect(self, request: ProtectRequest) -> Sequence[Protection]:
        self._take("protect", request)
        return [protection(uuid) for uuid in request.vm_uuids]

    def unprotect(self, protection_id: str, *, delete_replica: bool) -> None:
        self._take("unprotect", protection_id, delete_replica)

    def adopt_replicas(self, site_id: str) -> Sequence[Protection]:
        self._take("adopt_replicas", site_id)
        return [protection("found")]

    def sync_now(self, protection_id: str, *, wait: bool = False) -> None:
        self._take("sync_now", protection_id)

    def pause(self, protection_id: str) -> None:
        self._take("pause", protection_id)

    def resume(self, protection_id: str) -> None:
        self._take("resume", protection_id)

    def settings(self, protection_id: str) -> ProtectionSettings:
        self._take("settings", protection_id)
        row = next((p.protection for p in self.shot.protections if p.key == protection_id), None)
        if row is None:
            raise NotFound("No such protection")
        policy, mappings = self.policies.get(protection_id, (row.policy, row.mappings))
        return ProtectionSettings(
            protection_id, row.vm_name, "site-b", self.version, policy, mappings, self.chain_limit, ("lan-a",),
            self.networks,
        )  # fmt: skip

    def edit(self, protection_id: str, edit: SettingsEdit) -> Protection:
        self._take("edit", protection_id, edit)
        self.policies[protection_id] = (edit.policy, edit.mappings)
        self.version += 1
        return next(p.protection for p in self.shot.protections if p.key == protection_id)

    def disks(self, protection_id: str) -> DisksView:
        self._take("disks", protection_id)
        return self.disk_view

    def seed(
        self, protection_id: str, images: Mapping[str, str], image_format: ImageFormat, on_state: OnSeed
    ) -> None:
        self._take("seed", protection_id, dict(images), image_format)
        for state in self.seeding:
            on_state(state)

    def cancel(self, task_key: str) -> None:
        self._take("cancel", task_key)

    def pin(self, protection_id: str, seq: int, note: str) -> None:
        self._take("pin", protection_id, seq, note)

    def unpin(self, protection_id: str, seq: int) -> None:
        self._take("unpin", protection_id, seq)

    def runbook(self, protection_id: str, seq: int | None = None) -> Runbook:
        self._take("runbook", protection_id, seq)
        text = f"RUNBOOK: {protection_id}\n    virsh start {protection_id}\n"
        return Runbook(
            vm_uuid="u", vm_name="db01", seq=41, written_at=NOW, path="/r/u/runbook/runbook.txt", domain_path="/r/x",
            text=text,
        )  # fmt: skip

    def failover_preview(self, protection_id: str) -> FailoverPreview:
        self._take("failover_preview", protection_id)
        row = next((p for p in self.shot.protections if p.key == protection_id), None)
        if row is None:
            raise NotFound("No such protection")
        points = tuple(
            FailoverPoint(seq, NOW - timedelta(seconds=age), NOW - timedelta(seconds=age), age, "crash", None, True)
            for seq, age in ((41, 432.0), (40, 762.0), (39, 4000.0))
        )
        return FailoverPreview(
            protection_id, row.protection.vm_name, "site-b", "site-a", False, NOW - timedelta(minutes=6),
            ("API of site-a: timed out after 3 s", "libvirt of site-a: no route to host"), points,
            ("web01 starts at site-b on network lan0", "Replication from site-a stops"),
        )  # fmt: skip

    def failover(self, protection_id: str, seq: int | None, reason: str, source: str = "leave") -> float:
        self._take("failover", protection_id, seq, reason, source)
        return 1.8

    def reprotect_preview(self, protection_id: str) -> ReprotectPreview:
        self._take("reprotect_preview", protection_id)
        return REPROTECT

    def both_sides(self, protection_id: str) -> BothSides:
        self._take("both_sides", protection_id)
        return BothSides(
            protection_id, "db01", 41, NOW,
            SideView("id-site-a", "site-a", "running", 3, None, {}, None, "its bitmap went with the crash"),
            SideView("id-site-b", "site-b", "running", 2, 5 * MIB, {"vda": 5 * MIB}, NOW),
        )  # fmt: skip

    def kept_runs(self, protection_id: str) -> Sequence[KeptRunView]:
        self._take("kept_runs", protection_id)
        return (KeptRunView(2, "before the roll back", NOW, 41, 7 * MIB),)

    def let_go(self, protection_id: str, epoch: int, reason: str) -> None:
        self._take("let_go", protection_id, epoch, reason)

    def operation_steps(self, kind: OperationKind, args: Mapping[str, object] | None = None) -> Sequence[StepRow]:
        self._take("operation_steps", kind, dict(args or {}))
        return MIGRATION

    def begin_operation(
        self, kind: OperationKind, protection_id: str, args: Mapping[str, object], reason: str
    ) -> str:
        self._take("begin_operation", kind, protection_id, dict(args), reason)
        return "op-1"

    def drills(self) -> Sequence[DrillStatus]:
        self._take("drills")
        return self.drill_records

    def schedule_drills(self, protection_id: str, days: int | None, *, auto: bool) -> None:
        self._take("schedule_drills", protection_id, days, auto)

    def point_proof(self, protection_id: str, seq: int) -> DrillPicture:
        self._take("point_proof", protection_id, seq)
        return DrillPicture(png="", boot_s=21.0, at=datetime.now(UTC))

    def drill_screen(self, protection_id: str) -> bytes:
        self._take("drill_screen", protection_id)
        raise NotFound("There is no picture")

    def operations(self, *, open_only: bool = False, limit: int = 200) -> Sequence[Operation]:
        self._take("operations")
        return self.shot.operations

    def operation(self, operation_id: str) -> Operation:
        self._take("operation", operation_id)
        return next(o for o in self.shot.operations if o.operation_id == operation_id)

    def answer_question(self, operation_id: str, question_id: str, choice: str) -> None:
        self._take("answer_question", operation_id, question_id, choice)

    def cancel_operation(self, operation_id: str) -> None:
        self._take("cancel_operation", operation_id)

    def plans(self) -> Sequence[PlanStatus]:
        self._take("plans")
        return self.shot.plans

    def save_plan(self, plan: Plan) -> Plan:
        self._take("save_plan", plan)
        return plan

    def delete_plan(self, plan_id: str, version: int) -> None:
        self._take("delete_plan", plan_id, version)

    def look_at_plan(self, plan_id: str) -> PlanStatus:
        self._take("look_at_plan", plan_id)
        return next(s for s in self.shot.plans if s.plan.plan_id == plan_id)

    def plan_steps(self, plan_id: str, mode: PlanMode) -> Sequence[StepRow]:
        self._take("plan_steps", plan_id, mode)
        return PLAN_STEPS

    def run_plan(self, plan_id: str, mode: PlanMode, reason: str) -> str:
        self._take("run_plan", plan_id, mode, reason)
        return "run-1"

    def points(self, protection_id: str) -> Sequence[PointRow]:
        self._take("points", protection_id)
        return [
            PointRow(protection_id, seq, NOW - timedelta(minutes=7 * n), NOW - timedelta(minutes=7 * n),
                     "quiesced" if n % 2 else "crash", (n * 37 + 5) * MIB, ("before upgrade",) if n == 2 else (),
                     n != 3, NOW - timedelta(days=1) if n == 4 else None)
            for n, seq in enumerate(range(41, 31, -1))
        ]  # fmt: skip

    def rpo_samples(self, protection_id: str, since: datetime) -> Sequence[RpoSample]:
        self._take("rpo_samples", protection_id, since)
        return [s for s in self.samples if s.at >= since]

    def cycles(self, protection_id: str, limit: int = 50) -> Sequence[CycleRecord]:
        self._take("cycles", protection_id)
        return [
            CycleRecord(protection_id, NOW - timedelta(minutes=7 * n), 9.0 + n, "failed" if n == 2 else "point",
                        None if n == 2 else 41 - n, 40 * MIB, 12 * MIB, "delta",
                        "TRANSFER-INTERRUPTED" if n == 2 else None, "The link broke off" if n == 2 else None)
            for n in range(10)
        ]  # fmt: skip

    def engines(self) -> Sequence[EngineView]:
        return self.shot.engines

    def leases(self, protection_id: str) -> Sequence[LeaseHolder]:
        return self.holders

    def take_over_lease(self, protection_id: str, site_id: str, reason: str) -> str:
        self._take("take_over_lease", protection_id, site_id, reason)
        return "bert@elsewhere (cycle)"

    def events(self, protection_id: str | None = None, limit: int = 200) -> Sequence[Event]:
        self._take("events", protection_id)
        return [
            Event(
                NOW - timedelta(minutes=3 * n), "cycle", "p-web01", None, n % 5, f"Recovery point {41 - n} of web01"
            )
            for n in range(20)
        ]


def saw_tooth(start: datetime, end: datetime, step_s: float = 60.0, target_s: float = 300.0) -> list[RpoSample]:
    """RPO samples that rise and fall, with a breach and an unknown stretch each day."""
    samples = []
    for n in range(int((end - start).total_seconds() / step_s)):
        at = start + timedelta(seconds=n * step_s)
        day = (n * step_s) % 86400
        rpo: float | None = (n * step_s) % 240 + 15
        if 30000 < day < 33000:
            rpo = day - 30000 + 240
        elif 50000 < day < 53000:
            rpo = None
        samples.append(RpoSample(at, rpo, target_s, over_s=step_s))
    return samples


def later(snapshot: Snapshot, seconds: float) -> Snapshot:
    """The same world some seconds on: every known RPO has grown."""
    now = snapshot.at + timedelta(seconds=seconds)
    grown = []
    for row in snapshot.protections:
        rpo = None if row.rpo_now_s is None else row.rpo_now_s + seconds
        flag = health(rpo, row.protection.policy.rpo_target_s, row.last_seq is not None)
        grown.append(replace(row, rpo_now_s=rpo, rpo_health=flag, severity=severity(row.protection.phase, flag)))
    return replace(snapshot, at=now, engine_seen_at=now, protections=tuple(grown))


def fleet(count: int, now: datetime = NOW) -> Snapshot:
    """Many protections, some of each kind."""
    rows = tuple(
        status(f"vm{n:04d}", None if n % 97 == 0 else 10 + 290 * abs(math.sin(n)), now=now) for n in range(count)
    )
    return world(now, protections=rows, unprotected=())
