"""Reports as files: from a real database by vaporctl, escaped, with unknown as a dash."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vapor_desktop import __version__
from vapor_desktop.cli.main import vaporctl
from vapor_desktop.engine.ports import PointRow, RpoSample
from vapor_desktop.engine.reporting import inventory_report
from vapor_desktop.engine.reporting.document import Column, Is, Picture, Report, Section, duration_text, share_text
from vapor_desktop.engine.reporting.rendering import as_csv, as_json, html
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.view import VmStatus
from vapor_desktop.store.repository import SqlRepository

NOW = datetime.now(UTC).replace(microsecond=0)
FROM, TO = NOW - timedelta(minutes=30), NOW - timedelta(minutes=20)
EVIL = "<b>web&01</b>"
CET = timezone(timedelta(hours=1))
SAID = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
COLUMNS = (Column("vm", "VM"), Column("at", "At", Is.TIME), Column("took_s", "Took", Is.SECONDS))


def protection(key: str, name: str) -> Protection:
    return Protection(
        protection_id=key,
        vm_uuid=f"uuid-{key}",
        vm_name=name,
        source_site="A",
        target_site="B",
        policy=Policy(rpo_target_s=300),
        epoch_owner="A",
        created_at=NOW - timedelta(days=3),
    )


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two VMs: one seen each 15 s from 30 to 20 minutes ago, breached in the last 2 of them; one never seen."""
    path = tmp_path / "vapor.db"
    monkeypatch.setenv("VAPOR_DATABASE_URL", f"sqlite:///{path}")
    repository = SqlRepository(f"sqlite:///{path}")
    try:
        repository.save_protection(protection("p1", EVIL))
        repository.save_protection(protection("p2", "db01"))
        ages = [100.0] * 32 + [450.0] * 8
        seen = [RpoSample(FROM + timedelta(seconds=15 * n), age, 300.0) for n, age in enumerate(ages)]
        repository.add_rpo_samples([("p1", s) for s in seen])
        taken = NOW - timedelta(minutes=32)
        repository.replace_points("p1", [PointRow("p1", 7, taken, taken, "crash-consistent", 9, (), True, None)])
    finally:
        repository.close()
    return path


def run(*words: str) -> str:
    done = CliRunner().invoke(vaporctl, ["report", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def in_range(kind: str, *words: str) -> str:
    return run(kind, "--from", FROM.isoformat(), "--to", TO.isoformat(), *words)


def section(report: dict[str, Any], title: str) -> dict[str, Any]:
    return next(s for s in report["sections"] if s["title"] == title)


@pytest.mark.usefixtures("database")
def test_rpo_report_as_json_has_the_samples_of_the_database() -> None:
    told = json.loads(in_range("rpo", "--json"))
    assert (told["from"], told["to"]) == (FROM.isoformat(), TO.isoformat())
    assert told["versions"]["Vapor Desktop"] == __version__
    assert "@" in told["made_by"]
    worst, never = section(told, "VMs")["rows"]
    assert (worst["vm"], worst["within_s"], worst["breached_s"], worst["unknown_s"]) == (EVIL, 480.0, 120.0, 0.0)
    assert (worst["within"], worst["breached"], worst["worst_rpo_s"], worst["breaches"]) == (0.8, 0.2, 450.0, 1)
    assert (never["vm"], never["unknown"], never["unknown_s"]) == ("db01", 1.0, 600.0)
    assert [never[k] for k in ("within", "breached", "within_s", "worst_rpo_s", "breaches")] == [None] * 5
    (breach,) = section(told, "Breaches")["rows"]
    assert breach["from"] == (FROM + timedelta(minutes=8)).isoformat()
    assert breach["to"] == TO.isoformat()
    assert (
        "Of 20 VM-minutes: within target 40.00 %, breached 10.00 %, unknown 50.00 %." in told["sections"][0]["text"]
    )


@pytest.mark.usefixtures("database")
def test_rpo_report_as_html_escapes_names_and_tells_both_times(tmp_path: Path) -> None:
    file = tmp_path / "rpo.html"
    assert f"Written: {file}" in in_range("rpo", "--output", str(file))
    page = file.read_text(encoding="utf-8")
    assert "&lt;b&gt;web&amp;01&lt;/b&gt;" in page
    assert EVIL not in page
    assert "<script" not in page
    assert f"{FROM.astimezone():%Y-%m-%d %H:%M:%S %z} ({FROM:%Y-%m-%d %H:%M:%S} UTC)" in page
    assert f"<td>{__version__}</td>" in page
    assert '<td class="n">—</td>' in page


@pytest.mark.usefixtures("database")
def test_rpo_report_as_csv_has_one_row_per_vm() -> None:
    rows = list(csv.reader(io.StringIO(in_range("rpo", "--format", "csv"))))
    head = next(r for r in rows if r[:3] == ["VM", "Source", "Target"])
    by_vm = {r[0]: dict(zip(head, r, strict=True)) for r in rows if len(r) == len(head) and r != head}
    assert by_vm[EVIL]["Time within (s)"] == "480.0"
    assert by_vm["db01"]["Within"] == "—"
    assert by_vm["db01"]["Unknown"] == "1.0"


@pytest.mark.usefixtures("database")
def test_inventory_has_policy_and_point_and_never_says_that_all_is_protected_unasked() -> None:
    told = json.loads(run("inventory", "--format", "json"))
    assert (told["from"], told["to"]) == (None, None)
    rows = {r["vm"]: r for r in section(told, "Protected VMs")["rows"]}
    assert rows[EVIL]["last_point"] == 7
    assert rows[EVIL]["taken_at"] == (NOW - timedelta(minutes=32)).isoformat()
    assert rows[EVIL]["policy"].startswith("RPO 5 min; keeps 6 newest")
    assert [rows["db01"][k] for k in ("last_point", "taken_at", "current_as_of", "rpo_now_s")] == [None] * 4
    assert rows["db01"]["points"] == 0
    assert section(told, "VMs that nothing protects")["empty"] == "— : no site could be asked"
    assert "— : no site could be asked" in run("inventory")


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    "words",
    [("--from", "yesterday"), ("--from", "2026-11-02", "--to", "2026-11-01"), ("--output", "/nowhere/at/all")],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(vaporctl, ["report", "rpo", *words])
    assert type(done.exception).__name__ == "InvalidRequest"


def vm(name: str, uuid: str) -> VmStatus:
    return VmStatus(uuid, name, "A", "alpha", "running", (), (), True, "")


def test_unprotected_vms_are_those_that_nothing_covers_and_a_silent_site_is_told() -> None:
    asked = [vm("mail", "u1"), vm("mail-drill-0123abcd", "u2")]
    bare = inventory_report.sections([], {"alpha": asked}, {"beta": "it does not answer"})[1]
    assert [row[0] for row in bare.rows] == ["mail"]
    assert bare.text == ("beta: its VMs are not known (it does not answer).",)
    assert inventory_report.sections([], {"alpha": []}, {})[1].empty == "None"


REPORT = Report(
    "x",
    "A <report>",
    SAID - timedelta(days=1),
    SAID,
    SAID,
    "ada@desk",
    (("Vapor Desktop", "1.2"),),
    (
        Section("Rows", ("a < b",), COLUMNS, (('=HYPERLINK("http://x")', SAID, 7.5), ('"><img>', None, None))),
        Section("Nothing", (), COLUMNS, (), "None & none", (Picture(b"\x89PNG", 'a "screen"'),)),
    ),
)


def test_html_is_escaped_and_whole() -> None:
    page = html(REPORT, CET)
    assert "<h1>A &lt;report&gt;</h1>" in page
    assert "<td>&quot;&gt;&lt;img&gt;</td><td>—</td>" in page
    assert "<td>2026-11-23 11:00:00 +0100 (2026-11-23 10:00:00 UTC)</td>" in page
    assert "<p>None &amp; none</p>" in page
    assert '<img alt="a &quot;screen&quot;" src="data:image/png;base64,iVBORw==">' in page
    assert '<th scope="row">Made by</th><td>ada@desk</td>' in page


def test_csv_gives_a_spreadsheet_no_formula_and_json_keeps_unknown() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(REPORT, CET))))
    assert ["VM", "At (local)", "At (UTC)", "Took (s)"] in rows
    assert ['\'=HYPERLINK("http://x")', "2026-11-23 11:00:00 +0100", "2026-11-23 10:00:00 UTC", "7.5"] in rows
    assert ['"><img>', "—", "—", "—"] in rows
    told = json.loads(as_json(replace(REPORT, start=None, end=None), CET))
    assert told["sections"][0]["rows"][1] == {"vm": '"><img>', "at": None, "took_s": None}
    assert told["made_at"] == "2026-11-23T10:00:00+00:00"


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100.00 %"), (0.999999, "> 99.99 %"), (0.0, "0.00 %"), (1e-7, "< 0.01 %"), (0.5, "50.00 %")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(share: float, text: str) -> None:
    assert share_text(share) == text


def test_durations_are_read_by_people() -> None:
    assert [duration_text(s) for s in (0.0, 7.5, 60, 725, 273_600)] == [
        "0.0 s",
        "7.5 s",
        "1 min",
        "12 min 5 s",
        "3 d 4 h",
    ]
