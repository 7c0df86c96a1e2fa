"""Tokens of the API: one-time tokens an administrator makes on the host, console tokens they turn into.

Text: ``vapor1.`` + base64url(SHA-256 of the DER certificate, 32 bytes + 24 random bytes). The file holds
SHA-256 hashes of whole texts (192 random bits need no slow hash). Compared in constant time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from vapor_desktop.model.errors import NotFound, TokenExpired, TokenInvalid, TokenRevoked
from vapor_desktop.model.wire import ConsoleToken, Scope, TokenExchange
from vapor_desktop.site.audit import AuditLog
from vapor_desktop.site.statefile import locked, make_dir, read_json, write_json

PREFIX = "vapor1."
RANDOM_BYTES = 24
ONE_TIME_TTL_S = 15 * 60.0
CONSOLE_TTL_DAYS = 365
KEEP_DEAD_DAYS = 30  # so that a late attempt is told "expired", not "wrong"

Kind = Literal["one-time", "console"]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token at rest. ``token_id`` is public; the text is not here."""

    token_id: str
    kind: Kind
    hash: str
    scope: Scope
    made_at: datetime
    expires_at: datetime | None
    used_at: datetime | None = None
    revoked_at: datetime | None = None
    console_id: str = ""
    console_name: str = ""

    @property
    def state(self) -> str:
        """living | used | revoked | expired."""
        if self.revoked_at is not None:
            return "revoked"
        if self.used_at is not None:
            return "used"
        if self.expires_at is not None and self.expires_at <= datetime.now(UTC):
            return "expired"
        return "living"


def token_text(certificate_sha256: bytes) -> str:
    """A new token's text."""
    return PREFIX + base64.urlsafe_b64encode(certificate_sha256 + secrets.token_bytes(RANDOM_BYTES)).decode()


def split_token(text: str) -> tuple[bytes, bytes]:
    """(certificate SHA-256, random part). Raises TokenInvalid when the text is damaged."""
    try:
        raw = base64.b64decode(text.strip().removeprefix(PREFIX), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenInvalid("The token's text is damaged") from error
    if not text.strip().startswith(PREFIX) or len(raw) != 32 + RANDOM_BYTES:
        raise TokenInvalid("The token's text is damaged")
    return raw[:32], raw[32:]


class TokenBook:
    """``tokens.json``. Safe across processes (the admin's CLI and ``serve``)."""

    def __init__(self, path: Path, audit: AuditLog) -> None:
        self._path = path
        self._audit = audit

    def new_one_time(self, certificate_sha256: bytes, scope: Scope, ttl_s: float) -> tuple[str, TokenRecord]:
        """(text, record). The text is shown once and kept nowhere."""
        text = token_text(certificate_sha256)
        now = datetime.now(UTC)
        record = TokenRecord(_new_id(), "one-time", _hash(text), scope, now, now + timedelta(seconds=ttl_s))
        self._audit("token-new", token_id=record.token_id, scope=scope, expires_at=str(record.expires_at))
        with self._writing() as records:
            records.append(record)
        return text, record

    def exchange(self, text: str, request: TokenExchange, certificate_sha256: bytes) -> ConsoleToken:
        """Turn a living one-time token into a console token, once.

        Raises TokenInvalid (wrong, used, or a console token), TokenExpired, TokenRevoked.
        """
        split_token(text)
        now = datetime.now(UTC)
        new = token_text(certificate_sha256)
        with self._writing() as records:
            index, old = _find(records, text, "one-time")
            _require_living(old)
            record = TokenRecord(
                token_id=_new_id(),
                kind="console",
                hash=_hash(new),
                scope=old.scope,
                made_at=now,
                expires_at=now + timedelta(days=CONSOLE_TTL_DAYS),
                console_id=request.console_id,
                console_name=request.console_name,
            )
            self._audit(
                "token-exchange",
                token_id=old.token_id,
                new_token_id=record.token_id,
                console_id=request.console_id,
                console_name=request.console_name,
                scope=old.scope,
            )
            records[index] = _replace(old, used_at=now)
            records.append(record)
        return ConsoleToken(token=new, token_id=record.token_id, scope=record.scope, expires_at=record.expires_at)

    def authenticate(self, text: str) -> TokenRecord:
        """The living console token of that text. Raises TokenInvalid, TokenExpired, TokenRevoked."""
        split_token(text)
        _, record = _find(self.all(), text, "console")
        _require_living(record)
        return record

    def revoke(self, token_id: str) -> TokenRecord:
        """End a token. Idempotent. Raises NotFound for an unknown id."""
        with self._writing() as records:
            for index, record in enumerate(records):
                if record.token_id == token_id:
                    if record.revoked_at is None:
                        self._audit("token-revoke", token_id=token_id, console_id=record.console_id)
                        records[index] = _replace(record, revoked_at=datetime.now(UTC))
                    return records[index]
        raise NotFound(f"There is no token {token_id}", fix="`vapor-site token list` shows them")

    def all(self) -> list[TokenRecord]:
        """Every token on file, oldest first."""
        return [_from_json(item) for item in read_json(self._path) or []]

    def _writing(self) -> _Writing:
        return _Writing(self._path, self)


class _Writing:
    """``with`` the file locked: the list of records, written back when the block ends without an error."""

    def __init__(self, path: Path, book: TokenBook) -> None:
        make_dir(path.parent)
        self._path = path
        self._book = book
        self._lock = locked(path)

    def __enter__(self) -> list[TokenRecord]:
        self._lock.__enter__()
        self._records = self._book.all()
        return self._records

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        try:
            if kind is None:
                oldest = datetime.now(UTC) - timedelta(days=KEEP_DEAD_DAYS)
                living = [record for record in self._records if not _dead_since(record, oldest)]
                write_json(self._path, [_to_json(record) for record in living], 0o600)
        finally:
            self._lock.__exit__(None, None, None)


def _new_id() -> str:
    return secrets.token_hex(4)


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()


def _find(records: list[TokenRecord], text: str, kind: Kind) -> tuple[int, TokenRecord]:
    """Looks at every record whatever it finds, so that time tells nothing."""
    wanted = _hash(text)
    found: tuple[int, TokenRecord] | None = None
    for index, record in enumerate(records):
        if hmac.compare_digest(record.hash, wanted) and record.kind == kind:
            found = index, record
    if found is None:
        raise TokenInvalid("The site does not know this token")
    return found


def _require_living(record: TokenRecord) -> None:
    state = record.state
    if state == "revoked":
        raise TokenRevoked("This token was revoked on the host", token_id=record.token_id)
    if state == "used":
        raise TokenInvalid("This one-time token was already used", token_id=record.token_id)
    if state == "expired":
        raise TokenExpired("This token has expired", token_id=record.token_id, expires_at=str(record.expires_at))


def _dead_since(record: TokenRecord, oldest: datetime) -> bool:
    ends = [at for at in (record.used_at, record.revoked_at, record.expires_at) if at is not None]
    return bool(ends) and min(ends) < oldest


def _replace(record: TokenRecord, **changes: datetime) -> TokenRecord:
    return _from_json({**_to_json(record), **{key: value.isoformat() for key, value in changes.items()}})


def _to_json(record: TokenRecord) -> dict[str, Any]:
    return {
        "token_id": record.token_id,
        "kind": record.kind,
        "hash": record.hash,
        "scope": record.scope.value,
        **{key: _iso(getattr(record, key)) for key in ("made_at", "expires_at", "used_at", "revoked_at")},
        "console_id": record.console_id,
        "console_name": record.console_name,
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _from_json(item: dict[str, Any]) -> TokenRecord:
    times = {
        key: None if item.get(key) is None else datetime.fromisoformat(item[key])
        for key in ("expires_at", "used_at", "revoked_at")
    }
    return TokenRecord(
        token_id=item["token_id"],
        kind=item["kind"],
        hash=item["hash"],
        scope=Scope(item["scope"]),
        made_at=datetime.fromisoformat(item["made_at"]),
        console_id=item.get("console_id", ""),
        console_name=item.get("console_name", ""),
        **times,
    )
