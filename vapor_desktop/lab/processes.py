"""Running commands and ending processes: found by namespace membership and pid files, never by name."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vapor_desktop.model.errors import GuestMissing, InvalidRequest, VaporError


class LabFailed(VaporError):
    """A step of building, using or removing the lab failed; ``details['stderr']`` has the tool's words."""

    code = "LAB"


def run(
    command: Sequence[str | Path],
    *,
    input: str | None = None,  # noqa: A002 - the name subprocess gives it
    check: bool = True,
    timeout_s: float = 120.0,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run to the end, output captured. Raises LabFailed with the tool's words unless ``check`` is false."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, input=input, capture_output=True, text=True, timeout=timeout_s, env=env, check=False
        )
    except FileNotFoundError as error:
        raise GuestMissing(f"{words[0]} is not installed", fix="Install it; `vapor-lab doctor` lists all") from error
    except subprocess.TimeoutExpired as error:
        raise LabFailed(f"{' '.join(words)} did not end within {timeout_s:g} s") from error
    if check and done.returncode:
        raise LabFailed(
            f"{' '.join(words)} failed ({done.returncode})",
            why=(done.stderr or done.stdout).strip()[-2000:],
            stderr=done.stderr,
        )
    return done


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float, every_s: float = 0.05) -> None:
    """Poll until true. Raises LabFailed naming ``what`` when the time is over."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise LabFailed(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(every_s)


def namespace_key(path: Path) -> tuple[int, int] | None:
    """Identity of a namespace file (device, inode); None where there is none (any more)."""
    try:
        found = path.stat()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return found.st_dev, found.st_ino


def members(keys: Iterable[tuple[int, int]]) -> list[int]:
    """Living processes of which any namespace (uts, net) is among ``keys``."""
    wanted = set(keys)
    if not wanted:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        if {namespace_key(entry / "ns" / kind) for kind in ("uts", "net")} & wanted:
            found.append(int(entry.name))
    return sorted(found)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Signal one process; False if it is gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def alive(pid: int) -> bool:
    """Whether it runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def kill_members(keys: Iterable[tuple[int, int]], *, spare: Iterable[int] = (), timeout_s: float = 10.0) -> list[int]:
    """SIGKILL all members, again and again until none is left (they may fork meanwhile); returns the killed.

    A dying process gives up its namespaces before its files (Linux do_exit: exit_task_namespaces, then the
    deferred closes), so being no member any more is not being gone: the killed are waited for by number.
    """
    wanted, spared, killed = set(keys), set(spare), set[int]()

    def gone() -> bool:
        left = [pid for pid in members(wanted) if pid not in spared and alive(pid)]
        killed.update(pid for pid in left if kill(pid))
        return not left and not any(alive(pid) for pid in killed)

    wait_until(gone, "The end of all processes of the namespace", timeout_s=timeout_s, every_s=0.02)
    return sorted(killed)


def read_pid(path: Path) -> int | None:
    """The number in a pid file, if the file is there and holds one."""
    try:
        return int(path.read_text().split()[0])
    except (FileNotFoundError, ValueError, IndexError):
        return None


def innermost_pid(pid: int) -> int | None:
    """What a process calls itself in its own PID namespace; None if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(line.split()[-1]) for line in lines if line.startswith("NSpid:")), None)


TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "libvirtd": "libvirt-daemon-system",
    "virtlogd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "dnsmasq": "dnsmasq-base",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "zstd": "zstd",
    "qemu-ga": "qemu-guest-agent",
    "gcc": "gcc",
    "objcopy": "binutils",
    "grub-mkimage": "grub-pc-bin",
    "sfdisk": "fdisk",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
}
SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"


def require_tools() -> None:
    """Raises GuestMissing naming every missing package, InvalidRequest when not root."""
    if os.geteuid() != 0:
        raise InvalidRequest("The lab makes network namespaces and mounts", fix="Run it as root")
    missing = {package for tool, package in TOOLS.items() if shutil.which(tool, path=SEARCH) is None}
    if not Path("/usr/share/OVMF/OVMF_CODE_4M.fd").exists():
        missing.add("ovmf")
    if not Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").exists():
        missing.add("systemd-boot-efi")
    if not Path("/usr/lib/grub/i386-pc/boot.img").exists():
        missing.add("grub-pc-bin")
    if missing:
        names = " ".join(sorted(missing))
        raise GuestMissing(f"The lab needs packages that are not installed: {names}", fix=f"apt-get install {names}")
