"""Two hosts that cannot reach each other: paired as a relay, protected, and every point is the source's data."""

from __future__ import annotations

from pathlib import Path

import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]


def test_sites_that_cannot_reach_each_other_replicate_through_the_console(lab: Lab, tmp_path: Path) -> None:
    spec = next(s for s in guests.DEFAULT_GUESTS if s.name == "web")
    guests.add(lab.sites["a"], spec, lab.cache)
    guests.wait_for(lab.sites["a"], "web", "VAPOR-DIARY ", timeout_s=90)
    lab.cut_link()
    with KeyringSession(tmp_path):
        stage = Stage(lab, tmp_path)
        stage.open()
        try:
            a, b = stage.add_sites()
            assert stage.backend.pair_sites(a.site_id, b.site_id, lambda _check: None) == "relay"
            stage.compare_every_point()
            stage.protect(a, b, ["web"])
            stage.wait_for_point("web", 2, timeout_s=180)
            assert stage.row("web").route == "relay"
            wait_until(lambda: len({c.seq for c in stage.comparisons}) >= 2, "two compared points", timeout_s=30)
            assert [c for c in stage.comparisons if not c.identical] == []
            done = [c for c in stage.backend.cycles(stage.row("web").key) if c.outcome == "point"]
            for cycle in done:
                print(f"{cycle.mode}: {cycle.data_bytes >> 20} MiB in {cycle.duration_s:.1f} s")
            # The link is mended: pairing again takes the direct way, and replication goes on.
            lab.mend_link()
            assert stage.backend.pair_sites(a.site_id, b.site_id, lambda _check: None) == "direct"
            stage.wait_for_point("web", (stage.row("web").last_seq or 0) + 2, timeout_s=120)
            assert stage.row("web").route == "direct"
            assert [c for c in stage.comparisons if not c.identical] == []
        finally:
            stage.close()
            lab.mend_link()
