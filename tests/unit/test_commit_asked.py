"""A failover that nobody commits: a person is asked, by alert and in the history, once; nothing is decided."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vapor_desktop.app import SystemClock
from vapor_desktop.engine.alerts import conditions
from vapor_desktop.engine.split_watch import SplitWatch
from vapor_desktop.engine.status import status
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import Phase
from vapor_desktop.store.repository import SqlRepository

NOW = datetime.now(UTC)


def provisional(ask_at: datetime) -> Protection:
    return Protection(
        protection_id="p", vm_uuid="u", vm_name="web", source_site="A", target_site="B", policy=Policy(),
        epoch_number=2, epoch_owner="B", phase=Phase.PROVISIONAL, created_at=NOW, commit_ask_at=ask_at,
    )  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[SqlRepository]:
    opened = SqlRepository(f"sqlite:///{tmp_path}/v.db")
    yield opened
    opened.close()


@pytest.mark.parametrize(("due_in_s", "asked"), [(60, False), (-1, True)])
def test_an_alert_asks_when_it_is_due(due_in_s: float, asked: bool) -> None:
    protection = provisional(NOW + timedelta(seconds=due_in_s))
    row = status(
        protection, now=NOW, points=None, cycles=(), live=None, target_clock=None, site_names={}, route="direct"
    )
    assert [a.key for a in conditions([row], [], NOW)] == (["commit:p"] if asked else [])


def test_the_history_asks_once_for_each_time_it_is_due(repository: SqlRepository) -> None:
    class NoSites:
        """Nothing was looked at: both sites are unknown here."""

        def vms(self) -> tuple[()]:
            return ()

        def seen(self, _site: str) -> None:
            return None

    watch = SplitWatch(repository, None, NoSites(), SystemClock())  # type: ignore[arg-type]
    repository.save_protection(provisional(NOW + timedelta(hours=1)))
    watch.round(repository.protections())
    assert list(repository.events("p")) == []
    repository.save_protection(provisional(NOW - timedelta(seconds=1)))
    watch.round(repository.protections())
    watch.round(repository.protections())
    assert [e.kind for e in repository.events("p")] == ["commit-asked"]
    repository.save_protection(provisional(NOW - timedelta(seconds=0.5)))  # rolled back, and due again
    watch.round(repository.protections())
    assert [e.kind for e in repository.events("p")] == ["commit-asked", "commit-asked"]
    found = repository.protection("p")
    assert found is not None
    assert found.phase is Phase.PROVISIONAL
