"""The audit log: every enrolment, exchange, revocation and lease takeover, one durable JSON line each."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vapor_desktop.site.statefile import append_json, make_dir


class AuditLog:
    """Appends to one file. Never given a secret: token ids, not tokens; public keys, not private ones."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, act: str, **facts: Any) -> None:
        """Record the act. Raises OSError when it cannot be made durable: what is not recorded is not done."""
        make_dir(self._path.parent)
        append_json(self._path, {"at": datetime.now(UTC).isoformat(), "act": act, **facts})
