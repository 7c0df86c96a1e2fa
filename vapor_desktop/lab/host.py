"""One lab host: a network, mount and UTS namespace with its own libvirtd, virtlogd, sshd and site service.

A *holder* process (``sleep``) keeps the namespaces; it stands for the hardware and survives a power cut.
The UTS namespace is also pinned by a file, so that members are found when the holder itself has died.
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
    "serve": "/run/vapor-serve.pid",
}
SETUP_HEAD = """set -eu
mount --make-rprivate /
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
        words = ["setsid", "--fork", "ip", "netns", "exec", site.namespace]
        words += ["unshare", "--mount", "--uts", "--propagation", "private", "/bin/sh", str(script)]
        done = run(words, env={"PATH": PATH})
        if not done.stdout.strip():
            raise LabFailed(f"The namespaces of host {site.name} were not made", why=done.stderr.strip())
        pid = int(done.stdout)
        self._holder_file.write_text(f"{pid}\n")
        run(["mount", "--bind", f"/proc/{pid}/ns/uts", self._pin])

    def _setup(self, release_root: Path, binds: Sequence[tuple[Path, str]]) -> str:
        site = self.layout
        foreign = release_root != Path("/")
        root = str(site.directory / "root") if foreign else ""
        lines = [SETUP_HEAD.format(hostname=shlex.quote(site.hostname), root=shlex.quote(root))]
        if foreign:
            lines += self._foreign_root(release_root)
        for source, target in binds:
            lines.append(f'mkdir -p "$ROOT"{shlex.quote(target)}')
            lines.append(f'mount --bind {shlex.quote(str(source))} "$ROOT"{shlex.quote(target)}')
        for path in hostfiles.PRIVATE:
            lines.append(f'mkdir -p "$ROOT"{path}')
        lines += [f'[ -e "$ROOT"{path} ] || : >"$ROOT"{path}' for path in hostfiles.PRIVATE_FILES if foreign]
        for path in (*hostfiles.PRIVATE, *hostfiles.PRIVATE_FILES):
            lines.append(f'mount --bind {shlex.quote(str(site.files))}{path} "$ROOT"{path}')
        lines.append(f'mount --bind {shlex.quote(str(site.directory))}/boot_id "$ROOT"{hostfiles.BOOT_ID}')
        lines.append("echo $$")
        if foreign:
            lines += ['cd "$ROOT"', "mkdir -p .outer", "pivot_root . .outer", "cd /", "umount -l /.outer"]
        lines.append("exec /bin/sleep infinity </dev/null >/dev/null 2>&1")
        return "\n".join([*lines, ""])

    def _foreign_root(self, release_root: Path) -> list[str]:
        directory = self.layout.directory
        for name in ("root", "upper", "work"):
            (directory / name).mkdir(exist_ok=True)
        options = f"lowerdir={release_root},upperdir={directory}/upper,workdir={directory}/work"
        return [
            f'mount -t overlay overlay -o {shlex.quote(options)} "$ROOT"',
            'mount -t proc proc "$ROOT"/proc',
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
        words = ["nsenter", "-t", str(holder), "-m", "-n", "-u", "--wd=/", "--"]
        home = "/var/lib/vapor" if user == "vapor" else "/"
        words += ["env", "-i", f"PATH={PATH}", f"HOME={home}", "LANG=C.UTF-8"]
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
        pid_file = self.path(PID_FILES[name])
        log = self.path(f"/var/log/libvirt/{name}.log")
        # The pid survives nsenter, env and setpriv: each of them execs the next.
        script = 'echo $$ > "$1"; log=$2; shift 2; exec "$@" </dev/null >>"$log" 2>&1'
        run(["setsid", "--fork", "sh", "-c", script, "sh", pid_file, log, *self.enter(user), *command])
        wait_until(lambda: read_pid(pid_file) is not None, f"The start of {name}", timeout_s=10)

    def path(self, inside: str) -> Path:
        """Where the outer machine sees a path of the host's private directories."""
        for private in hostfiles.PRIVATE:
            if inside == private or inside.startswith(private + "/"):
                return self.layout.files / inside.lstrip("/")
        raise LabFailed(f"{inside} is not among the private directories of a host")

    def pid_of(self, name: str) -> int:
        """Pid of virtlogd, libvirtd, sshd, serve or helper, or ``qemu:DOMAIN``. Raises LabFailed if not running."""
        if name.startswith("qemu:"):
            file = f"/run/libvirt/qemu/{name.removeprefix('qemu:')}.pid"
        elif name in PID_FILES:
            file = PID_FILES[name]
        else:
            raise LabFailed(f"{name} is no process of a lab host", fix=f"One of {', '.join(PID_FILES)}, qemu:DOMAIN")
        pid = read_pid(self.path(file))
        if pid is None or not alive(pid) or pid not in members(self._keys()):
            raise LabFailed(f"{name} does not run on host {self.layout.name}")
        return pid

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
        """The root helper and ``vapor-site serve``; returns when the API's port answers."""
        self.spawn("helper", ["vapor-site", "helper", "--socket", "/run/vapor/helper.sock"])
        self.spawn("serve", ["vapor-site", "serve"], user="vapor")

        def ready() -> bool:
            # Between its pid file and its entry into the namespaces it lives, but is not here yet.
            pid = read_pid(self.path(PID_FILES["serve"]))
            if pid is None or not alive(pid):
                log = self.path("/var/log/libvirt/serve.log")
                raise LabFailed(f"vapor-site serve ended on {self.layout.name}", why=log.read_text()[-1500:])
            return answers(self.layout.address, API_PORT, greeting=False)

        wait_until(ready, f"The site service's answer on {self.layout.name}", timeout_s=40, every_s=0.1)


def answers(address: str, port: int, *, greeting: bool = True) -> bool:
    """Whether something accepts there (and, with ``greeting``, says something first, as sshd does)."""
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            return not greeting or bool(connection.recv(4))
    except OSError:
        return False
