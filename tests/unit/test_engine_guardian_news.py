"""What a guardian did reaches the history once, and an alert until a newer proof of the replica."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from vapor_desktop.engine.guardian_news import GuardianNews, open_acts
from vapor_desktop.engine.ports import SiteGateway
from vapor_desktop.engine.status import status
from vapor_desktop.model.errors import SiteUnreachable
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.sites import Protection, Site
from vapor_desktop.model.states import Severity
from vapor_desktop.model.wire import GuardianEvent
from vapor_desktop.store.repository import SqlRepository

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
AHEAD = timedelta(seconds=90)  # the source's clock


class Clock:
    def now(self) -> datetime:
        return NOON

    def monotonic(self) -> float:
        return 0.0


class Source:
    """A site whose guardian has done something; also the gateway to it."""

    def __init__(self) -> None:
        self.events: list[GuardianEvent] = []
        self.dark = False

    def api(self, _site: Site) -> Any:
        return self

    def guardian_events(self, since: datetime | None) -> Sequence[GuardianEvent]:
        if self.dark:
            raise SiteUnreachable("no answer")
        return [e for e in self.events if since is None or e.at >= since]

    def add(self, what: str, ago_s: float = 0.0, vm: str = "u1", why: str = "because") -> None:
        at = NOON + AHEAD - timedelta(seconds=ago_s)
        self.events.append(GuardianEvent.model_validate({"at": at, "vm_uuid": vm, "what": what, "why": why}))


class Rig:
    def __init__(self, tmp_path: Path) -> None:
        self.repository = SqlRepository(f"sqlite:///{tmp_path / 'v.db'}")
        self.source = Source()
        self.site = Site(
            site_id="A",
            name="alpha",
            api_url="https://192.0.2.1:7770/api/v1",
            cert_pem="",
            cert_sha256="",
            ssh_host="192.0.2.1",
            ssh_port=22,
            ssh_user="vapor",
            ssh_host_keys=(),
            replica_root="/r",
            paired_at=NOON - timedelta(days=1),
        )
        self.repository.save_site(self.site)
        self.repository.save_clock("A", AHEAD.total_seconds(), 0.01, NOON)
        self.protection = self.repository.save_protection(
            Protection(
                protection_id="p1",
                vm_uuid="u1",
                vm_name="web",
                source_site="A",
                target_site="B",
                policy=Policy(rpo_target_s=10),
                epoch_owner="A",
                created_at=NOON,
            )
        )
        self.news = self.another_engine()

    def another_engine(self) -> GuardianNews:
        return GuardianNews(self.repository, cast("SiteGateway", self.source), Clock())

    def history(self) -> list[tuple[str, int, str]]:
        return [(e.kind, e.severity, e.text) for e in reversed(self.repository.events("p1"))]

    def alerts(self, age_s: float | None) -> list[tuple[str, str]]:
        row = status(
            self.protection,
            now=NOON,
            points=None,
            cycles=[],
            live=None,
            target_clock=None,
            site_names={},
            route="direct",
        )
        found = open_acts([replace(row, rpo_now_s=age_s)], self.news.acts(), NOON)
        return [(a.title, a.body) for a in found]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.repository.close()


def test_each_event_is_told_once_also_by_the_next_engine(rig: Rig) -> None:
    rig.source.add("job-ended", 30, why="5 bytes left")
    rig.source.add("resumed", 29)
    told = [
        (
            "guardian-job-ended",
            int(Severity.WARNING),
            "alpha ended the backup job: 5 bytes left",
        ),
        ("guardian-resumed", int(Severity.WARNING), "alpha let the guest run again: because"),
    ]
    for _ in range(2):
        rig.news.read(rig.site)
        assert rig.history() == told
    rig.news = rig.another_engine()
    rig.news.read(rig.site)
    assert rig.history() == told
    rig.source.add("thawed", 1)
    rig.news.read(rig.site)
    assert [kind for kind, *_ in rig.history()] == ["guardian-job-ended", "guardian-resumed", "guardian-thawed"]


def test_an_alert_is_open_until_a_newer_proof_also_for_an_engine_that_started_later(rig: Rig) -> None:
    rig.source.add("job-ended", 30, why="too full")
    for _ in range(2):
        rig.news.read(rig.site)
        assert rig.alerts(age_s=45) == [("alpha ended the backup job: web", "too full")]
        assert rig.alerts(age_s=None) != []  # unknown is no proof
        assert rig.alerts(age_s=20) == []  # the source's clock is 90 s ahead: it was 30 s ago, not 60 s from now
        rig.news = rig.another_engine()


def test_what_concerns_no_protection_is_in_the_sites_history(rig: Rig) -> None:
    rig.source.add("job-ended", vm="somebody")
    rig.news.read(rig.site)
    assert rig.history() == []
    assert [(e.kind, e.site_id) for e in rig.repository.events()] == [("guardian-job-ended", "A")]
    assert rig.news.acts() == {}


def test_a_dark_site_is_asked_again_and_nothing_is_lost(rig: Rig) -> None:
    rig.source.add("thawed", 5)
    rig.source.dark = True
    rig.news.read(rig.site)
    assert rig.history() == []
    rig.source.dark = False
    rig.news.read(rig.site)
    assert [kind for kind, *_ in rig.history()] == ["guardian-thawed"]
