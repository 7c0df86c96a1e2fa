"""One lab host: network, mount, UTS and PID namespaces with their own libvirtd, virtlogd, sshd and site service.

A *holder* process (``sleep``) is the host's init and keeps the namespaces; it stands for the hardware and
survives a power cut. It ignores SIGCHLD, so the kernel reaps every orphan of the host at once: libvirt waits
for each QEMU to vanish, and the init of a container may take its time. The UTS namespace is also pinned by a
file, so that members are found when the holder itself has died.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vapor_desktop.lab import hostfiles
from vapor_desktop.lab.layout import API_PORT, SSH_PORT, SiteLayout
from vapor_desktop.lab.processes import (
    LabFailed,
    alive,
    innermost_pid,
    kill,
    kill_members,
    members,
    namespace_key,
    read_pid,
    run,
    wait_until,
)

PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PID_FILES = {
    "virtlogd": "/run/virtlogd.pid",
    "libvirtd": "/run/libvirtd.pid",
    "sshd": "/run/sshd.pid",
    "helper": "/run/vapor-helper.pid",
    "bubble": "/run/vapor-bubble.pid",
    "serve": "/run/vapor-serve.pid",
}
# The old /proc still tells the pid that the outer machine knows; the shell itself must open it.
SETUP_HEAD = """set -eu
mount --make-rprivate /
read -r PID REST </proc/self/stat
hostname {hostname}
ROOT={root}
"""


class Host:
    """A running host; cheap to make, all state is on disk and in the kernel."""

    def __init__(self, layout: SiteLayout) -> None:
        self.layout = layout

    # --- making and unmaking ---------------------------------------------------------------------
    @property
    def _pin(self) -> Path:
        return self.layout.directory / "uts"

    @property
    def _holder_file(self) -> Path:
        return self.layout.directory / "holder.pid"

    def hold(self, release_root: Path, binds: Sequence[tuple[Path, str]]) -> None:
        """Make the namespaces and mounts. ``binds``: more (outer directory, path on the host)."""
        site = self.layout
        script = site.directory / "setup.sh"
        script.write_text(self._setup(release_root, binds))
        self._pin.touch()
        log = site.directory / "setup.log"
        words = ["setsid", "--fork", "sh", "-c", 'exec "$@" </dev/null >"$0" 2>&1', str(log)]
        words += ["ip", "netns", "exec", site.namespace, "unshare", "--mount", "--uts", "--pid", "--fork"]
        run([*words, "--propagation", "private", "/bin/sh", str(script)], env={"PATH": PATH})

        def made() -> bool:
            pid = read_pid(self._holder_file)
            if pid is not None and _comm(pid) == "sleep":  # the script's last step
                return True
            if log.exists() and log.read_text():
                raise LabFailed(f"The namespaces of host {site.name} were not made", why=log.read_text().strip())
            return False

        wait_until(made, f"The making of host {site.name}", timeout_s=20, every_s=0.01)
        pid = read_pid(self._holder_file)
        run(["mount", "--bind", f"/proc/{pid}/ns/uts", self._pin])
        # unshare only waits for its child; without it the host consists of its own processes alone.
        for waiting in self.processes():
            if _comm(waiting) == "unshare":
                kill(waiting)

    def _setup(self, release_root: Path, binds: Sequence[tuple[Path, str]]) -> str:
        site = self.layout
        foreign = release_root != Path("/")
        root = str(site.directory / "root") if foreign else ""
        lines = [SETUP_HEAD.format(hostname=shlex.quote(site.hostname), root=shlex.quote(root))]
        if foreign:
            lines += self._foreign_root(release_root)
        lines.append('mount -t proc proc "$ROOT"/proc')
        for source, target in binds:
            lines.append(f'mkdir -p "$ROOT"{shlex.quote(target)}')
            lines.append(f'mount --bind {shlex.quote(str(source))} "$ROOT"{shlex.quote(target)}')
        for path in hostfiles.PRIVATE:
            lines.append(f'mkdir -p "$ROOT"{path}')
        lines += [f'[ -e "$ROOT"{path} ] || : >"$ROOT"{path}' for path in hostfiles.PRIVATE_FILES if foreign]
        for path in (*hostfiles.PRIVATE, *hostfiles.PRIVATE_FILES):
            lines.append(f'mount --bind {shlex.quote(str(site.files))}{path} "$ROOT"{path}')
        lines.append(f'mount --bind {shlex.quote(str(site.directory))}/boot_id "$ROOT"{hostfiles.BOOT_ID}')
        holder = shlex.quote(str(self._holder_file))
        lines.append(f"echo $PID >{holder}.new; mv {holder}.new {holder}")
        if foreign:
            lines += ['cd "$ROOT"', "mkdir -p .outer", "pivot_root . .outer", "cd /", "umount -l /.outer"]
        # env, since Debian's sh would not ignore SIGCHLD.
        lines.append("exec env --ignore-signal=CHLD sleep infinity </dev/null >/dev/null 2>&1")
        return "\n".join([*lines, ""])

    def _foreign_root(self, release_root: Path) -> list[str]:
        directory = self.layout.directory
        for name in ("root", "upper", "work"):
            (directory / name).mkdir(exist_ok=True)
        options = f"lowerdir={release_root},upperdir={directory}/upper,workdir={directory}/work"
        return [
            f'mount -t overlay overlay -o {shlex.quote(options)} "$ROOT"',
            'mount --rbind /sys "$ROOT"/sys',
            'mount --rbind /dev "$ROOT"/dev',
        ]

    @property
    def holder(self) -> int | None:
        """The holder's pid while it lives and still is in this host's namespace."""
        pid = read_pid(self._holder_file)
        if pid is None or not alive(pid):
            return None
        return pid if namespace_key(Path(f"/proc/{pid}/ns/uts")) in self._keys() else None

    def _keys(self) -> list[tuple[int, int]]:
        """Identity of this host's namespaces as far as they still exist."""
        keys = []
        # A pin that was never bound is a plain file: /proc/self tells whether the device is the kernel's nsfs.
        own = namespace_key(Path("/proc/self/ns/uts"))
        for path in (self._pin, Path("/run/netns") / self.layout.namespace):
            key = namespace_key(path)
            if key and own and key[0] == own[0] and key not in {own, namespace_key(Path("/proc/self/ns/net"))}:
                keys.append(key)
        return keys

    def destroy(self) -> None:
        """End every process of the host and drop its mounts; the files stay. Idempotent."""
        kill_members(self._keys())
        while run(["umount", self._pin], check=False).returncode == 0:
            pass

    # --- power -----------------------------------------------------------------------------------
    def power_cut(self) -> list[int]:
        """kill -9 of everything but the holder, as if the plug were pulled; returns what was killed."""
        holder = self.holder
        return kill_members(self._keys(), spare=[] if holder is None else [holder])

    def processes(self) -> list[int]:
        """Everything that runs on the host, without the holder."""
        return [pid for pid in members(self._keys()) if pid != self.holder and alive(pid)]

    # --- running things --------------------------------------------------------------------------
    def enter(self, user: str | None = None) -> list[str]:
        """The words that put a command onto this host, as root or another user of it."""
        holder = self.holder
        if holder is None:
            raise LabFailed(f"Host {self.layout.name} is not up", fix="`vapor-lab up` first")
        # Without --wd: that would be the outer machine's directory; the kernel puts us at the namespace's root.
        words = ["nsenter", "-t", str(holder), "-m", "-n", "-u", "-p", "--"]
        return [*words, *self._as(user)]

    @staticmethod
    def _as(user: str | None) -> list[str]:
        home = "/var/lib/vapor" if user == "vapor" else "/"
        words = ["env", "-i", f"PATH={PATH}", f"HOME={home}", "LANG=C.UTF-8"]
        if user:
            # By number inside the host: its passwd is not the outer machine's.
            words += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        return words

    def run(
        self,
        command: Sequence[str],
        *,
        user: str | None = None,
        input: str | None = None,  # noqa: A002
        check: bool = True,
        timeout_s: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end. Raises LabFailed with its words."""
        return run([*self.enter(user), *command], input=input, check=check, timeout_s=timeout_s)

    def spawn(self, name: str, command: Sequence[str], *, user: str | None = None) -> None:
        """Start a long-running program; its pid goes to its pid file, its words to /var/log/libvirt/NAME.log."""
        # The pid survives env and setpriv: each execs the next.
        script = 'echo $$ >"$1"; log=$2; shift 2; exec "$@" </dev/null >>"$log" 2>&1'
        pid_file, log = PID_FILES[name], f"/var/log/libvirt/{name}.log"
        self.path(pid_file).unlink(missing_ok=True)
        self.run(["setsid", "--fork", "sh", "-c", script, "sh", pid_file, log, *self._as(user), *command])
        wait_until(lambda: read_pid(self.path(pid_file)) is not None, f"The start of {name}", timeout_s=10)

    def path(self, inside: str) -> Path:
        """Where the outer machine sees a path of the host's private directories."""
        for private in hostfiles.PRIVATE:
            if inside == private or inside.startswith(private + "/"):
                return self.layout.files / inside.lstrip("/")
        raise LabFailed(f"{inside} is not among the private directories of a host")

    def pid_of(self, name: str) -> int:
        """Pid, as the outer machine counts, of virtlogd, libvirtd, sshd, serve, helper or ``qemu:DOMAIN``.

        Raises LabFailed if it does not run.
        """
        if name.startswith("qemu:"):
            file = f"/run/libvirt/qemu/{name.removeprefix('qemu:')}.pid"
        elif name in PID_FILES:
            file = PID_FILES[name]
        else:
            raise LabFailed(f"{name} is no process of a lab host", fix=f"One of {', '.join(PID_FILES)}, qemu:DOMAIN")
        inner = read_pid(self.path(file))
        for pid in self.processes():
            if inner is not None and innermost_pid(pid) == inner:
                return pid
        raise LabFailed(f"{name} does not run on host {self.layout.name}")

    def runs(self, name: str) -> bool:
        """Whether ``pid_of`` would find it."""
        try:
            self.pid_of(name)
        except LabFailed:
            return False
        return True

    # --- daemons ---------------------------------------------------------------------------------
    def start_daemons(self) -> None:
        """virtlogd, libvirtd and sshd; returns when libvirt and sshd answer."""
        self.start_libvirt()
        log = "/var/log/libvirt/sshd.log"
        self.run(["/usr/sbin/sshd", "-f", "/etc/ssh/sshd_config", "-E", log])
        wait_until(lambda: answers(self.layout.address, SSH_PORT), "sshd's answer", timeout_s=20)

    def start_libvirt(self) -> None:
        """virtlogd (unless it runs) and libvirtd; returns when libvirt answers."""
        if not self.runs("virtlogd"):
            self.run(["virtlogd", "-d", "-p", PID_FILES["virtlogd"]])
        self.run(["libvirtd", "-d", "-p", PID_FILES["libvirtd"]])
        query = ["virsh", "-q", "-c", "qemu:///system", "net-list", "--name"]

        def ready() -> bool:
            done = self.run(query, check=False)
            return done.returncode == 0 and self.layout.network in done.stdout

        wait_until(ready, f"libvirt's answer on {self.layout.name}", timeout_s=40, every_s=0.1)

    def start_site_service(self) -> None:
        """Both root helpers and ``vapor-site serve``; returns when the API's port answers."""
        self.start_helper()
        if not self.runs("bubble"):
            self.start_bubble_helper()
        self.spawn("serve", ["vapor-site", "serve"], user="vapor")

        def ready() -> bool:
            if not self.runs("serve"):
                log = self.path("/var/log/libvirt/serve.log")
                raise LabFailed(f"vapor-site serve ended on {self.layout.name}", why=log.read_text()[-1500:])
            return answers(self.layout.address, API_PORT, greeting=False)

        wait_until(ready, f"The site service's answer on {self.layout.name}", timeout_s=40, every_s=0.1)

    def start_helper(self) -> None:
        """The root helper; it answers a moment later."""
        self.spawn("helper", ["vapor-site", "helper", "--socket", "/run/vapor/helper.sock"])

    def start_bubble_helper(self) -> None:
        """The helper that makes the probes of drills; it answers a moment later."""
        self.spawn("bubble", ["vapor-site", "bubble", "--socket", "/run/vapor/bubble.sock"])


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def answers(address: str, port: int, *, greeting: bool = True) -> bool:
    """Whether something accepts there (and, with ``greeting``, says something first, as sshd does)."""
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            return not greeting or bool(connection.recv(4))
    except OSError:
        return False
