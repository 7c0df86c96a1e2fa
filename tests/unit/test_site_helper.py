"""The root helper, for real: its socket, its path checks, a qemu-nbd export that ends with its caller."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vapor_desktop.lab.processes import wait_until
from vapor_desktop.model.errors import Conflict, ImageToolFailed, NotAllowed, NotFound
from vapor_desktop.site import helper_verbs as verbs
from vapor_desktop.site.helper import Helper, listen_at
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.settings import SiteSettings

VM = "8f1d6f0e-2c0b-4f7a-9d52-0a3b6f1f2a11"


@pytest.fixture
def settings(tmp_path: Path) -> SiteSettings:
    for name in ("images", "nvram", "replicas"):
        (tmp_path / name).mkdir()
    return SiteSettings(
        state_dir=tmp_path / "state",
        helper_socket=tmp_path / "run" / "helper.sock",
        helper_run_dir=tmp_path / "exports",
        helper_image_roots=(tmp_path / "images",),
        helper_nvram_roots=(tmp_path / "nvram",),
        replica_roots=(tmp_path / "replicas",),
        user="nobody-here",
    )


@pytest.fixture
def client(settings: SiteSettings) -> Iterator[HelperClient]:
    yield from _running(settings, frozenset({os.geteuid()}))


def _running(settings: SiteSettings, allowed: frozenset[int]) -> Iterator[HelperClient]:
    listener = listen_at(settings.helper_socket, os.geteuid(), os.getegid())
    stop = threading.Event()
    thread = threading.Thread(target=Helper(settings, allowed).serve, args=(listener, stop))
    thread.start()
    yield HelperClient(settings.helper_socket)
    stop.set()
    thread.join()
    listener.close()


def _image(path: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"], check=True)
    return path


def test_ping_and_a_helper_that_is_not_there(client: HelperClient, tmp_path: Path) -> None:
    assert client.ping()
    assert not HelperClient(tmp_path / "nothing.sock").ping()


def test_another_account_is_refused(settings: SiteSettings) -> None:
    for client in _running(settings, frozenset({os.geteuid() + 1})):
        with pytest.raises(NotAllowed, match="does not serve this account"):
            client.image_info("/etc/passwd")


def test_nvram_is_read_and_placed_but_never_replaced(client: HelperClient, settings: SiteSettings) -> None:
    path = settings.helper_nvram_roots[0] / "vm_VARS.fd"
    content = os.urandom(540_672)
    client.place_nvram(str(path), content)
    client.place_nvram(str(path), content)  # the same again: fine
    assert client.read_nvram(VM, str(path)) == content
    with pytest.raises(Conflict):
        client.place_nvram(str(path), b"other")
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["vm_VARS.fd"]


def test_the_nvram_of_a_vm_that_runs_on_its_replica_is_read(client: HelperClient, settings: SiteSettings) -> None:
    path = settings.replica_roots[0] / VM / "run" / "2" / "nvram.fd"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"varstore")
    assert client.read_nvram(VM, str(path)) == b"varstore"
    with pytest.raises(NotAllowed):
        client.place_nvram(str(path.with_name("other.fd")), b"varstore")


@pytest.mark.parametrize(
    "bad", ["/etc/passwd", "relative", "{root}/../secret", "{root}/link", "{root}/dirlink/secret"]
)
def test_paths_outside_and_symlinks_are_refused(client: HelperClient, settings: SiteSettings, bad: str) -> None:
    root = settings.helper_nvram_roots[0]
    (root.parent / "secret").write_text("secret")
    (root / "link").symlink_to(root.parent / "secret")
    (root / "dirlink").symlink_to(root.parent)
    with pytest.raises(NotAllowed):
        client.read_nvram(VM, bad.format(root=root))


def test_missing_is_told_apart(client: HelperClient, settings: SiteSettings) -> None:
    with pytest.raises(NotFound):
        client.read_nvram(VM, str(settings.helper_nvram_roots[0] / "none.fd"))


def test_bitmaps_of_ours_only(client: HelperClient, settings: SiteSettings) -> None:
    image = str(_image(settings.helper_image_roots[0] / "d.qcow2"))
    client.bitmap_add(image, "vapor-p-1-1")
    client.bitmap_add(image, "vapor-p-1-1")
    names = [item["name"] for item in client.image_info(image)["format-specific"]["data"]["bitmaps"]]
    assert names == ["vapor-p-1-1"]
    with pytest.raises(NotAllowed):
        client.bitmap_remove(image, "somebody-elses")
    client.bitmap_remove(image, "vapor-p-1-1")
    client.bitmap_remove(image, "vapor-p-1-1")
    assert "bitmaps" not in client.image_info(image)["format-specific"]["data"]


def test_an_image_is_opened_to_the_group_unless_somebody_writes_it(
    client: HelperClient, settings: SiteSettings, tmp_path: Path
) -> None:
    roots = settings.helper_image_roots
    (roots[0] / "disks").mkdir()
    (roots[0] / "run").mkdir()
    below = _image(roots[0] / "disks" / "below.qcow2")
    top = _image(roots[0] / "run" / "top.qcow2", "-b", "../disks/below.qcow2", "-F", "qcow2")
    for path in (below, top):
        path.chmod(0o600)
    stamp = client.image_stamp(str(top))[0]
    found = client.image_adopt(str(top))
    assert (found["format"], found["size_bytes"], found["chain"], found["stamp"]) == ("qcow2", 1 << 20, 2, stamp)
    assert [oct(path.stat().st_mode & 0o777) for path in (top, below)] == ["0o660", "0o640"]
    nbd = subprocess.Popen(["qemu-nbd", "-t", "-f", "qcow2", "-k", str(tmp_path / "nbd"), str(top)])
    try:
        wait_until(lambda: client.image_stamp(str(top))[1], "the writer", timeout_s=10)
        with pytest.raises(Conflict, match="has this image open"):
            client.image_adopt(str(top))
    finally:
        nbd.kill()
        nbd.wait()
    outside = _image(tmp_path / "outside.qcow2")
    with pytest.raises(NotAllowed):
        client.image_adopt(str(outside))


def test_export_gives_the_data_and_ends_with_its_caller(client: HelperClient, settings: SiteSettings) -> None:
    image = _image(settings.helper_image_roots[0] / "d.qcow2")
    subprocess.run(["qemu-io", "-c", "write -q -P 0x5a 64k 64k", image], check=True)
    client.bitmap_add(str(image), "vapor-p-1-1")
    with client.offline_export(str(image), "qcow2", "vapor-p-1-1", export="vda") as path:
        uri = f"nbd+unix:///vda?socket={path}"
        read = subprocess.run(["qemu-io", "-r", "-f", "raw", "-c", "read -P 0x5a 64k 64k", uri], capture_output=True)
        assert b"Pattern verification failed" not in read.stdout
        assert b"read 65536/65536" in read.stdout
        # Without --no-content it asks file(1), and prints garbage where that is not installed.
        asked = subprocess.run(["nbdinfo", "--json", "--no-content", uri], capture_output=True, text=True, check=True)
        shown = asked.stdout
        assert "qemu:dirty-bitmap:vapor-p-1-1" in shown
        assert '"is_read_only": true' in shown
    _gone(path)


def _gone(path: str) -> None:
    """The export's socket stops answering and its file goes (waits for the condition, at most 10 s)."""
    done = threading.Event()
    for _ in range(1000):
        if not Path(path).exists():
            return
        done.wait(0.01)
    pytest.fail(f"{path} is still there")


def test_an_export_that_cannot_be_is_an_error(client: HelperClient, settings: SiteSettings) -> None:
    image = str(_image(settings.helper_image_roots[0] / "d.qcow2"))
    with (
        pytest.raises(ImageToolFailed, match="vapor-none"),
        client.offline_export(image, "qcow2", "vapor-none"),
    ):
        pytest.fail("exported a bitmap that does not exist")
    assert list(settings.helper_run_dir.iterdir()) == []


def test_a_backing_file_outside_the_roots_is_not_exported(client: HelperClient, settings: SiteSettings) -> None:
    secret = settings.helper_image_roots[0].parent / "secret.raw"
    secret.write_bytes(b"\0" * (1 << 20))
    image = _image(settings.helper_image_roots[0] / "sly.qcow2", "-b", str(secret), "-F", "raw")
    with pytest.raises(NotAllowed), client.offline_export(str(image), "qcow2", None):
        pytest.fail("exported a file outside the roots")


def test_rubbish_gets_an_error_not_a_crash(client: HelperClient, settings: SiteSettings) -> None:
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(settings.helper_socket))
        link.sendall(b"not json\n")
        assert b"INVALID-REQUEST" in link.makefile("rb").readline()
    assert client.ping()


def test_a_helper_that_hangs_is_one_that_does_not_answer(tmp_path: Path) -> None:
    listener = listen_at(tmp_path / "helper.sock", os.geteuid(), os.getegid())
    with listener:
        assert not HelperClient(tmp_path / "helper.sock", timeout_s=0.2).ping()


def test_a_block_device_is_read_only_where_the_administrator_named_it(settings: SiteSettings) -> None:
    with pytest.raises(NotAllowed) as caught:
        verbs.image_stamp(settings, "/dev/vg0/web")
    assert "helper_block_devices" in caught.value.fix
    named = settings.model_copy(update={"helper_block_devices": (Path("/dev/null"), Path("/dev/vapor-none"))})
    with pytest.raises(NotAllowed):  # a character device is none
        verbs.image_stamp(named, "/dev/null")
    with pytest.raises(NotFound):
        verbs.image_stamp(named, "/dev/vapor-none")
