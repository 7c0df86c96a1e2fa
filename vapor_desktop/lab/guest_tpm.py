"""A secret in a guest's TPM 2.0, kept and read by the guest itself: it shows whether the TPM's state came along.

The guest has no TPM tools; it speaks to /dev/tpm0 in the TPM's own commands [TPM 2.0 library, part 3]: an NV
index of 16 bytes, under the empty password of the owner.
"""

from __future__ import annotations

from vapor_desktop.lab import guests
from vapor_desktop.lab.host import Host
from vapor_desktop.lab.processes import LabFailed

SECRET_BYTES = 16
NV_DEFINE, NV_WRITE, NV_READ = "0000012a", "00000137", "0000014e"
OWNER, INDEX = "40000001", "01500016"
EMPTY_PASSWORD = "00000009" + "40000009" + "0000" + "01" + "0000"
# SHA-256 names; the owner and the index's own password may read and write; no policy; 16 bytes.
PUBLIC = "000e" + INDEX + "000b" + "00060006" + "0000" + "0010"


def define_secret(host: Host, guest: str) -> None:
    """Make the index, once in a TPM's life."""
    _ask(host, guest, NV_DEFINE, OWNER, "0000" + PUBLIC)


def write_secret(host: Host, guest: str, secret: bytes) -> None:
    """``SECRET_BYTES`` bytes."""
    _ask(host, guest, NV_WRITE, OWNER + INDEX, f"{len(secret):04x}{secret.hex()}0000")


def read_secret(host: Host, guest: str) -> bytes:
    """What was written last."""
    return _ask(host, guest, NV_READ, OWNER + INDEX, f"{SECRET_BYTES:04x}0000")[2 : 2 + SECRET_BYTES]


def _ask(host: Host, guest: str, code: str, handles: str, parameters: str) -> bytes:
    """One command; its answer's parameters. Raises LabFailed with the TPM's code."""
    body = handles + EMPTY_PASSWORD + parameters
    command = f"8002{len(body) // 2 + 10:08x}{code}{body}"
    octal = "".join(f"\\{byte:03o}" for byte in bytes.fromhex(command))
    # One descriptor for both: the kernel keeps an answer for the file that the command was written to.
    script = f"exec 3<>/dev/tpm0 && printf '{octal}' >&3 && dd bs=4096 count=1 <&3 2>/dev/null | od -An -v -tx1"
    answer = bytes.fromhex("".join(guests.guest_shell(host, guest, script).split()))
    if answer[6:10] != bytes(4):
        raise LabFailed(f"The TPM of {guest} refused {code}", why=answer.hex())
    return answer[14:]
