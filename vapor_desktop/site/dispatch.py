"""``vapor-site``: the entry point of everything that runs on a host.

Also sshd's forced command, started for every channel a console or a peer opens: so nothing but the
standard library is imported before the verb is known, and the client's words (``SSH_ORIGINAL_COMMAND``)
are compared whole, word by word; they never reach a shell.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

USAGE = 64  # EX_USAGE
REFUSED = 77  # EX_NOPERM
UUID_TEXT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SSH_HELPER_CALLS = (["virt-ssh-helper", "qemu:///system"], ["virt-ssh-helper", "-r", "qemu:///system"])


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the verb and exit. Forced commands end in ``exec`` or in the verb's own module."""
    args = list(sys.argv[1:] if argv is None else argv)
    verb = args[0] if args else ""
    if verb == "console" and len(args) == 1:
        sys.exit(_console())
    if verb == "peer" and len(args) == 2:
        sys.exit(_peer(args[1]))
    if verb == "serve":
        from vapor_desktop.site.serve import main as serve

        serve(args[1:])
    if verb == "helper":
        from vapor_desktop.site.helper import main as helper

        helper(args[1:])
    if verb == "bubble":
        from vapor_desktop.site.bubble_helper import main as bubble

        bubble(args[1:])
    from vapor_desktop.site.cli import main as admin

    admin(args)


def _console() -> int:
    """What a console's key may run."""
    words = _asked()
    if words in SSH_HELPER_CALLS:
        _exec(words)
    if words in (["mover"], ["mover", "--relay"]):
        from vapor_desktop.site.mover.send_main import main as mover

        return _code(mover(words[1:]))
    if len(words) == 2 and words[0] in ("relay-source", "relay-receive") and UUID_TEXT.fullmatch(words[1]):
        from vapor_desktop.site.mover import relay_end

        return relay_end.source(words[1]) if words[0] == "relay-source" else relay_end.receive(words[1])
    return _refuse("virt-ssh-helper, mover, relay-source, relay-receive")


def _peer(site: str) -> int:
    """What a peer's key may run; ``site`` is its UUID, put there by us at enrolment."""
    if not UUID_TEXT.fullmatch(site):
        sys.stderr.write("vapor-site peer: needs the peer's UUID\n")
        return USAGE
    words = _asked()
    if words == ["receive"]:
        from vapor_desktop.site.mover.receive_main import main as receive

        return _code(receive(site))
    if words and (words[0] == "owners" or (words[0] in ("ping", "owner", "digest") and len(words) <= 3)):
        from vapor_desktop.site.peer_verbs import main as answer

        return answer(site, words)
    return _refuse("receive, ping, owner, owners, digest")


def _asked() -> list[str]:
    """The client's command as words; [] when there is none or its quoting is broken.

    libvirt with ``proxy=native`` says ``sh -c 'virt-ssh-helper 'qemu:///system''`` [seen with 9.0]: taken
    apart here and compared like the rest; no shell ever sees it.
    """
    try:
        words = shlex.split(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
        return shlex.split(words[2]) if words[:2] == ["sh", "-c"] and len(words) == 3 else words
    except ValueError:
        return []


def _refuse(allowed: str) -> int:
    sys.stderr.write(f"vapor-site: this key may only run: {allowed}\n")
    return REFUSED


def _exec(words: Sequence[str]) -> NoReturn:
    path = shutil.which(words[0], path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        sys.stderr.write(f"vapor-site: {words[0]} is not installed on this host (package libvirt-daemon)\n")
        raise SystemExit(127)
    os.execv(path, list(words))  # noqa: S606 - a fixed program with fixed words, no shell on purpose


def _code(result: object) -> int:
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
