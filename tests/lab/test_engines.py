"""Engines without a window and two consoles at once on one PostgreSQL, on two real hosts: no VM is worked on twice.

Any of them may be killed; whoever holds a VM is told, and taken over with a reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit"))

from store_postgres import new_database, postgres_server

from vapor_desktop import app
from vapor_desktop.engine.ports import SiteApi
from vapor_desktop.lab import guests
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.errors import StaleLease
from vapor_desktop.model.wire import LeaseRequest

pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.timeout(420)]
NAME = "shared"


def ctl(*words: str, given: str = "", code: int = 0) -> object:
    """vaporctl with --json; the parsed answer."""
    done = subprocess.run(
        [sys.executable, "-m", "vapor_desktop.cli.main", *words, "--json"],
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def engine(home: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    with (home / "engines.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vapor_desktop.cli.engine"], stderr=log, env={**os.environ, **more}
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def enrolled(lab: Lab, home: Path) -> Path:
    """An engine's own key and tokens, sealed by vaporctl; then opened as systemd does it for the unit."""
    sealed, opened = home / "sealed", home / "credentials"
    for site in lab.sites.values():
        token = site.token_new("--scope", "admin")
        ctl("--credentials", str(sealed), "site", "add", site.api_url, given=token + "\n")
    opened.mkdir(mode=0o700)
    assert sorted(p.name.partition(".")[0] for p in sealed.iterdir()) == [
        "console-ssh-key",
        "site-token",
        "site-token",
    ]
    for file in sealed.iterdir():
        name = f"vapor_{file.name}"
        subprocess.run(["systemd-creds", "decrypt", f"--name={name}", file, opened / name], check=True)
    return opened


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A console on PostgreSQL, and one guest."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("desk")
    guests.add(lab.sites["a"], guests.GuestSpec(NAME, rate=5, scratch=1), lab.cache)
    guests.wait_for(lab.sites["a"], NAME, "VAPOR-DIARY ", timeout_s=90)
    with KeyringSession(home), postgres_server() as server, ExitStack() as after:
        os.environ["VAPOR_DATABASE_URL"] = new_database(server, "vapor")
        after.callback(os.environ.pop, "VAPOR_DATABASE_URL")
        made = Stage(lab, home, app.build("console"))
        assert made.program is not None
        thread = threading.Thread(target=made.program.engine.run, daemon=True)
        made._thread = thread
        thread.start()
        try:
            a, b = made.pair()
            made.protect(a, b, [NAME], rpo_target_s=10)
            made.wait_for_point(NAME, 1)  # nobody else is there yet: the console's own engine acts
            assert made.backend.snapshot().engine == "here"
            yield made
        finally:
            made.close()
            remove_guests(lab)


def api_of(stage: Stage, site: str) -> SiteApi:
    assert stage.program is not None
    found = next(s for s in stage.program.engine.repository.sites() if s.name == f"site-{site}")
    return stage.program.engine.gateway.api(found)


def test_the_work_is_one_engines_at_a_time_whoever_is_killed(lab: Lab, stage: Stage) -> None:
    assert stage.program is not None
    repository, backend = stage.program.engine.repository, stage.backend
    credentials = enrolled(lab, stage.home)
    with ExitStack() as stack:
        one = stack.enter_context(engine(stage.home, CREDENTIALS_DIRECTORY=str(credentials)))  # as the system unit
        two = stack.enter_context(engine(stage.home))  # as the user unit: this keyring
        wait_until(lambda: sum(e.acts and e.kind == "service" for e in backend.engines()) == 2, "both", timeout_s=60)
        wait_until(lambda: backend.snapshot().engine == "service", "the console looks on", timeout_s=30)
        row = stage.row(NAME)
        wait_until(lambda: (h := repository.claims().get(row.key)) is not None and h in services(stage),
                   "a service's claim", timeout_s=30)  # fmt: skip
        holder = repository.claims()[row.key]
        pid = services(stage)[holder]
        assert pid in {one.pid, two.pid}
        ctl("sync", NAME, "--wait")  # commanded from a second console, done by the engine whose work it is
        seen: set[str] = set()
        target = api_of(stage, "b")

        def in_a_cycle() -> bool:
            lease = target.lease(row.protection.vm_uuid)
            if lease is not None:
                seen.add(lease.holder)
            return lease is not None and lease.purpose == "cycle"

        wait_until(in_a_cycle, "the next cycle", timeout_s=60, every_s=0.01)
        os.kill(pid, 9)
        killed_at = time.monotonic()
        last = stage.row(NAME).last_seq or 0
        assert seen == {f"{holder}/cycle"}
        stage.wait_for_point(NAME, last + 1, timeout_s=40)
        took_s = time.monotonic() - killed_at
        print(f"killed in a cycle; the other engine's next recovery point after {took_s:.1f} s")
        after = repository.claims()[row.key]
        assert after != holder
        assert services(stage) == {after: ({one.pid, two.pid} - {pid}).pop()}
        # And the last service: the console, which had only looked on, goes on by itself.
        (two if pid == one.pid else one).kill()
        wait_until(lambda: backend.snapshot().engine == "here", "the console acts", timeout_s=30)
        stage.wait_for_point(NAME, (stage.row(NAME).last_seq or 0) + 1, timeout_s=60)
        outcomes = [c.outcome for c in repository.cycles(row.key, 50)]
        assert "failed" not in outcomes, outcomes


def services(stage: Stage) -> dict[str, int]:
    return {e.engine_id: e.pid for e in stage.backend.engines() if e.kind == "service"}


def test_a_holder_elsewhere_is_named_and_taken_over_with_a_reason(lab: Lab, stage: Stage) -> None:
    """Somebody of another database is at work on the VM: a third console could not know, the site does."""
    row = stage.row(NAME)
    vm, seq, target = row.protection.vm_uuid, row.last_seq, api_of(stage, "b")
    assert seq is not None
    request = LeaseRequest(
        holder="another/drill", holder_name="bert@far", purpose="drill", ttl_s=600, takeover_reason="test"
    )
    bert = target.acquire_lease(vm, request)
    began = time.monotonic()
    refused = ctl("pin", NAME, str(seq), "--note", "keep", code=75)
    assert time.monotonic() - began < 20  # told at once: a drill may last for hours
    assert isinstance(refused, dict)
    assert refused["error"]["code"] == "LEASE-HELD"
    assert "bert@far" in refused["error"]["what"]
    assert "drill since 20" in refused["error"]["why"]
    [_source, held] = ctl("lease", "show", NAME)  # type: ignore[misc]
    assert (held["site"], held["lease"]["holder_name"], held["lease"]["purpose"]) == ("site-b", "bert@far", "drill")
    ctl("lease", "take-over", NAME, "--site", "site-b", "--reason", "bert went home", "--confirm", NAME)
    with pytest.raises(StaleLease):
        target.renew_lease(vm, bert.fence, 60)
    ctl("pin", NAME, str(seq), "--note", "keep")
    audit = lab.sites["b"].exec(["cat", "/var/lib/vapor/audit.log"]).stdout
    assert "bert went home" in audit
