"""What goes wrong with trust, ports and clocks: each its own clear error, nothing lost, and on it goes when mended.

Each fault is made for real on the host, seen by vaporctl (a process of its own) and by the console's engine, and
mended as the error's own advice says. Every point is compared with the source's frozen export.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from test_vaporctl import ctl, error_code

from vapor_desktop.lab import guests
from vapor_desktop.lab.host import PATH
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import run, wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.states import Phase, RpoHealth
from vapor_desktop.model.view import Check, ProtectionStatus

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]
NAME = "trust"
TARGET_S = 10
SKEW_S = 90
# A host whose real-time clock is off, and nothing else: what steps never (monotonic, boot time) is left alone.
CLOCK_C = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *at) {
    long failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += OFFSET_S;
    return (int)failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two paired sites, one protected guest, a console with a running engine."""
    remove_guests(lab)
    home = tmp_path_factory.mktemp("console")
    guests.add(lab.sites["a"], guests.GuestSpec(NAME, rate=5, scratch=1), lab.cache)
    guests.wait_for(lab.sites["a"], NAME, "VAPOR-DIARY ", timeout_s=90)
    with KeyringSession(home):
        made = Stage(lab, home)
        made.open()
        try:
            a, b = made.pair()
            made.compare_every_point()
            made.protect(a, b, [NAME], rpo_target_s=TARGET_S, newest=4)
            made.wait_for_point(NAME, 2)
            yield made
        finally:
            made.close()
            remove_guests(lab)


# --- what a test sees ------------------------------------------------------------------------------
def manifest(stage: Stage) -> Manifest:
    """As it lies on the target's disk."""
    file = f"/var/lib/libvirt/images/vapor/{stage.row(NAME).protection.vm_uuid}/manifest.json"
    return Manifest.model_validate_json(stage.lab.sites["b"].path(file).read_text())


def newest(stage: Stage) -> int:
    return stage.row(NAME).last_seq or 0


def cycle_fails(stage: Stage, code: str, *, exit_code: int = 1) -> ProtectionStatus:
    """A cycle asked for by vaporctl ends in that error; the console's row says the same, and no point is lost."""
    wait_until(lambda: stage.row(NAME).cycle_started_at is None, "the gap between cycles", timeout_s=60, every_s=0.02)
    before = manifest(stage)
    assert error_code(ctl("sync", NAME, "--wait", code=exit_code)) == code
    # The engine tries again by itself, and fails again: between two tries the row says so.
    wait_until(lambda: stage.row(NAME).protection.phase is Phase.ERROR, "the row says error", timeout_s=20)
    row = stage.row(NAME)
    assert row.protection.last_error_code == code
    after = manifest(stage)
    assert after.points == before.points
    assert row.rpo_now_s is not None, "the target still tells how old its newest point is"
    return row


def goes_on(stage: Stage, count: int = 1) -> None:
    """Without a hand: new points, no error, and every one of them is the source's frozen state."""
    stage.wait_for_point(NAME, newest(stage) + count, timeout_s=60)
    wait_until(lambda: stage.row(NAME).protection.last_error is None, "no error any more", timeout_s=20)
    assert stage.row(NAME).rpo_health in {RpoHealth.WITHIN, RpoHealth.AT_RISK}
    assert stage.comparisons[-1].seq >= 2
    assert [c for c in stage.comparisons if not c.identical] == []


def site_row(name: str) -> dict[str, object]:
    """What `vaporctl site list` finds when it looks, with connections of its own."""
    listed = ctl("site", "list")
    assert isinstance(listed, list)
    return next(s for s in listed if s["name"] == name)


def banner(stage: Stage, start: str) -> str:
    """The window's banner that begins so, after a look at the sites."""
    for status in stage.backend.snapshot().sites:
        stage.backend.look(status.site.site_id)
    texts = [b.text for b in stage.backend.snapshot().banners]
    found = [text for text in texts if text.startswith(start)]
    assert found, texts
    return found[0]


# --- what a test does ------------------------------------------------------------------------------
def pair_again(site: Site) -> None:
    """As the errors advise: a new token on the host, then the same verb as the first time."""
    ctl("site", "add", site.api_url, given=site.token_new() + "\n")


def restart_service(site: Site) -> None:
    for name in ("serve", "helper"):
        pid = site.pid_of(name)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda p=pid: p not in site.processes(), f"the end of {name}", timeout_s=20)  # type: ignore[misc]
    site.start_site_service()


def kill_sshd(site: Site) -> None:
    """The server and every session: what is alive keeps the old key and the old clock."""
    for pid in site.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text().strip() in {"sshd", "sshd-session"}:
                os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not site.runs("sshd"), "the end of sshd", timeout_s=10)


def start_sshd(site: Site) -> None:
    site.exec(["/usr/sbin/sshd", "-f", "/etc/ssh/sshd_config", "-E", "/var/log/libvirt/sshd.log"])
    wait_until(lambda: site.runs("sshd"), "sshd", timeout_s=10)


def new_host_key(site: Site) -> None:
    kill_sshd(site)
    key = site.path("/etc/ssh/ssh_host_ed25519_key")
    for file in (key, key.with_suffix(".pub")):
        file.unlink()
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], env={"PATH": PATH})
    start_sshd(site)


# --- the faults ------------------------------------------------------------------------------------
def test_wrong_tokens_and_ports_are_told_apart_and_harm_nobody(stage: Stage) -> None:
    a, b = stage.lab.sites["a"], stage.lab.sites["b"]
    seq = newest(stage)
    good = b.token_new()

    def add(url: str, token: str, code: int = 1) -> dict[str, str]:
        answer = ctl("site", "add", url, given=token + "\n", code=code)
        assert isinstance(answer, dict)
        error: dict[str, str] = answer["error"]
        assert token not in json.dumps(answer)
        assert error["what"]
        assert error["fix"]
        return error

    damaged = add(b.api_url, good[:-5])
    assert (damaged["code"], damaged["what"]) == ("TOKEN-INVALID", "The token's text is damaged or not complete")
    raw = base64.urlsafe_b64decode(good.removeprefix("vapor1."))
    forged = "vapor1." + base64.urlsafe_b64encode(raw[:32] + os.urandom(24)).decode()
    unknown = add(b.api_url, forged)
    assert (unknown["code"], unknown["what"]) == ("TOKEN-INVALID", "The site does not know this token")
    other = add(b.api_url, a.token_new())
    assert other["code"] == "CERTIFICATE-CHANGED"
    assert "was not sent" in other["why"]
    made = json.loads(b.exec(["vapor-site", "token", "new", "--json"], user="vapor").stdout)
    b.exec(["vapor-site", "token", "revoke", made["token_id"]], user="vapor")
    assert add(b.api_url, made["token"])["code"] == "TOKEN-REVOKED"
    closed = add(f"{b.address}:7771", good, code=75)
    assert closed["code"] == "SITE-UNREACHABLE"
    assert "nothing listens on that port" in closed["why"]
    assert add(f"{b.address}:{b.ssh_port}", good)["code"] == "NOT-A-VAPOR-SITE"
    assert [s["reachable"] for s in (site_row("site-a"), site_row("site-b"))] == [True, True]
    stage.wait_for_point(NAME, seq + 1, timeout_s=60)  # meanwhile replication goes on
    goes_on(stage)


def test_a_revoked_token(stage: Stage) -> None:
    b = stage.lab.sites["b"]
    site = next(s.site for s in stage.backend.snapshot().sites if s.site.name == "site-b")
    b.exec(["vapor-site", "token", "revoke", site.token_id], user="vapor")
    row = cycle_fails(stage, "TOKEN-REVOKED")
    assert "revoked on the host" in str(row.protection.last_error)
    assert "make a new token on the host and pair the site again" in str(row.protection.last_error)
    seen = site_row("site-b")
    assert (seen["reachable"], seen["error_code"]) == (False, "TOKEN-REVOKED")
    assert "revoked" in banner(stage, "site-b cannot be used: ")
    pair_again(b)
    goes_on(stage)


def test_a_changed_certificate(stage: Stage) -> None:
    a = stage.lab.sites["a"]
    for name in ("cert.pem", "key.pem"):
        a.path(f"/var/lib/vapor/tls/{name}").unlink()
    restart_service(a)
    row = cycle_fails(stage, "CERTIFICATE-CHANGED")
    assert "is not the one that was pinned: nothing was sent" in str(row.protection.last_error)
    assert "vapor-site fingerprint" in str(row.protection.last_error)
    assert site_row("site-a")["error_code"] == "CERTIFICATE-CHANGED"
    assert "is not the one that was pinned" in banner(stage, "site-a cannot be used: ")
    sheet = stage.backend.failover_preview(row.key)
    # The site's API cannot be trusted, its libvirt can: the host's SSH key is still the pinned one.
    assert (sheet.source_reachable, sheet.source_state) == (True, "running"), "it is not silent"
    pair_again(a)
    goes_on(stage)


@pytest.mark.parametrize("name", ["b", "a"])
def test_a_changed_ssh_host_key(stage: Stage, name: str) -> None:
    """Of the target: the source's mover refuses it. Of the source: libvirt's ssh and the console's do."""
    site = stage.lab.sites[name]
    wait_until(lambda: stage.row(NAME).cycle_started_at is None, "the gap between cycles", timeout_s=60, every_s=0.02)
    new_host_key(site)
    wait_until(
        lambda: stage.row(NAME).protection.last_error_code == "HOST-KEY-CHANGED",
        "the engine's error",
        timeout_s=60,
        every_s=0.1,
    )
    row = cycle_fails(stage, "HOST-KEY-CHANGED")
    assert f"The SSH host key of site-{name}" in str(row.protection.last_error)
    assert "is not the one that was pinned: nothing was sent" in str(row.protection.last_error)
    assert "Find out why the host's SSH key changed, then pair the site again" in str(row.protection.last_error)
    pair_again(site)
    assert ctl("pair", "site-a", "site-b") == {"ok": True, "route": "direct"}
    goes_on(stage)


def truth_s(stage: Stage, seq: int | None) -> tuple[float, float]:
    """Between which two ages that point must be, by this console's clock alone: its cycle's begin and end."""
    found = [c for c in stage.backend.cycles(stage.row(NAME).key, 20) if c.seq == seq]
    if not found:  # the cycle is about to be written down
        return 0.0, float("inf")
    since = (datetime.now(UTC) - found[0].started_at).total_seconds()
    return since - found[0].duration_s, since


def settled(stage: Stage) -> ProtectionStatus:
    """The row in the gap between cycles, its age as true as the console's own clock can tell."""
    wait_until(lambda: stage.row(NAME).cycle_started_at is None, "the gap between cycles", timeout_s=60, every_s=0.02)
    row = stage.row(NAME)
    least, most = truth_s(stage, row.last_seq)
    assert most < float("inf")
    assert row.rpo_now_s is not None
    assert least - 1.0 <= row.rpo_now_s <= most + 1.0
    return row


def test_a_skewed_clock_at_the_target(stage: Stage) -> None:
    """Every process of vapor-site on B lives 90 s ahead; then its clock is set right again."""
    b = stage.lab.sites["b"]
    command = b.path("/usr/local/bin/vapor-site")
    honest = command.read_text()
    library = "/usr/local/bin/clock.so"
    build = ["gcc", "-shared", "-fPIC", "-O1", f"-DOFFSET_S={SKEW_S}", "-x", "c", "-", "-o", str(b.path(library))]
    run(build, input=CLOCK_C)
    fake = f"export LD_PRELOAD={library}\n"
    seq = newest(stage)

    def ticking(count: int) -> None:
        """Wait for points; whatever the row says meanwhile, it may never look fresher than it is."""

        def there() -> bool:
            row = stage.row(NAME)
            least, most = truth_s(stage, row.last_seq)
            if row.rpo_now_s is not None:
                assert row.rpo_now_s >= least - 1.0, f"shown {row.rpo_now_s:.1f} s, true {least:.1f} … {most:.1f} s"
            return newest(stage) >= seq + count

        wait_until(there, f"{count} points", timeout_s=90, every_s=0.1)

    def set_clock(text: str) -> None:
        command.write_text(text)
        kill_sshd(b)  # sessions of the mover have the old clock
        restart_service(b)
        start_sshd(b)

    set_clock(honest.replace("exec ", fake + "exec ", 1))
    try:
        ticking(2)
        row = settled(stage)
        assert row.last_point_taken_at is not None
        ahead = (row.last_point_taken_at - datetime.now(UTC)).total_seconds()
        assert SKEW_S - 2 * TARGET_S < ahead < SKEW_S + 1, "the manifest is on the target's clock"
        offset = site_row("site-b")["clock_offset_s"]
        assert isinstance(offset, float)
        assert abs(offset - SKEW_S) < 2
        assert f"The clock of site-b is +{SKEW_S} s off" in banner(stage, "The clock of site-b")
        checks: dict[str, Check] = {}
        probe = stage.backend.probe_site(stage.backend.normalise_url(b.address))
        stage.backend.add_site(probe, b.token_new(), lambda c: checks.update({c.key: c}))
        assert checks["clock"].state == "warning"
        assert checks["clock"].text.startswith(f"+{SKEW_S}.") or checks["clock"].text.startswith(f"+{SKEW_S - 1}.")
        assert "Set the clock there" in checks["clock"].fix
        sheet = stage.backend.failover_preview(row.key)
        least, most = truth_s(stage, sheet.points[0].seq)
        assert sheet.points[0].age_s is not None
        assert least - 3.0 <= sheet.points[0].age_s <= most + 1.0
        goes_on(stage)
        alarms = b.path("/var/lib/vapor/guardian-events.jsonl").read_text().splitlines()
        since = datetime.now(UTC) + timedelta(seconds=SKEW_S - TARGET_S)
        late = [e for e in map(json.loads, alarms) if e["what"] == "rpo-alarm"]
        assert [e for e in late if datetime.fromisoformat(e["at"]) > since] == []
    finally:
        set_clock(honest)
    seq = newest(stage)
    ticking(2)
    goes_on(stage)
    settled(stage)
    assert not [x for x in stage.backend.snapshot().banners if x.key.startswith("clock:")]
