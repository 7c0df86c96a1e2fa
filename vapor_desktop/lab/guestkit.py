"""What all lab guests share: kernel, initramfs and boot loaders, built once and kept in the cache.

Order of the modules and what an initramfs needs for a real guest agent: tried, see the lab's facts.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vapor_desktop.lab.processes import LabFailed, run

GUEST_FILES = Path(__file__).parent / "guest"
# In this order; what a kernel has built in is not found and not needed.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "failover",
    "net_failover",
    "virtio_net",
    "button",
    "evdev",
    "efivarfs",
)
# fmt: off
APPLETS = (
    "sh", "mount", "umount", "insmod", "mkdir", "ln", "cat", "grep", "sed", "hostname", "cut", "ip", "udhcpc",
    "httpd", "acpid", "sleep", "usleep", "kill", "sync", "tail", "poweroff", "reboot", "setsid", "ls", "ps",
    "dmesg", "echo", "printf", "df", "free", "date", "wget", "ping", "touch", "rm", "dd", "od", "blkdiscard",
)
# fmt: on
# Real programs, with the libraries that `ldd` names. chattr: efivarfs protects variables it does not know.
PROGRAMS = ("/usr/sbin/qemu-ga", "/usr/bin/chattr")
COMMAND_LINE = "console=tty0 console=ttyS0 quiet loglevel=3 mitigations=off panic=-1 random.trust_cpu=on"
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "boot")
GRUB_CONFIG = f"set root=(hd0,msdos1)\nlinux /vmlinuz {COMMAND_LINE}\ninitrd /initramfs\nboot\n"
OLD_S = 24 * 3600
STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
GRUB = Path("/usr/lib/grub/i386-pc")


@dataclass(frozen=True)
class GuestKit:
    """Paths in the cache."""

    directory: Path

    @property
    def kernel(self) -> Path:
        """A distribution's cloud kernel."""
        return self.directory / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        """Busybox, guest agent, diary."""
        return self.directory / "initramfs"

    @property
    def grub_core(self) -> Path:
        """For the gap behind the MBR."""
        return self.directory / "core.img"

    @property
    def uki(self) -> Path:
        """Kernel, command line and initramfs as one EFI program."""
        return self.directory / "uki.efi"


def build(cache: Path) -> GuestKit:
    """The kit, from the cache or built now (a few seconds)."""
    kernel = _newest_kernel()
    kit = GuestKit(cache / f"guestkit-{_fingerprint(kernel)}")
    with locked(cache / "guestkit.lock"):
        if not kit.directory.exists():
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                made = GuestKit(Path(temporary) / "kit")
                made.directory.mkdir()
                _make(made, kernel)
                made.directory.rename(kit.directory)
            _drop_old(cache)
    return kit


def _drop_old(cache: Path) -> None:
    """Kits of a day ago and before: made by another version of this program."""
    for path in cache.glob("guestkit-*"):
        if time.time() - path.stat().st_mtime > OLD_S:
            shutil.rmtree(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file while something in the cache is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _newest_kernel() -> Path:
    found = sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"), key=_version)
    if not found:
        raise LabFailed("There is no cloud kernel in /boot", fix="apt-get install linux-image-cloud-amd64")
    return found[-1]


def _version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _fingerprint(kernel: Path) -> str:
    """Changes with everything that goes into the kit."""
    digest = hashlib.sha256(kernel.name.encode() + GRUB_CONFIG.encode())
    for path in (*sorted(GUEST_FILES.iterdir()), Path(__file__)):
        digest.update(path.read_bytes())
    for path in (kernel, STUB, Path("/usr/sbin/qemu-ga"), Path("/usr/bin/busybox")):
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


def _make(kit: GuestKit, kernel: Path) -> None:
    shutil.copyfile(kernel, kit.kernel)
    tree = kit.directory / "tree"
    _tree(tree, kernel.name.removeprefix("vmlinuz-"))
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    archive = kit.directory / "initramfs.cpio"
    run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-D", tree, "-F", archive], input=names)
    run(["zstd", "-q", "-3", archive, "-o", kit.initramfs])
    archive.unlink()
    shutil.rmtree(tree)
    early = kit.directory / "grub.cfg"
    early.write_text(GRUB_CONFIG)
    run(["grub-mkimage", "-O", "i386-pc", "-p", "/", "-c", early, "-o", kit.grub_core, *GRUB_MODULES])
    shutil.copyfile(GRUB / "boot.img", kit.directory / "boot.img")
    _unified_image(kit)


def _unified_image(kit: GuestKit) -> None:
    line, release = kit.directory / "cmdline", kit.directory / "os-release"
    line.write_text(COMMAND_LINE + "\n")
    release.write_text('NAME="Vapor lab guest"\nID=vapor-lab\n')
    # Addresses of the recipe in systemd-stub(7), version 252: the sections must not overlap.
    sections = {
        ".osrel": (release, 0x20000),
        ".cmdline": (line, 0x30000),
        ".linux": (kit.kernel, 0x2000000),
        ".initrd": (kit.initramfs, 0x4000000),
    }
    words: list[str | Path] = ["objcopy"]
    for name, (path, address) in sections.items():
        words += ["--add-section", f"{name}={path}", "--change-section-vma", f"{name}={address:#x}"]
    run([*words, STUB, kit.uki])


def _tree(tree: Path, version: str) -> None:
    for name in ("bin", "sbin", "usr/sbin", "lib/modules", "proc", "sys", "dev", "run", "etc/acpi/PWRF", "tmp"):
        (tree / name).mkdir(parents=True)
    shutil.copy2("/usr/bin/busybox", tree / "bin/busybox")
    for applet in APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    for source, target in (("init", "init"), ("shutdown", "sbin/shutdown"), ("udhcpc", "etc/udhcpc")):
        shutil.copyfile(GUEST_FILES / source, tree / target)
        (tree / target).chmod(0o755)
    (tree / "etc/acpi/PWRF/00000080").symlink_to("/sbin/shutdown")
    (tree / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\n")
    run(["gcc", "-O2", "-static", "-o", tree / "bin/diary", GUEST_FILES / "diary.c"])
    for program in PROGRAMS:
        libraries = re.findall(r"(?:=>\s*|^\s*)(/\S+)", run(["ldd", program]).stdout, re.MULTILINE)
        for file in (program, *libraries):
            target = tree / file.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(os.path.realpath(file), target)
            target.chmod(0o755)
    _modules(tree / "lib/modules", Path("/lib/modules") / version)


def _modules(target: Path, source: Path) -> None:
    order = []
    for name in MODULES:
        # A module's file may spell its name with hyphens.
        found = [path for path in source.rglob("*.ko*") if path.name.split(".")[0].replace("-", "_") == name]
        if not found:
            continue
        data = found[0].read_bytes()
        (target / f"{name}.ko").write_bytes(lzma.decompress(data) if found[0].suffix == ".xz" else data)
        order.append(name)
    (target / "order").write_text("\n".join(order) + "\n")
