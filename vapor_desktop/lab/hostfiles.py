"""The private files of a lab host: what it has under /etc, /var and /run instead of the outer machine's.

The account ``vapor`` is made only here, by editing copies of passwd, group and shadow.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import vapor_desktop
from vapor_desktop.lab.layout import API_PORT, SSH_PORT, VAPOR_GID, VAPOR_UID, SiteLayout
from vapor_desktop.lab.processes import LabFailed, run
from vapor_desktop.site import qemu_hook
from vapor_desktop.site.guard_hook import hook_text

# Directories of a host that are its own; everything else is the release's.
PRIVATE = (
    "/run",
    "/tmp",  # noqa: S108 - the host's own, bound over
    "/usr/local/bin",
    "/etc/ssh",
    "/etc/libvirt",
    "/etc/vapor",
    "/var/lib/libvirt",
    "/var/lib/swtpm-localca",
    "/var/lib/vapor",
    "/var/cache/libvirt",
    "/var/log/libvirt",
    "/var/log/swtpm",
)
PRIVATE_FILES = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/hosts", "/etc/hostname")
BOOT_ID = "/proc/sys/kernel/random/boot_id"
CHECKOUT = "/opt/vapor"  # where a host sees the program
VAPOR_GROUPS = ("libvirt", "libvirt-qemu", "kvm")
LIBVIRTD_CONF = """
unix_sock_group = "libvirt"
unix_sock_rw_perms = "0770"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""
# No security driver and no cgroups: neither is private to a network namespace.
QEMU_CONF = """
security_driver = "none"
cgroup_controllers = [ ]
"""
SSHD_CONFIG = """
ListenAddress {address}:{port}
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile /run/sshd.pid
AllowUsers vapor root
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""
NETWORK_XML = """<network>
  <name>{name}</name>
  <bridge name='virbr-{site}' stp='off' delay='0'/>
  <ip address='{prefix}.1' netmask='255.255.255.0'>
    <dhcp><range start='{prefix}.10' end='{prefix}.200'/></dhcp>
  </ip>
</network>
"""


def program_root() -> Path:
    """The directory that holds the package (a checkout or a site-packages)."""
    return Path(vapor_desktop.__file__).resolve().parents[1]


def prepare(site: SiteLayout, release_root: Path) -> None:
    """Write all private files of a new host whose release's files are below ``release_root``."""
    for path in PRIVATE:
        _inside(site, path).mkdir(parents=True, exist_ok=True)
    _inside(site, "/tmp").chmod(0o1777)  # noqa: S108
    _accounts(site, release_root)
    _libvirt(site, release_root)
    _ssh(site)
    _vapor(site)
    new_boot(site)


def new_boot(site: SiteLayout) -> None:
    """What a boot renews: an empty /run and a boot id of its own."""
    runtime = _inside(site, "/run")
    for entry in runtime.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for name in ("sshd", "lock", "netns", "libvirt"):
        (runtime / name).mkdir()
    vapor = runtime / "vapor"
    vapor.mkdir()
    os.chown(vapor, VAPOR_UID, VAPOR_GID)
    vapor.chmod(0o750)
    # Written in place: the file is bound over the kernel's, and a bind follows the inode.
    (site.directory / "boot_id").write_text(f"{uuid.uuid4()}\n")
    _forget_labels(_inside(site, "/var/lib/libvirt"))


def _forget_labels(below: Path) -> None:
    """Drop the owners that libvirt remembers of the files it handed to guests that a power cut ended.

    After a real boot libvirt takes them for stale, because they carry the time of the boot before (libvirt 9.0,
    security_util.c); the lab's hosts share one kernel, and with it one boot time. A file left counted as "in use"
    starts no guest once its owner has changed.
    """
    for directory, _, names in os.walk(below):
        for name in names:
            path = Path(directory, name)
            if path.is_symlink() or not path.is_file():
                continue
            for attribute in os.listxattr(path):
                if attribute.startswith("trusted.libvirt.security."):
                    os.removexattr(path, attribute)


def _inside(site: SiteLayout, path: str) -> Path:
    return site.files / path.lstrip("/")


def _accounts(site: SiteLayout, release: Path) -> None:
    etc = site.files / "etc"
    passwd = (release / "etc/passwd").read_text()
    if any(line.split(":")[2] == str(VAPOR_UID) for line in passwd.splitlines()):
        raise LabFailed(f"The user id {VAPOR_UID} is taken in {release / 'etc/passwd'}")
    home = "/var/lib/vapor"
    (etc / "passwd").write_text(passwd + f"vapor:x:{VAPOR_UID}:{VAPOR_GID}:Vapor Desktop:{home}:/bin/sh\n")
    lines = [_joined(line) for line in (release / "etc/group").read_text().splitlines()]
    (etc / "group").write_text("\n".join([*lines, f"vapor:x:{VAPOR_GID}:", ""]))
    shadow = etc / "shadow"
    shadow.touch(mode=0o640)
    # "*" and not "!": sshd takes the latter for a locked account and refuses its keys.
    shadow.write_text((release / "etc/shadow").read_text() + "vapor:*:19000:0:99999:7:::\n")
    (etc / "hostname").write_text(site.hostname + "\n")
    names = "".join(f"{peer.address} {peer.hostname}\n" for peer in site.lab.sites.values())
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{names}")


def _joined(line: str) -> str:
    group, password, number, users = line.split(":")
    if group not in VAPOR_GROUPS:
        return line
    joined = ",".join([*filter(None, users.split(",")), "vapor"])
    return f"{group}:{password}:{number}:{joined}"


def group_id(site: SiteLayout, group: str) -> int:
    """A group's number on that host."""
    for line in (site.files / "etc/group").read_text().splitlines():
        if line.startswith(f"{group}:"):
            return int(line.split(":")[2])
    raise LabFailed(f"Host {site.name} has no group {group}", fix="Install libvirt-daemon-system in its release")


def user_ids(site: SiteLayout, user: str) -> tuple[int, int]:
    """A user's number and first group on that host."""
    for line in (site.files / "etc/passwd").read_text().splitlines():
        if line.startswith(f"{user}:"):
            fields = line.split(":")
            return int(fields[2]), int(fields[3])
    raise LabFailed(f"Host {site.name} has no user {user}", fix="Install libvirt-daemon-system in its release")


def _libvirt(site: SiteLayout, release: Path) -> None:
    etc = _inside(site, "/etc/libvirt")
    for source in sorted((release / "etc/libvirt").glob("*.conf")):
        shutil.copy2(source, etc / source.name)
    with (etc / "libvirtd.conf").open("a") as out:
        out.write(LIBVIRTD_CONF)
    with (etc / "qemu.conf").open("a") as out:
        out.write(QEMU_CONF)
    networks = etc / "qemu/networks"
    (networks / "autostart").mkdir(parents=True)
    hook = etc / "hooks/qemu.d/vapor"  # in place before libvirtd starts, as after `vapor-site guard install`
    hook.parent.mkdir(parents=True)
    hook.write_text(hook_text(Path(qemu_hook.GUARD_DIR)))
    hook.chmod(0o755)
    text = NETWORK_XML.format(name=site.network, site=site.name, prefix=site.network_prefix)
    (networks / f"{site.network}.xml").write_text(text)
    (networks / "autostart" / f"{site.network}.xml").symlink_to(f"/etc/libvirt/qemu/networks/{site.network}.xml")
    _like(release / "var/lib/swtpm-localca", _inside(site, "/var/lib/swtpm-localca"))
    # Directories with the owners and modes that the release's package gave them, never their contents.
    for source, target in _directories(release / "var/lib/libvirt", _inside(site, "/var/lib/libvirt")):
        _like(source, target)
    (_inside(site, "/var/log/libvirt") / "qemu").mkdir()
    gid = group_id(site, "libvirt-qemu")
    for name in ("vapor", ".vapor-scratch"):
        directory = _inside(site, "/var/lib/libvirt/images") / name
        directory.mkdir()
        os.chown(directory, VAPOR_UID, gid)
        directory.chmod(0o2770)


def _like(source: Path, target: Path) -> None:
    """A directory with another's owner and mode, as far as that one exists."""
    target.mkdir(exist_ok=True)
    if source.exists():
        status = source.stat()
        os.chown(target, status.st_uid, status.st_gid)
        target.chmod(status.st_mode & 0o7777)


def _directories(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    yield source, target
    for entry in source.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            yield entry, target / entry.name


def _ssh(site: SiteLayout) -> None:
    etc = _inside(site, "/etc/ssh")
    key = etc / "ssh_host_ed25519_key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", site.hostname, "-f", key])
    (etc / "sshd_config").write_text(SSHD_CONFIG.format(address=site.address, port=SSH_PORT))


def _vapor(site: SiteLayout) -> None:
    home = _inside(site, "/var/lib/vapor")
    os.chown(home, VAPOR_UID, VAPOR_GID)
    home.chmod(0o750)
    settings = {
        "name": f"site-{site.name}",
        "listen": site.address,
        "port": API_PORT,
        "advertised_address": site.address,
        "ssh_address": site.address,
        "ssh_port": SSH_PORT,
        "replica_roots": ["/var/lib/libvirt/images/vapor"],
        "scratch_dir": "/var/lib/libvirt/images/.vapor-scratch",
        "site_command": "/usr/local/bin/vapor-site",
        "helper_block_devices": [f"/dev/vapor-{site.hostname}"],  # a name for a test's loop device, as udev gives one
    }
    # JSON's strings, numbers and lists are TOML's too.
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    (_inside(site, "/etc/vapor") / "site.toml").write_text(text)


def write_command(site: SiteLayout, interpreter: str, libraries: str = "") -> None:
    """``vapor-site`` on the host's PATH, where sshd's forced commands find it.

    ``interpreter`` and ``libraries`` (a directory for PYTHONPATH) as the host sees them.
    """
    command = _inside(site, "/usr/local/bin") / "vapor-site"
    path = ":".join(filter(None, (CHECKOUT, libraries)))
    command.write_text(
        "#!/bin/sh\n"
        f"export PYTHONPATH={path} PYTHONDONTWRITEBYTECODE=1\n"
        f'exec {interpreter} -P -m vapor_desktop.site.dispatch "$@"\n'
    )
    command.chmod(0o755)
