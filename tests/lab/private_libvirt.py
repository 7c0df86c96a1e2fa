"""A libvirtd of its own, in namespaces of its own, for tests of the adapter alone. It goes with its init.

The two-host lab is for what needs guests that boot; a guest that boots nothing is enough for jobs and bitmaps.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATE = ("var/lib/libvirt", "etc/libvirt", "var/cache/libvirt", "run/libvirt")
_INIT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
for dir in {state}; do
    mkdir -p "{root}/$dir" "/$dir"
    case $dir in run/*) ;; *) cp -a "/$dir/." "{root}/$dir/" ;; esac
    mount --bind "{root}/$dir" "/$dir"
done
rm -rf /etc/libvirt/qemu/*.xml /etc/libvirt/storage/* /etc/libvirt/qemu/autostart /etc/libvirt/hooks
printf 'security_driver = "none"\\nstdio_handler = "file"\\n' >> /etc/libvirt/qemu.conf
printf 'auth_unix_rw = "none"\\nunix_sock_rw_perms = "0770"\\n' > /etc/libvirt/libvirtd.conf
ip link set lo up
libvirtd -d -p /run/libvirt/private.pid
# bash stays: an init that does not reap makes libvirt wait for dead QEMUs
sleep infinity & wait
"""


def wait_for(condition: Callable[[], bool], what: str, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"waited {deadline_s} s for: {what}"
        time.sleep(0.02)


@dataclass
class Host:
    root: Path
    init_pid: int

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.root}/run/libvirt/libvirt-sock"

    @property
    def images(self) -> Path:
        """The images directory as the host sees it; ``outside`` maps it."""
        return Path("/var/lib/libvirt/images")

    def outside(self, path: Path | str) -> Path:
        return self.root / str(path).lstrip("/")

    def run(self, *argv: str) -> str:
        enter = ("nsenter", "-t", str(self.init_pid), "-m", "-n", "-p")
        done = subprocess.run([*enter, *argv], capture_output=True, text=True)
        assert done.returncode == 0, f"{argv}: {done.stderr or done.stdout}"
        return done.stdout

    def qemu_pid(self, name: str) -> str:
        return self.outside(f"/run/libvirt/qemu/{name}.pid").read_text().strip()

    def kill_qemu(self, name: str) -> None:
        self.run("kill", "-9", self.qemu_pid(name))

    def restart_libvirtd(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Killed, not asked. ``meanwhile``: done while there is none."""
        pid = self.run("cat", "/run/libvirt/private.pid").strip()
        self.run("kill", "-9", pid)
        wait_for(lambda: not self.run("sh", "-c", f"kill -0 {pid} 2>/dev/null && echo yes || true"), "libvirtd dead")
        self.run("rm", "-f", "/run/libvirt/private.pid", "/run/libvirt/libvirt-sock")
        meanwhile()
        self.run("libvirtd", "-d", "-p", "/run/libvirt/private.pid")
        wait_for(self.outside("/run/libvirt/libvirt-sock").exists, "libvirtd's socket")

    def write(self, name: str, disk: int, pattern: int, offset: str, length: str) -> None:
        """Write through the running QEMU, as its guest would."""
        device = f"/machine/peripheral/virtio-disk{disk}/virtio-backend"
        answer = self.run(
            "virsh",
            "qemu-monitor-command",
            name,
            "--hmp",
            f'qemu-io -d {device} "write -P {pattern} {offset} {length}"',
        )
        assert "wrote" in answer or not answer.strip(), answer

    def disk(self, name: str, size: str = "64M", image_format: str = "qcow2", *options: str) -> str:
        path = str(self.images / name)
        self.run("qemu-img", "create", "-q", "-f", image_format, *options, path, size)
        return path


@contextmanager
def private_host(root: Path) -> Iterator[Host]:
    root.chmod(0o755)
    script = _INIT.format(state=" ".join(_STATE), root=root)
    # Also when this process is killed: the kernel then kills unshare, and unshare's init with it.
    argv = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child=SIGKILL",
        "bash",
        "-c",
        script,
    ]
    log = root / "init.log"
    with log.open("w") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        socket = root / "run/libvirt/libvirt-sock"

        def up() -> bool:
            assert process.poll() is None, log.read_text()
            return socket.exists() and bool(children.read_text().split())

        wait_for(up, f"a private libvirtd ({log})")
        yield Host(root, int(children.read_text().split()[0]))
    finally:
        if process.poll() is None:
            for pid in children.read_text().split():
                os.kill(int(pid), signal.SIGKILL)  # the init of all the rest; unshare reaps it and ends
        process.wait()


def domain_xml(
    name: str, disks: dict[str, tuple[str, str]], extra: str = "", vm_uuid: str | None = None, memory_mib: int = 32
) -> str:
    """``disks``: target → (path, format)."""
    listed = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{kind}'/><source file='{path}'/>"
        f"<target dev='{target}' bus='virtio'/></disk>"
        for target, (path, kind) in disks.items()
    )
    return (
        f"<domain type='qemu'><name>{name}</name><uuid>{vm_uuid or uuid.uuid4()}</uuid>"
        f"<memory unit='MiB'>{memory_mib}</memory><vcpu>1</vcpu>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
        "<cpu mode='maximum'/><devices>"
        f"{listed}<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>"
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        f"{extra}</devices></domain>"
    )
