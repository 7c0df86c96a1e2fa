#!/usr/bin/python3 -IS
"""libvirt's hook `qemu.d/vapor`: refuses to start a VM that Vapor Desktop's records do not give to this host.

Installed by `vapor-site guard install`; stands alone (standard library, no libvirt call) and runs as root for
every change of a VM's state. A VM without a record passes at once; a record that cannot be read holds its VM.
"""

import os
import sys

GUARD_DIR = "/var/lib/vapor/guard"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
STARTS = {("prepare", "begin"), ("restore", "begin"), ("migrate", "begin")}
RECORD_LIMIT_BYTES = 1 << 16


def main(argv: list[str]) -> int:
    """libvirt's words: VM, operation, sub-operation, extra. 0 lets it pass; 1 refuses, with a sentence on stderr."""
    domain_xml = sys.stdin.buffer.read()
    if tuple(argv[2:4]) not in STARTS:
        return 0
    # libvirt writes the VM's own name and uuid first; no text in its XML can hold a "<".
    uuid = domain_xml.partition(b"<uuid>")[2].partition(b"</uuid>")[0].strip().decode("ascii", "replace")
    raw = read_record(uuid.lower())
    if raw is None:
        return 0
    why = refusal(raw, argv[1])
    if why is None:
        return 0
    # One line; libvirt shows it to whoever tried, and puts it into its log.
    os.write(2, f"Vapor Desktop: {why}; see `vapor-site guard list` on this host\n".encode())
    return 1


def read_record(uuid: str) -> bytes | None:
    """The record's text; None when there is none; b"" when it cannot be read."""
    if not uuid or "/" in uuid:
        return None
    try:
        descriptor = os.open(f"{GUARD_DIR}/{uuid}.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return b""
    try:
        return os.read(descriptor, RECORD_LIMIT_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def refusal(raw: bytes, name: str) -> str | None:
    """The rule of vapor_desktop/model/guard.py; a test holds the two together."""
    import json

    try:
        record = json.loads(raw)
        name, why = record["vm_name"], record["reason"]
        number, owner, here = record["epoch"]["number"], record["epoch"]["owner"], record["this_site"]
        state, confirmed, held = record["state"], record["confirmed_boot_id"], record["held_boot_id"]
        with open(BOOT_ID) as file:  # noqa: PTH123 - pathlib would double what the hook costs
            boot_id = file.read().strip()
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"{name} is not started: its guard record cannot be read ({type(error).__name__})"
    if state == "moving":
        fact = f"operation {record.get('operation_id')} is moving it"
    elif state != "own" or owner != here:
        fact = f"another site owns it since epoch {number}"
    elif confirmed != boot_id:
        fact = "since this host booted nobody has said that it is still its own"
        why = why if held == boot_id else "the other site is being asked"
    else:
        return None
    return " ".join(f"{name} is not started: {fact} ({why})".split())


if __name__ == "__main__":
    sys.exit(main(sys.argv))
