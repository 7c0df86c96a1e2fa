"""Disk images of lab guests, made without loop devices or mounts: partitions are files put into place.

Every disk has the same three partitions: 1 boot (empty but on disk 0), 2 the data file system with the
diary, 3 scratch. Disk 0 of a BIOS guest has an MBR and GRUB in the gap behind it, where boot.img expects
it by default (sector 1); disk 0 of a UEFI guest a GPT and a unified kernel image on its ESP.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from vapor_desktop.lab import diary
from vapor_desktop.lab.guestkit import GuestKit
from vapor_desktop.lab.processes import LabFailed, run

MIB = 1 << 20
BOOT_START, BOOT_SIZE = 1 * MIB, 64 * MIB
DATA_START, DATA_SIZE = 65 * MIB, 64 * MIB
SCRATCH_START = DATA_START + DATA_SIZE
END_RESERVE = 1 * MIB  # the GPT's copy
SMALLEST = SCRATCH_START + 32 * MIB + END_RESERVE
SECTOR = 512
BOOT_CODE_BYTES = 440
DEFAULT_SIZE = 1024 * MIB
_TYPES = {"bios": ("83", "83", "da"), "uefi": ("uefi", "linux", "linux")}


def build(
    kit: GuestKit, target: Path, *, firmware: str, index: int, config: str, size_bytes: int = DEFAULT_SIZE
) -> None:
    """Write one qcow2 v3 disk. ``config``: what goes to ``vapor.conf``, read from disk 0 only."""
    if size_bytes < SMALLEST or size_bytes % MIB:
        raise LabFailed(f"A lab disk has whole MiB and at least {SMALLEST // MIB} of them")
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        directory = Path(temporary)
        raw = directory / "raw"
        with raw.open("wb") as file:
            file.truncate(size_bytes)
        _partition(raw, firmware, size_bytes)
        if index == 0:
            boot = _boot_bios(kit, raw, directory) if firmware == "bios" else _boot_uefi(kit, directory)
            _place(boot, raw, BOOT_START)
        _place(_data(directory, index, config), raw, DATA_START)
        # A new file, not the old one's inode: libvirt keeps the owner it remembers in the inode's attributes.
        target.unlink(missing_ok=True)
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1", raw, target])


def _partition(raw: Path, firmware: str, size_bytes: int) -> None:
    kinds = _TYPES[firmware]
    spans = (
        (BOOT_START, BOOT_SIZE),
        (DATA_START, DATA_SIZE),
        (SCRATCH_START, size_bytes - SCRATCH_START - END_RESERVE),
    )
    lines = [f"label: {'dos' if firmware == 'bios' else 'gpt'}"]
    for (start, length), kind in zip(spans, kinds, strict=True):
        lines.append(f"start={start // SECTOR}, size={length // SECTOR}, type={kind}")
    run(["sfdisk", "-q", "--no-reread", "--no-tell-kernel", raw], input="\n".join(lines) + "\n")


def _place(part: Path, raw: Path, offset: int) -> None:
    """Copy a partition into the disk, leaving its zeros as holes."""
    with part.open("rb") as source, raw.open("r+b") as target:
        while chunk := source.read(MIB):
            if chunk.count(0) != len(chunk):
                target.seek(offset)
                target.write(chunk)
            offset += len(chunk)


def _boot_bios(kit: GuestKit, raw: Path, directory: Path) -> Path:
    core = kit.grub_core.read_bytes()
    if SECTOR + len(core) > BOOT_START:
        raise LabFailed("GRUB's core image does not fit into the gap before the first partition")
    with raw.open("r+b") as disk:
        disk.write((kit.directory / "boot.img").read_bytes()[:BOOT_CODE_BYTES])
        disk.seek(SECTOR)
        disk.write(core)
    tree, part = directory / "boot", directory / "boot.ext4"
    tree.mkdir()
    shutil.copyfile(kit.kernel, tree / "vmlinuz")
    shutil.copyfile(kit.initramfs, tree / "initramfs")
    run(["mke2fs", "-q", "-t", "ext2", "-L", "vapor-boot", "-m", "0", "-d", tree, part, f"{BOOT_SIZE // MIB}M"])
    return part


def _boot_uefi(kit: GuestKit, directory: Path) -> Path:
    part = directory / "esp.fat"
    run(["mkfs.vfat", "-n", "VAPOR-ESP", "-C", part, str(BOOT_SIZE // 1024)])
    run(["mmd", "-i", part, "::/EFI", "::/EFI/BOOT"])
    run(["mcopy", "-i", part, kit.uki, "::/EFI/BOOT/BOOTX64.EFI"])
    return part


def _data(directory: Path, index: int, config: str) -> Path:
    tree, part = directory / "data", directory / "data.ext4"
    tree.mkdir()
    (tree / "diary").write_bytes(diary.empty_ring())
    (tree / "vapor.conf").write_text(config)
    label = f"vapor-data{index}"
    run(["mke2fs", "-q", "-t", "ext4", "-L", label, "-m", "0", "-d", tree, part, f"{DATA_SIZE // MIB}M"])
    return part
