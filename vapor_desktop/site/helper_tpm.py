"""The root helper's verbs about the state of an emulated TPM, which libvirt keeps in ROOT/VM-UUID/{tpm2,tpm1.2}/.

Only the permanent state travels: a VM that starts from a recovery point starts cold, and a volatile state
left by a saved VM would not fit it. swtpm writes that file aside and renames it, so a read sees one moment
of it; while it runs it holds a lock on ``.lock`` beside it, which keeps us from taking it away.
"""

from __future__ import annotations

import base64
import fcntl
import io
import os
import pwd
import secrets
import shutil
import stat
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vapor_desktop.model.errors import Conflict, InvalidRequest, NotAllowed, NotFound
from vapor_desktop.site.helper_paths import open_dir, open_file
from vapor_desktop.site.leases import vm_file_name
from vapor_desktop.site.settings import SiteSettings

STATE_FILES = ("tpm2/tpm2-00.permall", "tpm1.2/tpm-00.permall")
TPM_LIMIT_BYTES = 16 << 20
# POSIX locks are the process's: two of our threads would not keep each other out.
_one_at_a_time = threading.Lock()


def read_tpm(settings: SiteSettings, vm: str) -> dict[str, Any]:
    """The VM's permanent TPM state as a tar archive, the same bytes for the same state. Raises NotFound."""
    directory = settings.helper_tpm_root / vm_file_name(vm)
    found = _read_states(settings, directory) if settings.helper_tpm_root.is_dir() else {}
    if not found:
        raise NotFound(f"{directory} holds no TPM state", fix="Start the VM once: libvirt makes it then")
    return {"data": base64.b64encode(pack(found)).decode()}


def place_tpm(settings: SiteSettings, vm: str, data: str) -> dict[str, Any]:
    """Make this the VM's TPM state; one that lies there is kept aside, and its path is answered.

    Raises Conflict while a TPM uses what lies there, InvalidRequest or NotAllowed for anything but the state
    files of a TPM. Idempotent: the same state lying there already stays as it is.
    """
    states = unpack(base64.b64decode(data, validate=True))
    name = vm_file_name(vm)
    root = settings.helper_tpm_root
    _make_root(root)
    with _one_at_a_time, _unused(settings, root / name):
        if _read_states(settings, root / name) == states:
            return {"kept": ""}
        aside = root / f".vapor-{secrets.token_hex(6)}"
        try:
            _write_states(aside, states)
            kept = _keep_aside(root / name)
            aside.rename(root / name)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)  # it may not have been begun
            raise
        _sync(root)
    return {"kept": kept}


def pack(states: Mapping[str, bytes]) -> bytes:
    """A tar archive of state files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in sorted(states):
            member = tarfile.TarInfo(name)
            member.size = len(states[name])
            tar.addfile(member, io.BytesIO(states[name]))
    return archive.getvalue()


def unpack(archive: bytes) -> dict[str, bytes]:
    """The state files in an archive of ``pack``. Raises InvalidRequest; NotAllowed for a file that is none."""
    if len(archive) > TPM_LIMIT_BYTES:
        raise InvalidRequest("The TPM state is larger than a TPM's", limit_bytes=TPM_LIMIT_BYTES)
    states: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if member.name not in STATE_FILES or member.name in states or content is None:
                    raise NotAllowed("This is no state file of a TPM", path=member.name)
                states[member.name] = content.read()
    except tarfile.TarError as error:
        raise InvalidRequest("The TPM state is not a tar archive", why=str(error)) from error
    if not states:
        raise InvalidRequest("There is no TPM state in the archive")
    return states


def _read_states(settings: SiteSettings, directory: Path) -> dict[str, bytes]:
    found = {}
    for name in STATE_FILES:
        try:
            with open_file(str(directory / name), (settings.helper_tpm_root,)) as descriptor:
                size = os.fstat(descriptor).st_size
                if size > TPM_LIMIT_BYTES:
                    raise InvalidRequest(f"{directory / name} is larger than a TPM's state", bytes=size)
                with os.fdopen(os.dup(descriptor), "rb") as stream:
                    found[name] = stream.read(TPM_LIMIT_BYTES)
        except NotFound:
            continue
    return found


@contextmanager
def _unused(settings: SiteSettings, directory: Path) -> Iterator[None]:
    """No swtpm works in the directory, and none can begin to. Raises Conflict."""
    with ExitStack() as stack:
        for name in STATE_FILES:
            lock = str((directory / name).with_name(".lock"))
            try:
                descriptor = stack.enter_context(open_file(lock, (settings.helper_tpm_root,), os.O_RDWR))
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except NotFound:
                continue
            except BlockingIOError as error:
                raise Conflict(
                    "A running TPM uses the state that lies there", why=lock, fix="Stop the VM that it belongs to"
                ) from error
        yield


def _make_root(root: Path) -> None:
    """As libvirt makes it with the first TPM on a host. Raises NotFound where libvirt's own directory is not."""
    try:
        root.mkdir(mode=0o711)
    except FileExistsError:
        return
    except FileNotFoundError as error:
        raise NotFound(f"{root.parent} does not exist", fix="Install libvirt") from error
    root.chmod(0o711)


def _write_states(directory: Path, states: Mapping[str, bytes]) -> None:
    """As libvirt would have made them; it gives them to its swtpm's account again at each start."""
    owner = _swtpm_ids()
    directory.mkdir(mode=0o711)
    directory.chmod(0o711)
    for name, content in states.items():
        file = directory / name
        file.parent.mkdir(mode=0o700)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchown(stream.fileno(), *owner)
            os.fsync(stream.fileno())
        os.chown(file.parent, *owner)
        _sync(file.parent)
    _sync(directory)


def _keep_aside(directory: Path) -> str:
    """The new path of what lies there, "" when there is nothing."""
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return ""
    if not stat.S_ISDIR(found.st_mode):
        raise NotAllowed("The root helper follows no symlinks", path=str(directory))
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    kept = directory.with_name(f"{directory.name}.vapor-kept-{stamp}-{secrets.token_hex(3)}")
    directory.rename(kept)
    return str(kept)


def _sync(directory: Path) -> None:
    with open_dir(str(directory), (directory.parent,)) as descriptor:
        os.fsync(descriptor)


def _swtpm_ids() -> tuple[int, int]:
    """uid and gid that libvirt runs swtpm with: tss, or root where there is no tss; ours where we are not root."""
    try:
        user = pwd.getpwnam("tss")
    except KeyError:
        return os.geteuid(), os.getegid()
    return (user.pw_uid, user.pw_gid) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
