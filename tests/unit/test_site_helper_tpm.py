"""A TPM's state through the real root helper, with states made by swtpm_setup and tried by swtpm."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vapor_desktop.model.errors import Conflict, InvalidRequest, NotAllowed, NotFound
from vapor_desktop.site.helper import Helper, listen_at
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.helper_tpm import pack
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.site.tpm import why_not_loaded

VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"
NAMES = {"2.0": "tpm2/tpm2-00.permall", "1.2": "tpm1.2/tpm-00.permall"}


@pytest.fixture
def settings(tmp_path: Path) -> SiteSettings:
    """The root itself is missing, as on a host that never had a VM with a TPM."""
    return SiteSettings(
        state_dir=tmp_path / "state",
        helper_socket=tmp_path / "run" / "helper.sock",
        helper_tpm_root=tmp_path / "swtpm",
        user="nobody-here",
    )


@pytest.fixture
def client(settings: SiteSettings) -> Iterator[HelperClient]:
    listener = listen_at(settings.helper_socket, os.geteuid(), os.getegid())
    stop = threading.Event()
    thread = threading.Thread(target=Helper(settings, frozenset({os.geteuid()})).serve, args=(listener, stop))
    thread.start()
    yield HelperClient(settings.helper_socket)
    stop.set()
    thread.join()
    listener.close()


def new_state(directory: Path, version: str = "2.0", *words: str) -> bytes:
    """A TPM's state as libvirt has it made."""
    directory.mkdir()
    argv = ["swtpm_setup", "--tpmstate", directory, "--createek", *(["--tpm2"] if version == "2.0" else []), *words]
    # As root it would hand the directory to tss; the tests' directories are closed to tss.
    subprocess.run([*argv, "--runas", str(os.geteuid())], check=True, capture_output=True)
    return (directory / Path(NAMES[version]).name).read_bytes()


def archive(content: bytes, version: str = "2.0") -> bytes:
    return pack({NAMES[version]: content})


def test_a_state_travels_and_is_put_in_place_as_libvirt_has_it(client: HelperClient, settings: SiteSettings) -> None:
    root = settings.helper_tpm_root
    assert client.place_tpm(VM, archive(b"state")) is None
    assert client.place_tpm(VM, archive(b"state")) is None  # the same again: fine
    assert [entry.name for entry in root.iterdir()] == [VM]
    file = root / VM / "tpm2" / "tpm2-00.permall"
    assert file.read_bytes() == b"state"
    assert [oct(path.stat().st_mode & 0o7777) for path in (root, root / VM, file.parent, file)] == [
        "0o711",
        "0o711",
        "0o700",
        "0o600",
    ]
    (file.parent / "tpm2-00.volatilestate").write_bytes(b"of a saved VM")
    (file.parent / ".lock").touch()
    assert client.read_tpm(VM) == archive(b"state")


def test_another_state_is_kept_aside_never_lost(client: HelperClient, settings: SiteSettings) -> None:
    root = settings.helper_tpm_root
    client.place_tpm(VM, archive(b"first"))
    (root / VM / "tpm2" / ".lock").touch()
    kept = [client.place_tpm(VM, archive(content)) for content in (b"second", b"third")]
    assert (root / VM / "tpm2/tpm2-00.permall").read_bytes() == b"third"
    assert [Path(str(path)).parent for path in kept] == [root, root]
    assert [(Path(str(path)) / "tpm2/tpm2-00.permall").read_bytes() for path in kept] == [b"first", b"second"]
    assert len(list(root.iterdir())) == 3


def test_another_version_of_tpm_counts_as_another_state(client: HelperClient, settings: SiteSettings) -> None:
    client.place_tpm(VM, archive(b"one", "1.2"))
    assert client.place_tpm(VM, archive(b"two")) is not None
    assert not (settings.helper_tpm_root / VM / "tpm1.2").exists()


def test_a_state_in_use_is_not_touched(client: HelperClient, settings: SiteSettings, tmp_path: Path) -> None:
    content = new_state(tmp_path / "made")
    client.place_tpm(VM, archive(content))
    directory = settings.helper_tpm_root / VM / "tpm2"
    ours, its = socket.socketpair()
    words = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}", "--fd", str(its.fileno())]
    running = subprocess.Popen([*words, "--flags", "not-need-init,startup-clear"], pass_fds=(its.fileno(),))
    its.close()
    with ours:
        ours.sendall(bytes.fromhex("80010000000c0000017b0008"))
        assert ours.recv(4096)[6:10] == b"\0\0\0\0"
        with pytest.raises(Conflict, match="running TPM"):
            client.place_tpm(VM, archive(b"another"))
    running.wait(10)
    assert (directory / "tpm2-00.permall").read_bytes()[:64] == content[:64]
    assert client.place_tpm(VM, archive(b"another")) is not None


def tar(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, "/etc/shadow", len(content)
        made.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize(
    "bad",
    [
        tar("../../../etc/cron.d/x"),
        tar("/etc/cron.d/x"),
        tar("tpm2/other"),
        tar("tpm2/.lock"),
        tar("tpm2/tpm2-00.permall", b"", tarfile.SYMTYPE),
        tar("tpm2/tpm2-00.permall", b"", tarfile.LNKTYPE),
    ],
)
def test_nothing_but_state_files_is_written(client: HelperClient, settings: SiteSettings, bad: bytes) -> None:
    with pytest.raises(NotAllowed):
        client.place_tpm(VM, bad)
    assert not settings.helper_tpm_root.exists()


@pytest.mark.parametrize("bad", [b"no tar", b"", tar("tpm2/tpm2-00.permall", bytes(17 << 20))])
def test_what_is_no_archive_of_a_state_is_refused(client: HelperClient, settings: SiteSettings, bad: bytes) -> None:
    with pytest.raises(InvalidRequest):
        client.place_tpm(VM, bad)
    assert not settings.helper_tpm_root.exists()


@pytest.mark.parametrize("vm", ["../etc", "x", ".", f"{VM}/tpm2", ""])
def test_only_uuids_name_a_vm(client: HelperClient, settings: SiteSettings, vm: str) -> None:
    with pytest.raises(InvalidRequest):
        client.place_tpm(vm, archive(b"state"))
    with pytest.raises(InvalidRequest):
        client.read_tpm(vm)
    assert not settings.helper_tpm_root.exists()


def test_symlinks_are_not_followed(client: HelperClient, settings: SiteSettings, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "tpm2").mkdir(parents=True)
    (elsewhere / "tpm2" / "tpm2-00.permall").write_bytes(b"secret")
    settings.helper_tpm_root.mkdir()
    (settings.helper_tpm_root / VM).symlink_to(elsewhere)
    with pytest.raises(NotAllowed):
        client.read_tpm(VM)
    with pytest.raises(NotAllowed):
        client.place_tpm(VM, archive(b"state"))
    assert (elsewhere / "tpm2" / "tpm2-00.permall").read_bytes() == b"secret"


def test_a_vm_without_a_state_is_told_apart(client: HelperClient) -> None:
    with pytest.raises(NotFound, match=VM):
        client.read_tpm(VM)


def test_an_unknown_parameter_is_refused(client: HelperClient, settings: SiteSettings) -> None:
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(settings.helper_socket))
        link.sendall(json.dumps({"verb": "place-tpm", "vm": VM, "data": "", "path": "/etc"}).encode() + b"\n")
        assert b"INVALID-REQUEST" in link.makefile("rb").readline()


@pytest.mark.parametrize("version", ["2.0", "1.2"])
def test_a_real_state_is_one_that_swtpm_loads(tmp_path: Path, version: str) -> None:
    assert shutil.which("swtpm"), "swtpm is not installed"
    content = new_state(tmp_path / "made", version)
    assert why_not_loaded(archive(content, version)) == ""
    assert "does not load" in why_not_loaded(archive(content[: len(content) // 2], version))


def test_an_encrypted_state_is_one_that_swtpm_does_not_load(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef")
    content = new_state(tmp_path / "made", "2.0", "--keyfile", str(key))
    assert "encrypted" in why_not_loaded(archive(content))
