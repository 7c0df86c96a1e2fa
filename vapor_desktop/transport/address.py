"""What a person typed or pasted, as the URL of a site's API."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.wire import API_PORT, API_VERSION

API_PATH = f"/api/v{API_VERSION}"
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_EXAMPLE = "Write it like https://192.168.122.129:7770/api/v1, or just the host's name or address"


def normalise_url(text: str) -> str:
    """``https://HOST:PORT/api/v1`` from a bare host, host:port, IPv6 address or URL.

    Raises InvalidRequest saying what does not fit.
    """
    typed = text.strip().strip("<>\"'").strip()
    if not typed:
        raise _unfit("There is no address")
    if typed.startswith("vapor1."):
        raise _unfit("That is a token, not an address", echo=False)
    if re.search(r"[\s\x00-\x1f\x7f]", typed):
        raise _unfit("An address has no spaces in it")
    parts = _split(typed)
    _refuse_extras(parts)
    host = _host(parts)
    try:
        port = API_PORT if parts.port is None else parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise _unfit("The port must be a number from 1 to 65535")
    return f"https://{host}:{port}{API_PATH}"


def host_of(api_url: str) -> tuple[str, int]:
    """(host without brackets, port) of a normalised URL."""
    parts = urlsplit(api_url)
    return parts.hostname or "", parts.port or API_PORT


def _split(typed: str) -> SplitResult:
    if "://" not in typed:
        bare = typed.partition("/")[0]
        if _is_ipv6(bare):
            typed = f"[{bare}]{typed[len(bare) :]}"
        typed = f"https://{typed}"
    try:
        return urlsplit(typed)
    except ValueError as error:  # brackets, or characters that look like others
        raise _unfit("That cannot be read as an address; an IPv6 address stands in [ ]") from error


def _refuse_extras(parts: SplitResult) -> None:
    if parts.scheme.lower() != "https":
        raise _unfit(f"A site is reached by https, not by “{parts.scheme}”")
    if parts.username is not None or parts.password is not None:
        raise _unfit("No user or password belongs into the address; the token comes next", echo=False)
    if parts.query or parts.fragment:
        raise _unfit("The address ends with its path; “?” and “#” do not belong there")
    if parts.path.rstrip("/") not in ("", API_PATH):
        raise _unfit(f"The path of a site's address is {API_PATH}, not “{parts.path}”")


def _host(parts: SplitResult) -> str:
    host = _ascii((parts.hostname or "").rstrip("."))
    if not host:
        raise _unfit("The host is missing")
    if "%" in host:
        raise _unfit("An IPv6 address with a zone is good on one machine only; use a global address or a name")
    if ":" in host:
        if not _is_ipv6(host):
            raise _unfit("That is not an IPv6 address")
        return f"[{_usable(ipaddress.IPv6Address(host)).compressed}]"
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return str(_usable(ipaddress.IPv4Address(host)))
        except ValueError as error:
            raise _unfit("That is not an IPv4 address: it has four numbers from 0 to 255") from error
    return _name(host)


def _ascii(host: str) -> str:
    """First of all: its characters may turn out to be digits."""
    if host.isascii():
        return host.lower()
    try:
        return host.encode("idna").decode().lower().rstrip(".")
    except UnicodeError as error:
        raise _unfit("That is not a host name") from error


def _name(host: str) -> str:
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise _unfit("That is not a host name: letters, digits, “-” and dots only")
    return host


def _usable(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if address.is_unspecified or address.is_multicast:
        raise _unfit(f"{address} is not the address of one host")
    return address


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _unfit(what: str, *, echo: bool = True) -> InvalidRequest:
    """``echo`` False: the text may hold a secret, so it is not to be shown again."""
    return InvalidRequest(what, fix=_EXAMPLE, field="url", echo=echo)
