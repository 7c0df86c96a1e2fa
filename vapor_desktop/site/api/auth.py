"""Who is asking: bearer tokens, scopes, the limit on failures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from vapor_desktop.model.errors import NotAllowed, TokenInvalid, TokenRevoked
from vapor_desktop.model.wire import Scope
from vapor_desktop.site.api.limits import FailedTokens
from vapor_desktop.site.services import Services
from vapor_desktop.site.tokens import TokenRecord

_RANK = {Scope.VIEW: 0, Scope.OPERATE: 1, Scope.ADMIN: 2}
_bearer = HTTPBearer(auto_error=False, description="One-time token (exchange only) or console token")


@dataclass(frozen=True, slots=True)
class Bearer:
    """The token that came, not yet looked at, and where it came from."""

    text: str
    address: str


async def services(request: Request) -> Services:
    """The process's services."""
    found: Services = request.app.state.services
    return found


async def bearer(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Bearer:
    """The bearer token. Raises TokenInvalid without one, TooManyAttempts when its address failed too often."""
    if credentials is None:
        raise TokenInvalid("This needs a token")
    address = request.client.host if request.client else ""
    limit: FailedTokens = request.app.state.failed_tokens
    limit.check(address, credentials.credentials)
    return Bearer(credentials.credentials, address)


def caller(
    request: Request, came: Annotated[Bearer, Depends(bearer)], site: Annotated[Services, Depends(services)]
) -> TokenRecord:
    """The living console token. Raises TokenInvalid, TokenExpired, TokenRevoked, TooManyAttempts."""
    limit: FailedTokens = request.app.state.failed_tokens
    try:
        record = site.tokens.authenticate(came.text)
    except TokenRevoked:
        raise  # it was right once: no guess, so it does not count as one
    except TokenInvalid:
        limit.failed(came.address)
        raise
    limit.good(came.address, came.text)
    return record


def needs(scope: Scope) -> Callable[[TokenRecord], Awaitable[TokenRecord]]:
    """A dependency: the caller's token reaches at least that scope. Raises NotAllowed."""

    async def checked(record: Annotated[TokenRecord, Depends(caller)]) -> TokenRecord:
        if _RANK[record.scope] < _RANK[scope]:
            raise NotAllowed(
                f"This console's token may only {record.scope.value} here",
                fix=f"Pair again with a token made by `vapor-site token new --scope {scope.value}`",
                scope=record.scope.value,
                needed=scope.value,
            )
        return record

    return checked


Site = Annotated[Services, Depends(services)]
Viewer = Annotated[TokenRecord, Depends(needs(Scope.VIEW))]
Operator = Annotated[TokenRecord, Depends(needs(Scope.OPERATE))]
Admin = Annotated[TokenRecord, Depends(needs(Scope.ADMIN))]
