"""Ending trust in a console: its token, and with its last token its SSH key."""

from __future__ import annotations

from vapor_desktop.site.enrolments import Enrolments
from vapor_desktop.site.tokens import TokenBook, TokenRecord


def revoke_token(tokens: TokenBook, enrolments: Enrolments, token_id: str) -> TokenRecord:
    """Revoke; a console with no living token left loses its SSH key too. Raises NotFound."""
    record = tokens.revoke(token_id)
    if record.console_id and not any(
        other.console_id == record.console_id and other.kind == "console" and other.state == "living"
        for other in tokens.all()
    ):
        enrolments.remove_console(record.console_id)
    return record
