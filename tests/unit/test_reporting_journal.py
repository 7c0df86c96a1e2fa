"""Certificates, statements and records come from the journal alone; what it does not hold is a dash."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vapor_desktop.cli.main import vaporctl
from vapor_desktop.engine.ports import Event, PointRow
from vapor_desktop.engine.reporting.document import Picture
from vapor_desktop.engine.reporting.journal_reports import drill_certificates, touched, zero_loss_statements
from vapor_desktop.model.operations import Operation, OperationKind, OperationState, StepRow, StepState
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.store.repository import SqlRepository

T0 = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
RANGE = ("--from", "2026-11-20T00:00Z", "--to", "2026-11-21T00:00Z")
ISOLATION = StepRow(name="isolation", title="Prove that nothing leaves the bubble", state=StepState.DONE)
MOVED = {
    "compared_bytes": 3 << 30,
    "compared": {"vda": 3 << 30},
    "how": "its agent",
    "seq": 12,
    "final_bytes": 5 << 20,
    "run_epoch": 2,
    "running_at": "2026-11-20T08:04:00+00:00",
    "downtime_s": 9.5,
}
STOPPED = {
    "drill_id": "d1",
    "began_at": "2026-11-20T08:00:00+00:00",
    "passed": True,
    "proven_seq": 7,
    "isolation": ["The host: no answer", "The gateway: <no> answer"],
    "checks": [{"key": "agent", "title": "Agent answers", "state": "ok", "text": "after 41 s"}],
    "boot_s": 12.0,
    "usable_s": 41.0,
    "left": [],
    "rpo_before_s": 55.0,
    "rpo_during_s": None,
    "rpo_target_s": 300,
}


def operation(key: str, kind: OperationKind, minutes: float = 0, **changes: Any) -> Operation:
    values = {
        "operation_id": key,
        "kind": kind,
        "protection_id": "p1",
        "vm_uuid": "u1",
        "vm_name": "web01",
        "reason": "audit <2026>",
        "asked_by": "ada@desk",
        "engine_id": "e1",
        "state": OperationState.DONE,
        "started_at": T0 + timedelta(minutes=minutes),
        "seen_at": T0 + timedelta(minutes=minutes + 5),
        "ended_at": T0 + timedelta(minutes=minutes + 5),
    }
    return Operation.model_validate(values | changes)


BEGUN = operation("o1", OperationKind.DRILL, result={"drill_id": "d1", "seq": 7}, steps=(ISOLATION,))
ENDED = operation("o2", OperationKind.STOP_DRILL, 30, result=STOPPED)
MIGRATED = operation("o3", OperationKind.MIGRATION, 60, result=MOVED)
WENT_OVER = operation(
    "o4",
    OperationKind.FAILOVER,
    120,
    result={"seq": 12, "running_after_s": 8.25, "source": "left as it is", "epoch": 3, "notes": ["No TPM"]},
    steps=(StepRow(name="start", title="Start it", state=StepState.DONE, note="Running after 8.2 s"),),
)
TOO_LATE = operation("o5", OperationKind.FAILOVER, 2 * 1440, vm_name="later")


@pytest.fixture(autouse=True)
def _database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'vapor.db'}"
    monkeypatch.setenv("VAPOR_DATABASE_URL", url)
    repository = SqlRepository(url)
    try:
        values = {"protection_id": "p1", "vm_uuid": "u1", "vm_name": "web01", "source_site": "A", "target_site": "B"}
        repository.save_protection(Protection(**values, policy=Policy(), epoch_owner="A", created_at=T0))
        for o in (BEGUN, ENDED, MIGRATED, WENT_OVER, TOO_LATE):
            repository.save_operation(o)
        taken = T0 + timedelta(minutes=100)
        repository.replace_points("p1", [PointRow("p1", 12, taken, taken, "off", 9, (), True, None)])
        for minutes, text in ((1, "first"), (2 * 1440, "much later")):
            repository.add_event(Event(T0 + timedelta(minutes=minutes), "drill-ended", "p1", None, 3, text))
    finally:
        repository.close()


def told(kind: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(vaporctl, ["report", kind, *RANGE, "--format", "json"])
    assert done.exit_code == 0, done.output
    sections: list[dict[str, Any]] = json.loads(done.stdout)["sections"]
    return sections


def facts(section: dict[str, Any]) -> dict[str, Any]:
    return {row["what"]: row["value"] for row in section["rows"]}


def test_a_drill_certificate_has_verdict_point_checks_and_isolation() -> None:
    head, isolation, checks, rest = told("drills")
    assert head["title"] == "Drill of web01"
    known = facts(head)
    assert (known["Verdict"], known["Recovery point tried"], known["Asked by"]) == ("passed", 7, "ada@desk")
    assert (known["Usable after"], known["Worst RPO before"], known["Worst RPO during"]) == ("41.0 s", "55.0 s", None)
    assert known["Left on the host"] == "nothing, and it was looked"
    assert isolation["text"] == [
        "Before the copy was started it was proven that nothing leaves its bubble:",
        *STOPPED["isolation"],  # type: ignore[misc]
    ]
    assert checks["rows"] == [{"check": "Agent answers", "state": "ok", "text": "after 41 s"}]
    assert checks["text"][0].startswith("Picture: — (")  # its site is not paired with this database
    assert [row["kind"] for row in rest["rows"]] == ["drill"]


def test_a_drill_of_which_the_beginning_is_not_on_record_claims_no_proof() -> None:
    sections = drill_certificates([ENDED], [ENDED], lambda _o, _seq: Picture(b"\x89PNG", "its screen"))
    assert "not on record" in sections[1].text[0]
    assert sections[2].pictures == (Picture(b"\x89PNG", "its screen"),)
    assert sections[2].text == ()


def test_a_finished_migration_makes_its_statement_and_another_none() -> None:
    head, _steps = told("migrations")
    assert head["text"][0].startswith("Nothing lost up to recovery point 12: vda 3.0 GiB were read at the source")
    assert "5.0 MiB" in head["text"][0]
    assert facts(head)["Downtime"] == "9.5 s"
    error = {"code": "VM-BUSY", "what": "It is busy", "why": ""}
    undone = MIGRATED.model_copy(update={"state": OperationState.UNDONE, "error": error})
    failed = zero_loss_statements([undone])[0]
    assert failed.text == ("No statement: undone. It is busy [VM-BUSY]",)
    forced = zero_loss_statements([MIGRATED.model_copy(update={"answers": {"shut-down": "force"}})])[0]
    assert "as by a power cut" in forced.text[1]


def test_a_failover_record_tells_the_point_its_age_and_each_step() -> None:
    head, steps = told("failovers")
    known = facts(head)
    assert (known["Recovery point"], known["Running after"], known["Source"]) == (12, "8.2 s", "left as it is")
    assert known["Its data is as of"] == "2026-11-20T09:40:00+00:00"
    assert known["Reason"] == "audit <2026>"
    assert head["text"] == ["No TPM"]
    assert steps["rows"][0]["note"] == "Running after 8.2 s"


def test_the_audit_log_has_who_and_only_the_range() -> None:
    operations, events = told("audit")
    assert [(r["kind"], r["by"]) for r in operations["rows"]] == [
        ("drill", "ada@desk"),
        ("stop drill", "ada@desk"),
        ("planned migration", "ada@desk"),
        ("emergency failover", "ada@desk"),
    ]
    assert [(r["subject"], r["severity"], r["text"]) for r in events["rows"]] == [("web01", "warning", "first")]


@pytest.mark.parametrize("kind", ["drills", "migrations", "failovers", "audit"])
def test_as_html_and_csv_too(kind: str) -> None:
    page = CliRunner().invoke(vaporctl, ["report", kind, *RANGE]).stdout
    assert "web01" in page
    assert "<2026>" not in page
    assert ("&lt;2026&gt;" in page) or ("&lt;no&gt;" in page)
    text = CliRunner().invoke(vaporctl, ["report", kind, *RANGE, "--format", "csv"]).stdout
    rows = list(csv.reader(io.StringIO(text)))
    assert any("audit <2026>" in row for row in rows)
    for n, row in enumerate(rows):
        if row[:1] == ["What"]:
            assert {len(r) for r in rows[n : n + 5]} == {2}


def test_a_range_has_what_was_at_work_within_it() -> None:
    end = T0 + timedelta(minutes=60)
    assert touched([WENT_OVER, ENDED, BEGUN, MIGRATED], T0 + timedelta(minutes=6), end) == (ENDED,)
    still = BEGUN.model_copy(update={"ended_at": None})
    assert touched([still], T0 + timedelta(days=1), T0 + timedelta(days=2)) == (still,)
