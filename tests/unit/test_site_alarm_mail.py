"""The alarm's mail against a real SMTP server on loopback: plain, STARTTLS, TLS, login; and every way it can fail."""

from __future__ import annotations

import json
import logging
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from site_server import free_port
from tls_server import make_certificate

from vapor_desktop.model.errors import AlarmNotSent, InvalidRequest
from vapor_desktop.model.manifest import Epoch, Manifest, PointEntry
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.wire import ReplicaView
from vapor_desktop.site.alarm_targets import Notice, mail, try_targets
from vapor_desktop.site.deliveries import Lane, load, pause_s
from vapor_desktop.site.doctor import run_checks
from vapor_desktop.site.rpo_alarm import RpoAlarm
from vapor_desktop.site.settings import AlarmTargets, SiteSettings, load_settings
from vapor_desktop.site.site_events import EventLog, event

VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"
USER, PASSWORD = "vapor@example.org", "Tür-gewölbe 7"
NOTICE = Notice(datetime(2026, 11, 22, 12, tzinfo=UTC), VM, "rpo-alarm", "web is 61 s old here, promised are 60 s")


@dataclass
class Inbox:
    """aiosmtpd's handler: keeps what came; refuses whom it is told to."""

    refused: dict[str, str] = field(default_factory=dict)
    mails: list[Envelope] = field(default_factory=list)
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    encrypted: list[bool] = field(default_factory=list)

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:
        self.mails.append(envelope)
        self.encrypted.append(server.transport.get_extra_info("ssl_object") is not None)
        self.came.release()
        return "250 kept"

    def wait(self) -> Message:
        assert self.came.acquire(timeout=10), "no mail came"
        content = self.mails[-1].content
        assert isinstance(content, bytes)
        return message_from_bytes(content)


def _login(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any) -> AuthResult:
    good = isinstance(data, LoginPassword) and data == LoginPassword(USER.encode(), PASSWORD.encode())
    return AuthResult(success=good, handled=False)


@contextmanager
def mail_server(inbox: Inbox, port: int | None = None, **more: Any) -> Iterator[int]:
    controller = Controller(inbox, hostname="127.0.0.1", port=port or free_port(), **more)
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context, and the file by which a client trusts it."""
    certificate = make_certificate(tmp_path, "localhost", names=("localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.path)
    return context, certificate.path


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    path.chmod(0o640)
    return path


def targets(port: int, **more: Any) -> AlarmTargets:
    values = {"mail_to": ("ops@example.org",), "mail_from": USER, "smtp_host": "localhost", "smtp_port": port, **more}
    return AlarmTargets.model_validate(values)


def strict(context: ssl.SSLContext) -> dict[str, Any]:
    """A submission port: nothing without STARTTLS and a login."""
    return {
        "tls_context": context,
        "require_starttls": True,
        "authenticator": _login,
        "auth_required": True,
    }


# --- one mail ------------------------------------------------------------------------------------
def test_a_plain_mail_says_what_a_person_needs() -> None:
    inbox = Inbox()
    with mail_server(inbox) as port:
        assert mail(targets(port), "alpha", NOTICE, ("ops@example.org",)) == {}
    message = inbox.wait()
    assert message["Subject"] == "[vapor alpha] rpo-alarm: web is 61 s old here, promised are 60 s"
    assert (message["From"], message["To"]) == (USER, "ops@example.org")
    body = message.get_payload()
    assert all(word in body for word in (NOTICE.why, VM, "alpha", "2026-11-22T12:00:00+00:00"))
    assert inbox.encrypted == [False]


@pytest.mark.parametrize("left_out", [[], ["PLAIN"]])
def test_starttls_and_login(tls: tuple[ssl.SSLContext, Path], password: Path, left_out: list[str]) -> None:
    context, trusted = tls
    inbox = Inbox()
    with mail_server(inbox, **strict(context), auth_exclude_mechanism=left_out) as port:
        settings = targets(
            port, smtp_tls="starttls", smtp_ca_file=trusted, smtp_user=USER, smtp_password_file=password
        )
        mail(settings, "alpha", NOTICE, settings.mail_to)
    assert inbox.encrypted == [True]


def test_tls_from_the_first_byte(tls: tuple[ssl.SSLContext, Path]) -> None:
    context, trusted = tls
    inbox = Inbox()
    with mail_server(inbox, ssl_context=context) as port:
        settings = targets(port, smtp_tls="tls", smtp_ca_file=trusted)
        mail(settings, "alpha", NOTICE, settings.mail_to)
    assert inbox.encrypted == [True]


def test_the_same_notice_is_the_same_message() -> None:
    inbox = Inbox()
    with mail_server(inbox) as port:
        for notice in (NOTICE, NOTICE, Notice(NOTICE.at + timedelta(1), VM, "rpo-alarm", NOTICE.why)):
            mail(targets(port), "alpha", notice, ("ops@example.org",))
    ids = [message_from_bytes(m.content)["Message-ID"] for m in inbox.mails if isinstance(m.content, bytes)]
    assert ids[0] == ids[1] != ids[2]


# --- findings ------------------------------------------------------------------------------------
def finding(settings: AlarmTargets) -> AlarmNotSent:
    with pytest.raises(AlarmNotSent) as caught:
        mail(settings, "alpha", NOTICE, settings.mail_to)
    assert caught.value.fix
    assert PASSWORD not in str(caught.value.to_wire())
    return caught.value


def test_a_wrong_password_is_named(tls: tuple[ssl.SSLContext, Path], password: Path) -> None:
    context, trusted = tls
    password.write_text("wrong\n")
    inbox = Inbox()
    with mail_server(inbox, **strict(context)) as port:
        error = finding(
            targets(port, smtp_tls="starttls", smtp_ca_file=trusted, smtp_user=USER, smtp_password_file=password)
        )
    assert "refused the user or password" in error.what
    assert error.why.startswith("535")
    assert inbox.mails == []


def test_a_server_that_nobody_runs_is_named() -> None:
    error = finding(targets(free_port()))
    assert "does not answer" in error.what
    assert error.why == "Connection refused"


def test_a_name_that_is_none_is_named() -> None:
    error = finding(targets(25, smtp_host="mail.invalid"))
    assert "mail.invalid port 25 does not answer" in error.what


def test_a_certificate_that_is_not_trusted_gets_no_mail(tls: tuple[ssl.SSLContext, Path]) -> None:
    inbox = Inbox()
    with mail_server(inbox, tls_context=tls[0]) as port:
        error = finding(targets(port, smtp_tls="starttls"))
        assert "not trusted" in error.what
        assert "smtp_ca_file" in error.fix
        error = finding(targets(port, smtp_tls="starttls", smtp_ca_file=tls[1], smtp_host="127.0.0.1"))
        assert "not trusted" in error.what, "a certificate of another name"
    assert inbox.mails == []


def test_a_server_without_starttls_gets_no_password(password: Path) -> None:
    inbox = Inbox()
    with mail_server(inbox) as port:
        error = finding(targets(port, smtp_tls="starttls", smtp_user=USER, smtp_password_file=password))
        assert "lacks what the settings ask for" in error.what
        error = finding(targets(port, smtp_tls="tls"))
        assert "does not speak TLS" in error.what
        error = finding(targets(port, smtp_user=USER, smtp_password_file=password))
        assert "lacks what the settings ask for" in error.what, "it offers no login"
    assert inbox.mails == []


def test_a_refused_sender_is_named() -> None:
    class Picky(Inbox):
        async def handle_MAIL(self, *_args: object) -> str:
            return "550 not from here"

    with mail_server(Picky()) as port:
        error = finding(targets(port))
    assert f"refused the sender {USER}" in error.what


def test_a_refused_recipient_keeps_nobody_else_from_it() -> None:
    inbox = Inbox(refused={"gone@example.org": "550 5.1.1 no such user"})
    settings = {"mail_to": ("ops@example.org", "gone@example.org")}
    with mail_server(inbox) as port:
        left = mail(targets(port, **settings), "alpha", NOTICE, settings["mail_to"])
        assert [(a, e.what, e.why) for a, e in left.items()] == [
            (
                "gone@example.org",
                "The mail server refused the recipient gone@example.org",
                "550 5.1.1 no such user",
            )
        ]
        assert inbox.mails[0].rcpt_tos == ["ops@example.org"]
        assert set(mail(targets(port, **settings), "alpha", NOTICE, ("gone@example.org",))) == {"gone@example.org"}
    assert len(inbox.mails) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.unlink(), "cannot be read"),
        (lambda p: p.write_text(""), "is empty"),
        (lambda p: p.chmod(0o644), "Everybody on this host can read the password"),
    ],
)
def test_a_password_file_that_does_not_fit_is_named(
    password: Path, make: Callable[[Path], object], words: str
) -> None:
    make(password)
    error = finding(targets(free_port(), smtp_user=USER, smtp_password_file=password))
    assert words in error.what
    assert str(password) in error.what


@pytest.mark.parametrize(
    "alarm",
    [
        'smtp_user = "me"\n',
        'smtp_password_file = "/x"\n',
        'smtp_host = "mail.example.org"\nsmtp_user = "me"\nsmtp_password_file = "/x"\n',
        'smtp_password = "secret"\n',
        'smtp_tls = "yes"\n',
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alarm: str) -> None:
    (tmp_path / "s.toml").write_text(f"[alarm]\n{alarm}")
    monkeypatch.setenv("VAPOR_SITE_CONFIG", str(tmp_path / "s.toml"))
    with pytest.raises(InvalidRequest, match="alarm"):
        load_settings()


# --- the alarm itself: never held up, tried again, once ----------------------------------------------
def late(vm: str, age_s: float) -> ReplicaView:
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    manifest = Manifest(
        vm_uuid=vm, vm_name="web", protection_id="p", source_site="a", target_site="b",
        epoch=Epoch(number=1, owner="a"), policy=Policy(rpo_target_s=60),
        points=(PointEntry(seq=1, taken_at=at, current_as_of=at, files={"vda": "x.qcow2"}),),
    )  # fmt: skip
    return ReplicaView(manifest=manifest, root="/r", used_bytes=0, incoming=None, files_in_chain=1, valid=True)


def test_an_episode_is_one_mail_however_often_it_is_looked_at(tmp_path: Path) -> None:
    inbox, views = Inbox(), [late(VM, 61)]
    with mail_server(inbox) as port:
        events = EventLog(tmp_path / "e", targets(port), "alpha")
        alarm = RpoAlarm(lambda: views, events, tmp_path / "alarms.json", 0.01)
        alarm.start()
        assert "rpo-alarm: web is 61 s old" in inbox.wait()["Subject"]
        views[:] = [late(VM, 5)]
        assert "rpo-recovered" in inbox.wait()["Subject"]
        alarm.stop()
        events.close()
    assert len(inbox.mails) == 2


def test_a_server_that_says_nothing_holds_nothing_up(tmp_path: Path) -> None:
    """It accepts and is silent. The alarm goes on looking, the journal and the webhook's lane too."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        events = EventLog(tmp_path / "e", targets(silent.getsockname()[1], smtp_host="127.0.0.1"), "alpha")
        started = time.monotonic()
        alarm = RpoAlarm(lambda: [late(VM, 61)], events, tmp_path / "alarms.json", 60)
        alarm.look()
        events.add(event(VM, "thawed", "another"))
        assert time.monotonic() - started < 2
        assert [e.what for e in events.since(None)] == ["rpo-alarm", "thawed"]
        waiting, _ = load(tmp_path / "alarm-mail.json")
        assert [w.notice.what for w in waiting] == ["rpo-alarm", "thawed"]
        connection, _ = silent.accept()
        connection.close()  # the mail is told at last, so that the test need not wait for its time-out
    events.close()


def of_now() -> Notice:
    return Notice(datetime.now(UTC), VM, "rpo-alarm", NOTICE.why)


class Rig:
    """A mail lane with short pauses to a server that may not be there yet."""

    def __init__(self, tmp_path: Path, *recipients: str) -> None:
        self.file, self.port = tmp_path / "alarm-mail.json", free_port()
        self.recipients = recipients or ("ops@example.org",)
        self.lane = self.open()

    def open(self) -> Lane:
        settings = targets(self.port, mail_to=self.recipients, smtp_host="127.0.0.1")
        return Lane(
            "mail", self.file, self.recipients, lambda n, to: mail(settings, "alpha", n, to), lambda _failures: 0.02
        )

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, load(self.file)
            time.sleep(0.005)

    def tried(self, times: int) -> bool:
        return any(w.tried >= times for w in self.lane.waiting)


def test_what_was_not_sent_is_tried_again_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vapor.alarm")
    rig, inbox = Rig(tmp_path), Inbox()
    rig.lane.put(of_now())
    rig.until(lambda: rig.tried(5))
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    assert "does not answer: Connection refused" in caplog.text
    assert "It is tried again" in caplog.text
    with mail_server(inbox, rig.port):
        inbox.wait()
        rig.until(lambda: not rig.lane.waiting and load(rig.file)[1] is None)
    rig.lane.close()
    assert len(inbox.mails) == 1
    assert [r.levelname for r in caplog.records] == ["ERROR", "WARNING"]
    assert "delivered again" in caplog.text


def test_a_restart_forgets_no_alarm_and_repeats_none(tmp_path: Path) -> None:
    rig, inbox = Rig(tmp_path), Inbox()
    rig.lane.put(of_now())
    rig.until(lambda: rig.tried(1))
    rig.lane.close()
    with mail_server(inbox, rig.port):
        again = rig.open()
        inbox.wait()
        rig.until(lambda: not again.waiting)
        again.close()
        rig.open().close()
    assert len(inbox.mails) == 1


def test_each_recipient_gets_it_once(tmp_path: Path) -> None:
    rig, inbox = Rig(tmp_path, "ops@example.org", "boss@example.org"), Inbox()
    inbox.refused["boss@example.org"] = "451 4.7.1 come again later"
    with mail_server(inbox, rig.port):
        rig.lane.put(of_now())
        rig.until(lambda: rig.tried(3))
        assert [m.rcpt_tos for m in inbox.mails] == [["ops@example.org"]]
        rig.lane.put(of_now())  # not behind the other's trouble
        rig.until(lambda: len(inbox.mails) == 2)
        inbox.refused.clear()
        rig.until(lambda: not rig.lane.waiting)
        rig.lane.close()
    assert [m.rcpt_tos for m in inbox.mails] == [["ops@example.org"]] * 2 + [["boss@example.org"]] * 2


def test_an_alarm_is_given_up_after_a_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(tmp_path)
    rig.lane.put(Notice(datetime.now(UTC) - timedelta(days=1, seconds=1), VM, "rpo-alarm", "old"))
    rig.until(lambda: not rig.lane.waiting)
    rig.lane.close()
    assert "given up after a day: old" in caplog.text


def test_pauses_grow_and_end_growing() -> None:
    assert [pause_s(n) for n in (1, 2, 3, 50, 10**9)] == [5, 10, 20, 600, 600]


# --- the administrator's verbs ---------------------------------------------------------------------
def site_file(tmp_path: Path, alarm: str) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(f'name = "alpha"\nstate_dir = "{tmp_path}/state"\n[alarm]\n{alarm}')
    return path


def vapor_site(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vapor_desktop.site.dispatch", *words],
        env={**os.environ, "VAPOR_SITE_CONFIG": str(config)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_alarm_test_sends_now_and_tells_of_each(tmp_path: Path) -> None:
    inbox = Inbox(refused={"gone@example.org": "550 no such user"})
    with mail_server(inbox) as port:
        config = site_file(
            tmp_path,
            f'mail_to = ["ops@example.org", "gone@example.org"]\nsmtp_port = {port}\n'
            f'webhook = "http://127.0.0.1:{free_port()}/"\n',
        )
        done = vapor_site(config, "alarm", "test", "--json")
    said = {row["target"]: row["error"] and row["error"]["why"] for row in json.loads(done.stdout)}
    assert said == {
        "webhook": "Connection refused",
        "ops@example.org": None,
        "gone@example.org": "550 no such user",
    }
    assert done.returncode == 1
    assert "[vapor alpha] test: " in inbox.wait()["Subject"]
    assert not (tmp_path / "state" / "alarm-mail.json").exists(), "a test does not wait for a better day"


def test_alarm_test_with_a_login_never_shows_the_password(
    tmp_path: Path, tls: tuple[ssl.SSLContext, Path], password: Path
) -> None:
    inbox = Inbox()
    with mail_server(inbox, **strict(tls[0])) as port:
        config = site_file(
            tmp_path,
            f'mail_to = ["ops@example.org"]\nsmtp_port = {port}\nsmtp_tls = "starttls"\nsmtp_ca_file = "{tls[1]}"\n'
            f'smtp_user = "{USER}"\nsmtp_password_file = "{password}"\n',
        )
        done = vapor_site(config, "alarm", "test")
        assert (done.returncode, done.stdout.split()) == (0, ["ok", "ops@example.org", "sent"]), done.stderr
        password.write_text("wrong-secret\n")
        refused = vapor_site(config, "alarm", "test")
    assert refused.returncode == 1
    assert "BAD " in refused.stdout
    assert "refused the user or password: 535" in refused.stdout
    assert not [w for w in (PASSWORD, "wrong-secret") if w in refused.stdout + refused.stderr + done.stdout]


def test_alarm_test_without_a_target_says_so(tmp_path: Path) -> None:
    done = vapor_site(site_file(tmp_path, ""), "alarm", "test")
    assert done.returncode == 1
    assert "name nobody to be told" in done.stderr
    with pytest.raises(InvalidRequest):
        try_targets(AlarmTargets(), "alpha")


def test_the_doctor_tells_what_waits(tmp_path: Path, password: Path) -> None:
    port = free_port()
    settings = SiteSettings(
        state_dir=tmp_path, alarm=targets(port, smtp_host="127.0.0.1", smtp_user=USER, smtp_password_file=password)
    )

    def check() -> tuple[bool, str, str]:
        [found] = [c for c in run_checks(settings, lambda: ("9.0.0", "7.2.0")) if c.name == "alarm mail"]
        return found.ok, found.found, found.fix

    assert check() == (True, f"to ops@example.org by 127.0.0.1 port {port}", "")
    events = EventLog(settings.events_file, settings.alarm, "alpha")
    events.add(event(VM, "rpo-alarm", "too old"))
    events.close()
    ok, found, fix = check()
    assert not ok
    assert found.startswith("1 not delivered, since 20")
    assert "does not answer: Connection refused" in found
    assert "smtp_host" in fix
    password.chmod(0o604)
    assert stat.S_IMODE(password.stat().st_mode) == 0o604
    assert "Everybody on this host can read" in check()[1]
