"""One alarm to one target: a mail by SMTP, or a POST to a webhook. Blocking; raises AlarmNotSent with the cause."""

from __future__ import annotations

import base64
import json
import smtplib
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

from vapor_desktop.model.errors import AlarmNotSent, InvalidRequest, VaporError
from vapor_desktop.site.settings import AlarmTargets

TIMEOUT_S = 10.0  # for each answer of a server
CONTINUE, AUTHENTICATED = 334, 235
SUBJECT_CHARS = 140
EXAMPLE = "`vapor-site alarm test` tries it at once"
_SPACE = uuid.UUID("3f0c7f0a-5a0f-4f0e-9a55-7b1c0d9a4c11")  # of our Message-IDs


@dataclass(frozen=True, slots=True)
class Notice:
    """What an alarm says. ``at``: an aware time; ``vm_uuid``: empty when it is about no VM."""

    at: datetime
    vm_uuid: str
    what: str
    why: str

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "at": self.at.isoformat()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Notice:
        """What ``to_json`` wrote."""
        return cls(datetime.fromisoformat(value["at"]), value["vm_uuid"], value["what"], value["why"])


def try_targets(targets: AlarmTargets, site_name: str) -> list[tuple[str, VaporError | None]]:
    """A test to the webhook and to each recipient, now: (target, why it did not get it). Raises InvalidRequest."""
    if not targets.webhook and not targets.mail_to:
        fix = "Set webhook or mail_to under [alarm] in site.toml"
        raise InvalidRequest("The settings name nobody to be told; alarms are in the journal only", fix=fix)
    notice = Notice(datetime.now(UTC), "", "test", f"This is a test of the alarm of site {site_name}")
    tried: list[tuple[str, VaporError | None]] = []
    if targets.webhook:
        try:
            post(targets, site_name, notice)
            tried.append(("webhook", None))
        except AlarmNotSent as error:
            tried.append(("webhook", error))
    if targets.mail_to:
        try:
            refused = mail(targets, site_name, notice, targets.mail_to)
        except AlarmNotSent as error:
            refused = dict.fromkeys(targets.mail_to, error)
        tried += [(address, refused.get(address)) for address in targets.mail_to]
    return tried


def post(targets: AlarmTargets, site_name: str, notice: Notice) -> None:
    """POST it as JSON. Raises AlarmNotSent; never says the URL, which often holds a secret."""
    url = str(targets.webhook)
    fix = "Check `webhook` in site.toml; " + EXAMPLE
    if not url.startswith(("http://", "https://")):
        raise AlarmNotSent("The alarm webhook is not an http(s) URL", fix=fix)
    body = json.dumps({"site": site_name, **notice.to_json()}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - checked above
    what = "The alarm webhook did not take it"
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            answer.read(1)
    except urllib.error.HTTPError as error:
        error.close()
        raise AlarmNotSent(what, why=f"it answered {error.code}", fix=fix) from error
    except (OSError, HTTPException, ValueError) as error:
        raise AlarmNotSent(what, why=_words(error), fix=fix) from error


def mail(
    targets: AlarmTargets, site_name: str, notice: Notice, recipients: tuple[str, ...]
) -> dict[str, AlarmNotSent]:
    """Send it to some of ``mail_to``; returns whom the server refused, and why. AlarmNotSent: nobody has it."""
    try:
        message = _message(targets, site_name, notice)
        server = _server(targets)
        try:
            refused = server.send_message(message, to_addrs=list(recipients))
        finally:
            with suppress(OSError):  # how it says good-bye does not matter: the mail is there or it is not
                server.quit()
            server.close()
    except smtplib.SMTPRecipientsRefused as error:
        refused = error.recipients
    except (OSError, ValueError) as error:  # SMTPException is an OSError
        raise _finding(targets, error) from error
    return {address: _refusal(address, code, said) for address, (code, said) in refused.items()}


def _message(targets: AlarmTargets, site_name: str, notice: Notice) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = f"[vapor {site_name}] {notice.what}: {' '.join(notice.why.split())}"[:SUBJECT_CHARS]
    message["From"] = targets.mail_from
    message["To"] = ", ".join(targets.mail_to)
    message["Date"] = format_datetime(notice.at)
    # The same whenever it is tried, so that a mail whose receipt was lost is not shown twice.
    key = uuid.uuid5(_SPACE, f"{site_name}\n{json.dumps(notice.to_json(), sort_keys=True)}")
    message["Message-ID"] = f"<{key}@vapor.invalid>"
    vm = f"VM {notice.vm_uuid}\n" if notice.vm_uuid else ""
    message.set_content(f"{notice.why}\n\n{notice.what}\n{vm}Site {site_name}\n{notice.at.isoformat()}\n")
    return message


def _server(targets: AlarmTargets) -> smtplib.SMTP:
    """A session that is encrypted and logged in as far as the settings say."""
    host, port = targets.smtp_host, targets.smtp_port
    context = _trust(targets.smtp_ca_file) if targets.smtp_tls != "none" else None
    secret = _password(targets.smtp_password_file) if targets.smtp_password_file else None
    server: smtplib.SMTP
    if targets.smtp_tls == "tls":
        server = smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_S, context=context)
    else:
        server = smtplib.SMTP(host, port, timeout=TIMEOUT_S)
    try:
        if targets.smtp_tls == "starttls":
            server.starttls(context=context)
        if targets.smtp_user and secret is not None:
            _login(server, targets.smtp_user, secret)
    except BaseException:
        server.close()
        raise
    return server


def _login(server: smtplib.SMTP, user: str, password: str) -> None:
    """RFC 4954, PLAIN or LOGIN, in UTF-8: smtplib's knows ASCII only, and its error shows part of the password."""
    server.ehlo_or_helo_if_needed()
    offered = server.esmtp_features.get("auth", "").upper().split()
    if "PLAIN" in offered:
        code, said = server.docmd("AUTH", "PLAIN " + _base64(f"\0{user}\0{password}"))
    elif "LOGIN" in offered:
        code, said = server.docmd("AUTH", "LOGIN " + _base64(user))
        if code == CONTINUE:
            code, said = server.docmd(_base64(password))
    else:
        raise smtplib.SMTPNotSupportedError("it offers no login, or none by PLAIN or LOGIN")
    if code != AUTHENTICATED:
        raise smtplib.SMTPAuthenticationError(code, said)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")


def _trust(authorities: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError as error:  # SSLError too
        what = f"The certificate authorities in {authorities} cannot be used"
        raise AlarmNotSent(what, why=_words(error), fix="Correct smtp_ca_file in site.toml") from error


def password_problem(targets: AlarmTargets) -> AlarmNotSent | None:
    """What is wrong with the password's file, if there is one and something is."""
    try:
        if targets.smtp_password_file:
            _password(targets.smtp_password_file)
    except AlarmNotSent as error:
        return error
    return None


def _password(path: Path) -> str:
    fix = f"`install -m 640 -g vapor /dev/stdin {path}`, then type the password and Ctrl-D"
    try:
        mode = path.stat().st_mode
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AlarmNotSent(
            f"The mail server's password in {path} cannot be read", why=_words(error), fix=fix
        ) from error
    if mode & 0o007:
        raise AlarmNotSent(f"Everybody on this host can read the password in {path}", fix=f"`chmod o= {path}`")
    if not lines or not lines[0]:
        raise AlarmNotSent(f"The password's file {path} is empty", fix=fix)
    return lines[0]


def _finding(targets: AlarmTargets, error: Exception) -> VaporError:
    """What went wrong, by the error's class and code."""
    server = f"{targets.smtp_host} port {targets.smtp_port}"
    why = _words(error)
    match error:
        case smtplib.SMTPAuthenticationError():
            what, fix = f"The mail server {server} refused the user or password", "Correct smtp_user and its file"
        case smtplib.SMTPSenderRefused():
            what, fix = f"The mail server {server} refused the sender {targets.mail_from}", "Correct mail_from"
        case smtplib.SMTPServerDisconnected():
            what, fix = f"The mail server {server} ended the connection", "Is it a mail server, and smtp_tls right?"
        case smtplib.SMTPResponseException():
            what, fix = f"The mail server {server} refused the mail", "Look at its log"
        case smtplib.SMTPException():
            what = f"The mail server {server} lacks what the settings ask for"
            fix = "Does it offer STARTTLS and a login on this port? Else correct smtp_tls and smtp_port"
        case ssl.SSLCertVerificationError():
            what = f"The mail server {server} has a certificate that is not trusted"
            fix = "Set smtp_ca_file, and smtp_host to a name in the certificate"
        case ssl.SSLError():
            what, fix = f"The mail server {server} does not speak TLS here", "Correct smtp_tls and smtp_port"
        case OSError():
            what, fix = f"The mail server {server} does not answer", "Correct smtp_host and smtp_port, or start it"
        case _:
            what, fix = "The mail cannot be written", "Correct mail_from and mail_to"
    return AlarmNotSent(what, why=why, fix=f"{fix} in site.toml; {EXAMPLE}")


def _refusal(address: str, code: int, said: bytes) -> AlarmNotSent:
    words = f"{code} {said.decode(errors='replace')}"
    return AlarmNotSent(f"The mail server refused the recipient {address}", why=words, fix="Correct mail_to")


def _words(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        said = error.smtp_error
        return f"{error.smtp_code} {said.decode(errors='replace') if isinstance(said, bytes) else said}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return _words(error.reason)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
