"""``vapor-site doctor``: what a host needs, what was found, and how to mend it."""

from __future__ import annotations

import ctypes
import grp
import importlib.util
import os
import pwd
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from vapor_desktop.model.errors import HypervisorFailed, HypervisorUnreachable, VaporError
from vapor_desktop.model.wire import DoctorCheck
from vapor_desktop.site import guard_hook
from vapor_desktop.site.alarm_targets import password_problem
from vapor_desktop.site.bubble_client import answers as bubble_answers
from vapor_desktop.site.deliveries import load
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.identity import host_keys, site_id
from vapor_desktop.site.settings import SiteSettings

LIBVIRT_SINCE = (7, 6)  # incremental backup by default [facts/libvirt 1.3]
QEMU_SINCE = (6, 1)
SSHD_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
AA_ROOTS = ("/var/lib/libvirt/images", "/home", "/media", "/mnt", "/opt", "/srv")  # what virt-aa-helper may read
CONNECT_S = 2.0

Versions = Callable[[], tuple[str, str]]

_WILDCARDS = {"0.0.0.0", "::", ""}  # noqa: S104 - compared with, never bound here


def run_checks(settings: SiteSettings, versions: Versions) -> Iterator[DoctorCheck]:
    """Every check, in the order a person would mend things. None raises."""
    yield from _hypervisor(versions)
    yield from _tools()
    yield _account(settings)
    for root in settings.replica_roots:
        yield _space("replica root", root, settings.replica_reserve_bytes)
    yield _space("scratch", settings.scratch_dir, settings.scratch_reserve_bytes)
    yield _apparmor(settings)
    yield _clock()
    yield _identity(settings)
    listen = "127.0.0.1" if settings.listen in _WILDCARDS else settings.listen
    yield _port("API port", listen, settings.port, "Start it: `systemctl enable --now vapor-site`")
    yield _port("SSH port", settings.reach_ssh_address, settings.ssh_port, "Install and start openssh-server")
    yield _host_keys(settings)
    yield _command(settings)
    yield _helper(settings)
    yield _bubble(settings)
    yield guard_hook.check(settings)
    yield from _alarms(settings)


def _check(name: str, ok: bool, found: str, fix: str = "") -> DoctorCheck:
    return DoctorCheck(name=name, ok=ok, found=found, fix="" if ok else fix)


def _hypervisor(versions: Versions) -> Iterator[DoctorCheck]:
    try:
        libvirt, qemu = versions()
    except (HypervisorUnreachable, HypervisorFailed) as error:
        fix = "Start libvirt (`systemctl enable --now libvirtd`), and put the account into the group libvirt"
        yield _check("libvirt", False, str(error), fix)
        return
    yield _check("libvirt", _at_least(libvirt, LIBVIRT_SINCE), libvirt, "Upgrade libvirt to 7.6 or newer")
    yield _check("QEMU", _at_least(qemu, QEMU_SINCE), qemu, "Upgrade QEMU to 6.1 or newer")


def _at_least(version: str, since: tuple[int, ...]) -> bool:
    return tuple(int(part) for part in version.split(".")) >= since


def _tools() -> Iterator[DoctorCheck]:
    packages = {
        "qemu-img": "qemu-utils",
        "qemu-nbd": "qemu-utils",
        "qemu-storage-daemon": "qemu-utils (or qemu-system-common)",
        "virt-ssh-helper": "libvirt-daemon (or libvirt-clients)",
        "ssh": "openssh-client",
    }
    for tool, package in packages.items():
        path = shutil.which(tool, path=SSHD_PATH)
        yield _check(tool, path is not None, path or "not found", f"Install {package}")
    nbd = importlib.util.find_spec("nbd")
    fix = "Install python3-libnbd, and let the program's environment see it (--system-site-packages)"
    yield _check("python3-libnbd", nbd is not None, nbd.origin or "found" if nbd else "not found", fix)


def _account(settings: SiteSettings) -> DoctorCheck:
    try:
        entry = pwd.getpwnam(settings.user)
    except KeyError:
        fix = f"`useradd --system --create-home --home-dir {settings.state_dir} --shell /bin/sh {settings.user}`"
        return _check("account", False, f"{settings.user} does not exist", fix)
    have = {grp.getgrgid(gid).gr_name for gid in os.getgrouplist(settings.user, entry.pw_gid) if _group_exists(gid)}
    wanted = [name for name in ("libvirt", "libvirt-qemu", "qemu", "kvm") if _group_named(name)]
    missing = [name for name in wanted if name not in have]
    found = f"{settings.user} in {', '.join(sorted(have))}"
    return _check(
        "account", not missing, found, f"`usermod -aG {','.join(missing)} {settings.user}`, then restart us"
    )


def _group_exists(gid: int) -> bool:
    try:
        grp.getgrgid(gid)
    except KeyError:
        return False
    return True


def _group_named(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _space(name: str, path: Path, reserve_bytes: int) -> DoctorCheck:
    fix = f"`install -d -o vapor -g libvirt-qemu -m 2770 {path}`"
    if not path.is_dir():
        return _check(name, False, f"{path} does not exist", fix)
    if not os.access(path, os.W_OK | os.X_OK):
        return _check(name, False, f"{path} is not ours to write", fix)
    free = shutil.disk_usage(path).free
    found = f"{path}: {free / 2**30:.1f} GiB free, reserve {reserve_bytes / 2**30:.1f} GiB"
    return _check(name, free > reserve_bytes, found, "Free space there, or choose another place in site.toml")


def _apparmor(settings: SiteSettings) -> DoctorCheck:
    state = Path("/sys/module/apparmor/parameters/enabled")
    if not state.exists() or state.read_text().strip() != "Y":
        return _check("AppArmor", True, "not active")
    local = Path("/etc/apparmor.d/local/usr.lib.libvirt.virt-aa-helper")
    rules = local.read_text() if local.exists() else ""
    outside = [
        str(root)
        for root in settings.replica_roots
        if not any(root.is_relative_to(known) for known in AA_ROOTS) and str(root) not in rules
    ]
    fix = f"Add `{outside[0]}/** r,` to {local}, then `systemctl reload apparmor`" if outside else ""
    found = f"virt-aa-helper may not read {', '.join(outside)}" if outside else "active, replica roots are readable"
    return _check("AppArmor", not outside, found, fix)


def _clock() -> DoctorCheck:
    buffer = ctypes.create_string_buffer(512)  # struct timex is 208 bytes; modes 0 = only ask
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    if state < 0:
        return _check("clock", True, f"cannot be asked ({os.strerror(ctypes.get_errno())})")
    found = "not synchronised" if state == TIME_ERROR else "synchronised"
    return _check("clock", state != TIME_ERROR, found, "Install and start chrony or systemd-timesyncd")


def _identity(settings: SiteSettings) -> DoctorCheck:
    try:
        return _check("identity", True, site_id(settings))
    except (VaporError, OSError) as error:
        return _check("identity", False, str(error), "Start `vapor-site serve` once")


def _port(name: str, host: str, port: int, fix: str) -> DoctorCheck:
    for address in (host, "127.0.0.1"):
        try:
            socket.create_connection((address, port), timeout=CONNECT_S).close()
        except OSError:
            continue
        return _check(name, True, f"{address} port {port} answers")
    return _check(name, False, f"{host} port {port} does not answer", fix)


def _host_keys(settings: SiteSettings) -> DoctorCheck:
    try:
        return _check("SSH host keys", True, f"{len(host_keys(settings))} found")
    except VaporError as error:
        return _check("SSH host keys", False, error.what, error.fix or "Make /etc/ssh/ssh_host_*_key.pub readable")


def _command(settings: SiteSettings) -> DoctorCheck:
    program = settings.site_command.split()[0]
    path = shutil.which(program, path=SSHD_PATH)
    fix = f"Link {program} into /usr/local/bin, or set site_command in site.toml to its absolute path"
    return _check("forced command", path is not None, path or f"sshd would not find {program}", fix)


def _helper(settings: SiteSettings) -> DoctorCheck:
    answers = HelperClient(settings.helper_socket, timeout_s=CONNECT_S).ping()
    found = f"{settings.helper_socket} {'answers' if answers else 'does not answer'}"
    return _check("root helper", answers, found, "`systemctl enable --now vapor-helper.socket`")


def _bubble(settings: SiteSettings) -> DoctorCheck:
    answers = bubble_answers(settings.bubble_socket)
    found = f"{settings.bubble_socket} {'answers' if answers else 'does not answer: no drills here'}"
    return _check("bubble helper", answers, found, "`systemctl enable --now vapor-bubble.socket`")


def _alarms(settings: SiteSettings) -> Iterator[DoctorCheck]:
    """What is known without troubling the mail server: this runs often. `vapor-site alarm test` asks it."""
    alarm = settings.alarm
    if not alarm.webhook and not alarm.mail_to:
        yield _check("alarms", True, "the journal only: site.toml names no webhook and no mail_to")
        return
    state = settings.events_file.parent
    if alarm.webhook:
        yield _lane("alarm webhook", state / "alarm-webhook.json", None, "configured")
    if alarm.mail_to:
        found = f"to {', '.join(alarm.mail_to)} by {alarm.smtp_host} port {alarm.smtp_port}"
        yield _lane("alarm mail", state / "alarm-mail.json", password_problem(alarm), found)


def _lane(name: str, state: Path, problem: VaporError | None, found: str) -> DoctorCheck:
    if problem is not None:
        return _check(name, False, str(problem), problem.fix)
    waiting, failing = load(state)
    if failing is None:
        return _check(name, True, found)
    words = f"{len(waiting)} not delivered, since {failing.since}: {failing.what}"
    return _check(name, False, f"{words}: {failing.why}" if failing.why else words, failing.fix)
