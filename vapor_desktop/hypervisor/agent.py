"""The guest agent: ping, freeze and thaw, each with a time-out.

Without one, libvirt waits for an agent for ever; and no Linux guest thaws by itself [facts/libvirt 5].
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import libvirt
import libvirt_qemu

from vapor_desktop.hypervisor.errors import code_of
from vapor_desktop.model.domains import AgentRun

_log = logging.getLogger(__name__)

RESPONSE_S = 10
PING_S = 5
_BLOCK = -2  # VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, a domain's default


@contextmanager
def limited(dom: Any) -> Iterator[None]:
    """In here no call of the agent waits longer than RESPONSE_S; ``freeze`` and ``thaw`` want it around them.

    Not within them: setting it is a call of its own, and between freeze and thaw each one costs the guest.
    """
    dom.agentSetResponseTimeout(RESPONSE_S, 0)
    try:
        yield
    finally:
        try:
            dom.agentSetResponseTimeout(_BLOCK, 0)
        except libvirt.libvirtError as error:  # the VM went off meanwhile: the setting died with it
            _log.info("the agent time-out of %s was not restored: %s", dom.name(), error)


def freeze(dom: Any) -> bool:
    """Freeze every file system; False when the agent did not, which is a fact about the point, not a failure."""
    try:
        return int(dom.fsFreeze()) > 0
    except libvirt.libvirtError as error:
        if not dom.connect().isAlive():
            raise
        _log.warning("%s did not freeze (libvirt code %d): %s", dom.name(), code_of(error), error)
        return False


def thaw(dom: Any, *, quiet: bool = True) -> int | None:
    """Thaw; the number of file systems that were frozen, an answer that nothing is frozen any more.

    ``quiet``: a refusal is logged and None, not raised: the guest may be frozen still, or freeze later.
    """
    try:
        return int(dom.fsThaw())
    except libvirt.libvirtError as error:
        if not quiet:
            raise
        _log.warning("%s did not thaw (libvirt code %d): %s", dom.name(), code_of(error), error)
        return None


def ping(dom: Any) -> bool:
    """Whether the agent answers within 5 s."""
    try:
        answer = libvirt_qemu.qemuAgentCommand(dom, json.dumps({"execute": "guest-ping"}), PING_S, 0)
    except libvirt.libvirtError as error:
        if not dom.connect().isAlive():
            raise
        _log.debug("the agent of %s is silent: %s", dom.name(), error)
        return False
    return "return" in json.loads(answer)


def run_script(dom: Any, script: str, timeout_s: float) -> AgentRun:
    """``/bin/sh -c script`` in the guest; waits for its end, which a script that hangs does not reach in time.

    Raises libvirtError when the agent does not take the command (none there, or guest-exec not allowed).
    """
    arguments = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
    started = _command(dom, "guest-exec", arguments)
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while True:
        status = _command(dom, "guest-exec-status", {"pid": started["pid"]})
        if status["exited"]:
            return AgentRun(int(status.get("exitcode", -1)), _text(status, "out-data"), _text(status, "err-data"))
        if time.monotonic() >= deadline:
            return AgentRun(None, "", "")
        pause.wait(0.1)


def addresses(dom: Any) -> dict[str, tuple[str, ...]]:
    """MAC -> addresses with their prefix, loopback left out."""
    seen = dom.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT, 0)
    return {
        str(card["hwaddr"]).lower(): tuple(f"{a['addr']}/{a['prefix']}" for a in card["addrs"] or ())
        for name, card in seen.items()
        if name != "lo" and card["hwaddr"]
    }


def _command(dom: Any, execute: str, arguments: dict[str, Any]) -> Any:
    asked = json.dumps({"execute": execute, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuAgentCommand(dom, asked, RESPONSE_S, 0))["return"]


def _text(status: dict[str, Any], key: str) -> str:
    return base64.b64decode(status.get(key, "")).decode(errors="replace")
