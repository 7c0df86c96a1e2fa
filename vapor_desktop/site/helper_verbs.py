"""The root helper's verbs. Each checks its paths by itself and answers JSON-ready values."""

from __future__ import annotations

import base64
import fcntl
import grp
import json
import os
import pwd
import re
import secrets
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vapor_desktop.model.errors import Conflict, ImageToolFailed, InvalidRequest, NotAllowed
from vapor_desktop.site.helper_paths import open_device, open_file, parent_of
from vapor_desktop.site.leases import boot_id
from vapor_desktop.site.settings import SiteSettings

NVRAM_LIMIT_BYTES = 64 << 20
TOOL_TIMEOUT_S = 20
FORMATS = ("qcow2", "raw")
WRITE_PERMISSION_BYTE = 101
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux
OURS = re.compile(r"vapor-[A-Za-z0-9._-]{1,200}")


def read_nvram(settings: SiteSettings, path: str) -> dict[str, Any]:
    """The varstore's bytes. That of a VM which was failed over lies beside its overlays, in the replica."""
    with open_file(path, (*settings.helper_nvram_roots, *settings.replica_roots)) as descriptor:
        return {"data": base64.b64encode(_read_all(descriptor, NVRAM_LIMIT_BYTES, path)).decode()}


def place_nvram(settings: SiteSettings, path: str, data: str) -> dict[str, Any]:
    """A new varstore, readable by QEMU; an equal one already there is fine, another one is never replaced."""
    content = base64.b64decode(data, validate=True)
    if len(content) > NVRAM_LIMIT_BYTES:
        raise InvalidRequest("The varstore is too large", bytes=len(content))
    with parent_of(path, settings.helper_nvram_roots) as (directory, name):
        aside = f".vapor-{secrets.token_hex(6)}"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fchown(stream.fileno(), *_qemu_ids())
                os.fsync(stream.fileno())
            os.link(aside, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except FileExistsError:
            with open_file(path, settings.helper_nvram_roots) as old:
                if _read_all(old, NVRAM_LIMIT_BYTES, path) != content:
                    raise Conflict("Another varstore lies there already; it is not replaced", path=path) from None
        finally:
            os.unlink(aside, dir_fd=directory)
            os.fsync(directory)
    return {}


def image_info(settings: SiteSettings, image: str) -> dict[str, Any]:
    """``qemu-img info`` of the top image, its ``stamp``, and the paths of its whole chain."""
    with _open_image(settings, image) as descriptor:
        stamp = _stamp(descriptor)
        chain = chain_of(image)
    return {"info": {**chain[0], "stamp": stamp, "chain": [str(item["filename"]) for item in chain]}}


def image_stamp(settings: SiteSettings, image: str) -> dict[str, Any]:
    """Whether anybody wrote it (``stamp``), and whether anybody may now (``writer``); no image tool is started."""
    with _open_image(settings, image) as descriptor:
        return {"stamp": _stamp(descriptor), "writer": _has_writer(descriptor)}


def image_adopt(settings: SiteSettings, image: str) -> dict[str, Any]:
    """Let QEMU's group read and write an image that nobody has open (libvirt gave it back to its owner), and what it
    stands on read; what it is then. The content, and so the stamp, stays. Raises Conflict while it is in use.
    """
    with _open_image(settings, image) as descriptor:
        if _has_writer(descriptor):
            raise Conflict("A VM that runs has this image open", path=image)
        chain = chain_of(image)
        for member in chain:
            with _open_image(settings, str(member["filename"])) as inner:
                _, group = _qemu_ids()
                os.fchown(inner, -1, group)
                mine = member is chain[0]
                os.fchmod(inner, stat.S_IMODE(os.fstat(inner).st_mode) | (0o660 if mine else 0o440))
        top = chain[0]
        found = {"format": str(top["format"]), "size_bytes": int(top["virtual-size"])}
        return {**found, "chain": len(chain), "stamp": _stamp(descriptor)}


@contextmanager
def _open_image(settings: SiteSettings, image: str) -> Iterator[int]:
    """A regular file below the image roots, or a block device by the very name the administrator gave it."""
    named = Path(image) in settings.helper_block_devices
    with open_device(image) if named else open_file(image, settings.helper_image_roots) as descriptor:
        yield descriptor


def _stamp(descriptor: int) -> str:
    """Changes with every write and every replacement.

    A file: inode, size in bytes, time of the last write in ns. A block device keeps no time: the kernel's counts of
    finished writes and discards since this boot (Documentation/admin-guide/iostats.rst, fields 5, 7, 12, 14).
    """
    status = os.fstat(descriptor)
    if not stat.S_ISBLK(status.st_mode):
        return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    counts = Path(f"/sys/dev/block/{device}/stat").read_text().split()
    return ":".join((device, boot_id(), *(counts[n] for n in (4, 6, 11, 13) if n < len(counts))))


def _has_writer(descriptor: int) -> bool:
    """Does a QEMU hold the permission to write? Its image lock says so [QEMU block/file-posix.c].

    Who may write holds a shared lock on byte 100 + 1; asking who would conflict takes no lock of our own.
    """
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, WRITE_PERMISSION_BYTE, 1, 0)
    kind, *_ = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    return bool(kind != fcntl.F_UNLCK)


def bitmap(settings: SiteSettings, image: str, name: str, *, add: bool) -> dict[str, Any]:
    """Add or remove one of our bitmaps in an image that nobody has open (qemu-img takes its lock)."""
    if not OURS.fullmatch(name):
        raise NotAllowed("Only bitmaps named vapor-… are ours to touch", name=name)
    with _open_image(settings, image):
        top = chain_of(image)[0]
        data = top.get("format-specific", {}).get("data", {})
        present = any(item.get("name") == name for item in data.get("bitmaps", []))
        if present != add:
            _tool("qemu-img", "bitmap", "--add" if add else "--remove", "-f", str(top["format"]), "--", image, name)
    return {}


def bitmap_clear(settings: SiteSettings, image: str, name: str, expect_stamp: str) -> dict[str, Any]:
    """Empty one of our bitmaps, unless the image was written since; qemu-img's write lock keeps a starting VM out.

    The answer's ``stamp`` is the one after it: the emptying is a write too.
    """
    if not OURS.fullmatch(name):
        raise NotAllowed("Only bitmaps named vapor-… are ours to touch", name=name)
    with _open_image(settings, image) as descriptor:
        if _stamp(descriptor) != expect_stamp or _has_writer(descriptor):
            return {"cleared": False, "stamp": expect_stamp}
        _tool("qemu-img", "bitmap", "--clear", "-f", "qcow2", "--", image, name)
        return {"cleared": True, "stamp": _stamp(descriptor)}


def check_export(settings: SiteSettings, image: str, fmt: str, bitmap_name: str) -> None:
    """Everything the export would open lies below the roots. Raises NotAllowed, NotFound, InvalidRequest."""
    if fmt not in FORMATS:
        raise InvalidRequest(f"{fmt!r} is not an image format we export", fix="qcow2 or raw")
    if bitmap_name != "-" and not OURS.fullmatch(bitmap_name):
        raise NotAllowed("Only bitmaps named vapor-… are ours to read", name=bitmap_name)
    for member in [image] if fmt == "raw" else [str(item["filename"]) for item in chain_of(image)]:
        with _open_image(settings, member):
            pass


def chain_of(image: str) -> list[dict[str, Any]]:
    """``qemu-img info --backing-chain``, top first. Raises ImageToolFailed.

    A relative backing name is told with its "..": where that leads is resolved, symlinks and all.
    """
    found: list[dict[str, Any]] = json.loads(
        _tool("qemu-img", "info", "-U", "--backing-chain", "--output=json", "--", image)
    )
    for item in found:
        if ".." in Path(str(item["filename"])).parts:
            item["filename"] = os.path.realpath(str(item["filename"]))
    return found


def _tool(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageToolFailed(f"{argv[0]} did not finish", why=str(error)) from error
    if done.returncode != 0:
        raise ImageToolFailed(f"{argv[0]} {argv[1]} failed", why=done.stderr.strip(), stderr=done.stderr)
    return done.stdout


def _read_all(descriptor: int, limit: int, path: str) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise InvalidRequest(f"{path} is larger than expected", limit_bytes=limit)
    return content


def _qemu_ids() -> tuple[int, int]:
    """uid and gid QEMU runs as: libvirt-qemu on Debian, qemu elsewhere; ourselves where there is neither."""
    for name in ("libvirt-qemu", "qemu"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        groups = {entry.gr_name: entry.gr_gid for entry in grp.getgrall()}
        return user.pw_uid, groups.get(name, user.pw_gid)
    return os.geteuid(), os.getegid()


def export_socket_dir(settings: SiteSettings) -> Path:
    """root's own directory for sockets of exports: others may pass, none may write."""
    path = settings.helper_run_dir
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    path.chmod(0o711)
    return path
