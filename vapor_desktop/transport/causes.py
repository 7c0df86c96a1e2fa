"""Why a site was not reached, told from the kind and number of an error, never from its text."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

from vapor_desktop.model.errors import CertificateChanged, NotAVaporSite, SiteUnreachable, VaporError

_WHY = {
    errno.ECONNREFUSED: "the connection was refused: nothing listens on that port",
    errno.EHOSTUNREACH: "there is no route to that host",
    errno.ENETUNREACH: "there is no route to that network",
    errno.ETIMEDOUT: "the connection timed out",
    errno.ECONNRESET: "the connection was reset by the other side",
    errno.EPIPE: "the connection was closed by the other side",
    errno.ECONNABORTED: "the connection was broken off",
    errno.EACCES: "a firewall on this machine refused the connection",
    errno.EPERM: "a firewall on this machine refused the connection",
}


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, outermost first."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def why(error: BaseException) -> str:
    """One clause for a person."""
    for cause in chain(error):
        if isinstance(cause, socket.gaierror):
            return "that name is not known"
        if isinstance(cause, TimeoutError):
            return _WHY[errno.ETIMEDOUT]
        if isinstance(cause, OSError) and cause.errno in _WHY:
            return _WHY[cause.errno]
    return f"the connection broke off ({type(error).__name__})"


def connect_error(place: str, error: BaseException) -> VaporError:
    """Of a TCP or TLS connection to ``place`` that did not come about.

    CertificateChanged, NotAVaporSite (something that does not speak TLS) or SiteUnreachable.
    """
    for cause in chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CertificateChanged(
                f"The certificate at {place} is not the one that was pinned",
                why="nothing was sent",
                verify_code=cause.verify_code,
            )
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return NotAVaporSite(
                f"What answers at {place} is not a Vapor site",
                why="it does not speak TLS as one",
                reason=cause.reason,
            )
    return SiteUnreachable(f"{place} cannot be reached", why=why(error))
