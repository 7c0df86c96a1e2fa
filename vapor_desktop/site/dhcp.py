"""Answering DHCP in a bubble: a request's bytes in, an answer's bytes out (RFC 2131, 2132). Pure.

Only cards that the drill knows get an address, always the same one; nobody else is answered.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

SERVER_PORT, CLIENT_PORT = 67, 68
LEASE_S = 3600
_COOKIE = b"\x63\x82\x53\x63"
_HEAD = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK, _INFORM = 1, 2, 3, 5, 6, 8
_REQUESTED, _TYPE, _SERVER = 50, 53, 54


@dataclass(frozen=True, slots=True)
class Answer:
    """What to broadcast to the clients' port. ``address``: the one it gives; ``settled``: the client has it now."""

    packet: bytes
    mac: str
    address: str
    settled: bool


def answer(packet: bytes, gateway: str, hosts: Mapping[str, str]) -> Answer | None:
    """None: not a request, or of a card that nobody knows. ``gateway``: "192.168.1.1/24", which is us."""
    if len(packet) < _HEAD.size + 4 or packet[_HEAD.size : _HEAD.size + 4] != _COOKIE:
        return None
    op, htype, hlen, _, xid, _secs, _flags, ciaddr, _, _, giaddr, chaddr, _, _ = _HEAD.unpack(packet[: _HEAD.size])
    if (op, htype, hlen) != (1, 1, 6):
        return None
    mac = chaddr[:6].hex(":")
    options = _options(packet[_HEAD.size + 4 :])
    kind = options.get(_TYPE, b"\0")[0]
    address = hosts.get(mac)
    if address is None or kind not in (_DISCOVER, _REQUEST, _INFORM):
        return None
    network = IPv4Interface(gateway)
    ours = network.ip.packed
    if kind == _REQUEST and options.get(_SERVER, ours) != ours:
        return None  # it took another server's offer
    given = IPv4Address(address).packed
    wanted = options.get(_REQUESTED, ciaddr)
    reply = _OFFER if kind == _DISCOVER else _ACK
    if kind == _REQUEST and wanted not in (given, bytes(4)):
        reply = _NAK
    lease = struct.pack("!I", LEASE_S)
    body = _option(_TYPE, bytes([reply])) + _option(_SERVER, ours)
    if reply != _NAK:
        body += b"" if kind == _INFORM else _option(51, lease)
        body += _option(1, network.netmask.packed) + _option(3, ours)
    yiaddr = bytes(4) if reply == _NAK or kind == _INFORM else given
    # Always broadcast: a client that has no address yet cannot be reached otherwise.
    head = _HEAD.pack(2, 1, 6, 0, xid, 0, 0x8000, ciaddr, yiaddr, ours, giaddr, chaddr, bytes(64), bytes(128))
    return Answer((head + _COOKIE + body + b"\xff").ljust(300, b"\0"), mac, address, reply == _ACK)


def _option(number: int, value: bytes) -> bytes:
    return bytes([number, len(value)]) + value


def _options(raw: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(raw) and raw[at] != 255:
        if raw[at] == 0:
            at += 1
            continue
        if at + 1 >= len(raw):
            break
        length = raw[at + 1]
        found[raw[at]] = found.get(raw[at], b"") + raw[at + 2 : at + 2 + length]
        at += 2 + length
    return {number: value for number, value in found.items() if value}
