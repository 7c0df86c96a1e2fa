"""The table's one query: newest point, count and oldest, for every protection at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from vapor_desktop.engine.ports import PointRow
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.store.repository import SqlRepository

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def protection(number: int) -> Protection:
    return Protection(
        protection_id=f"p{number}",
        vm_uuid=f"u{number}",
        vm_name=f"vm{number}",
        source_site="A",
        target_site="B",
        policy=Policy(),
        epoch_owner="A",
        created_at=NOW,
    )


def row(pid: str, seq: int) -> PointRow:
    at = NOW + timedelta(minutes=seq)
    return PointRow(pid, seq, at, at + timedelta(seconds=5), "crash-consistent", 7, ("user:x",), True, None)


def test_summaries_tell_newest_count_and_oldest(tmp_path: Path) -> None:
    repository = SqlRepository(f"sqlite:///{tmp_path / 'v.db'}")
    try:
        for n in (1, 2, 3):
            repository.save_protection(protection(n))
        repository.replace_points("p1", [row("p1", s) for s in (3, 4, 9)])
        repository.replace_points("p2", [row("p2", 1)])
        found = repository.point_summaries()
        assert set(found) == {"p1", "p2"}
        assert found["p1"].newest == row("p1", 9)
        assert found["p1"].count == 3
        assert found["p1"].oldest_taken_at == NOW + timedelta(minutes=3)
    finally:
        repository.close()
