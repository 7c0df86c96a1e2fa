"""``/tokens``: exchange a one-time token, give one's own token back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from vapor_desktop.model.errors import TokenExpired, TokenInvalid
from vapor_desktop.model.wire import ConsoleToken, TokenExchange
from vapor_desktop.site.api.auth import Bearer, Site, bearer, caller
from vapor_desktop.site.enrolments import uuid_text
from vapor_desktop.site.tokens import TokenRecord
from vapor_desktop.site.trust import revoke_token

router = APIRouter(prefix="/tokens", tags=["tokens"])


@router.post("/exchange")
def exchange(
    request: Request, body: TokenExchange, came: Annotated[Bearer, Depends(bearer)], site: Site
) -> ConsoleToken:
    """A one-time token (bearer) for this console's own token. Works once."""
    body = body.model_copy(update={"console_id": uuid_text(body.console_id, "console_id")})
    try:
        return site.tokens.exchange(came.text, body, site.certificate_sha256)
    except (TokenInvalid, TokenExpired):
        request.app.state.failed_tokens.failed(came.address)
        raise


@router.delete("/self", status_code=204)
def give_back(record: Annotated[TokenRecord, Depends(caller)], site: Site) -> None:
    """Revoke the token that asks; with its console's last token goes its SSH key."""
    revoke_token(site.tokens, site.enrolments, record.token_id)
