"""Whether a port takes a connection, as seen from this host: recovery plans and drills wait for guests so."""

from __future__ import annotations

import ipaddress
import socket

from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.wire import TcpProbe, TcpProbed


def probe(request: TcpProbe) -> TcpProbed:
    """Connect and hang up; nothing is sent. Raises InvalidRequest for what is no address."""
    try:
        address = str(ipaddress.ip_address(request.address))
    except ValueError as error:
        raise InvalidRequest(f"“{request.address}” is no IP address") from error
    try:
        socket.create_connection((address, request.port), timeout=request.timeout_s).close()
    except TimeoutError:
        return TcpProbed(open=False, why=f"no answer within {request.timeout_s:g} s")
    except OSError as error:
        return TcpProbed(open=False, why=error.strerror or str(error))
    return TcpProbed(open=True)
