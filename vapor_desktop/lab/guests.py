"""Guests of the lab: small Linux VMs under TCG that boot from their own disks and keep a diary."""

from __future__ import annotations

import base64
import json
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from vapor_desktop.lab import diary, disks, guestkit, hostfiles
from vapor_desktop.lab.host import Host
from vapor_desktop.lab.processes import LabFailed, wait_until

FIRMWARES = ("bios", "uefi")
IMAGES = "/var/lib/libvirt/images"
URI = ("virsh", "-q", "-c", "qemu:///system")
MEMORY_MIB = 256
# Versioned, as real machines are; known to every QEMU from 7.2 on.
MACHINE = "pc-q35-7.2"
VERDICT = re.compile(r"VAPOR-DIARY (stopped )?last=(\d+) gaps=(\d+) torn=(\d+) disks=(\d+) skew=(\d+)")

DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
{firmware}    <boot dev='hd'/>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='maximum'/>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
{disks}    <interface type='network'>
      <mac address='{mac}'/>
      <source network='{network}'/>
      <model type='virtio'/>
    </interface>
    <serial type='pty'>
      <log file='/var/log/libvirt/qemu/{name}-serial.log' append='on'/>
      <target port='0'/>
    </serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc'><listen type='socket'/></graphics>
    <video><model type='vga'/></video>
    <memballoon model='none'/>
{tpm}  </devices>
</domain>
"""
DISK = """    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='{file}'/>
      <target dev='vd{letter}' bus='virtio'/>
    </disk>
"""
UEFI = """    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/{name}_VARS.fd</nvram>
"""
TPM = "    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>\n"


@dataclass(frozen=True)
class GuestSpec:
    """What to build. ``rate``: diary records a second; ``scratch``: disturbing writes a second."""

    name: str
    site: str = "a"
    firmware: str = "bios"
    disk_count: int = 1
    size_bytes: int = disks.DEFAULT_SIZE
    rate: float = 10.0
    scratch: float = 4.0
    tpm: bool = False

    @property
    def uuid(self) -> str:
        """The same for the same name, so that a demo's commands can be written down."""
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.name}.vapor-lab.example"))

    @property
    def mac(self) -> str:
        """In QEMU's range, by name."""
        tail = uuid.UUID(self.uuid).bytes[:3]
        return "52:54:00:" + ":".join(f"{byte:02x}" for byte in tail)

    @property
    def files(self) -> list[str]:
        """Its disks' paths on the host."""
        return [f"{IMAGES}/{self.name}-{number}.qcow2" for number in range(self.disk_count)]


def parse_spec(text: str) -> GuestSpec:
    """``NAME[:FIRMWARE[:DISKS[:SITE]]]``. Raises LabFailed."""
    name, firmware, count, site = (*text.split(":"), *("", "bios", "1", "a")[text.count(":") + 1 :])[:4]
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name) or firmware not in FIRMWARES or not count.isdigit():
        raise LabFailed(f"{text!r} describes no guest", fix="NAME[:bios|uefi[:DISKS[:SITE]]], for example db:uefi:2")
    return GuestSpec(name, site or "a", firmware, int(count))


DEFAULT_GUESTS = (GuestSpec("web"), GuestSpec("db", firmware="uefi", disk_count=2))


def domain_xml(spec: GuestSpec, network: str) -> str:
    """The definition as an administrator would have written it."""
    letters = "abcdefgh"
    parts = [DISK.format(file=file, letter=letters[number]) for number, file in enumerate(spec.files)]
    return DOMAIN.format(
        name=spec.name,
        uuid=spec.uuid,
        memory=MEMORY_MIB,
        machine=MACHINE,
        firmware=UEFI.format(name=spec.name) if spec.firmware == "uefi" else "",
        disks="".join(parts),
        mac=spec.mac,
        network=network,
        tpm=TPM if spec.tpm else "",
    )


def add(host: Host, spec: GuestSpec, cache: Path, *, start: bool = True) -> None:
    """Build the disks, define the domain and (by default) start it."""
    if not 1 <= spec.disk_count <= 8:
        raise LabFailed("A lab guest has 1 to 8 disks")
    kit = guestkit.build(cache)
    config = f"name={spec.name}\nrate={spec.rate:g}\nscratch={spec.scratch:g}\nzero=0.5\ndiscard=0.5\n"
    owner = hostfiles.user_ids(host.layout, "libvirt-qemu")
    for number, file in enumerate(spec.files):
        target = host.path(file)
        disks.build(kit, target, firmware=spec.firmware, index=number, config=config, size_bytes=spec.size_bytes)
        os.chown(target, *owner)
        target.chmod(0o660)
    xml = domain_xml(spec, host.layout.network)
    host.run([*URI, "define", "/dev/stdin"], input=xml)
    if start:
        host.run([*URI, "start", spec.name])


def serial(host: Host, name: str) -> str:
    """All the guest has said on its serial console on this host."""
    path = host.path(f"/var/log/libvirt/qemu/{name}-serial.log")
    return path.read_text(errors="replace") if path.exists() else ""


def verdicts(text: str) -> list[re.Match[str]]:
    """The diary's lines among a console's: one per boot, one per graceful stop."""
    return list(VERDICT.finditer(text))


def wait_for(host: Host, name: str, pattern: str, *, timeout_s: float, after: int = 0) -> str:
    """Wait until the serial console matches (past ``after`` characters); returns the match's line."""
    found: list[str] = []

    def seen() -> bool:
        match = re.search(pattern, serial(host, name)[after:])
        if match:
            found.append(match.group(0))
        return match is not None

    wait_until(seen, f"{pattern!r} on the console of {name}", timeout_s=timeout_s, every_s=0.1)
    return found[0]


def agent(host: Host, name: str, command: str, **arguments: object) -> object:
    """Ask the guest agent. Raises LabFailed with libvirt's words."""
    request: dict[str, object] = {"execute": command}
    if arguments:
        request["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
    answer = json.loads(host.run([*URI, "qemu-agent-command", name, json.dumps(request)]).stdout)
    return answer["return"]


def wait_for_agent(host: Host, name: str, *, timeout_s: float = 90.0) -> None:
    """Wait until the guest agent answers; it starts a little after the diary's verdict."""

    def answers() -> bool:
        try:
            agent(host, name, "guest-ping")
        except LabFailed:
            return False
        return True

    wait_until(answers, f"The guest agent of {name}", timeout_s=timeout_s, every_s=0.5)


def shut_down(host: Host, name: str, *, timeout_s: float = 60.0) -> None:
    """Ask the guest's agent until it takes it (one that is frozen just now refuses), and wait until it is off."""
    asked = False

    def off() -> bool:
        nonlocal asked
        if host.run([*URI, "domstate", name]).stdout.strip() == "shut off":
            return True
        if not asked:
            asked = host.run([*URI, "shutdown", name, "--mode", "agent"], check=False).returncode == 0
        return False

    wait_until(off, f"The shutdown of {name}", timeout_s=timeout_s, every_s=0.2)


def guest_shell(host: Host, name: str, script: str, *, timeout_s: float = 30.0) -> str:
    """Run a shell script in the guest through its agent; returns what it printed. Raises LabFailed on failure."""
    started = agent(host, name, "guest-exec", path="/bin/sh", arg=["-c", script], capture_output=True)
    assert isinstance(started, dict)  # noqa: S101 - the agent's schema
    status: dict[str, object] = {}

    def ended() -> bool:
        answer = agent(host, name, "guest-exec-status", pid=started["pid"])
        assert isinstance(answer, dict)  # noqa: S101
        status.update(answer)
        return bool(answer["exited"])

    wait_until(ended, f"The end of a script in {name}", timeout_s=timeout_s, every_s=0.1)
    out = base64.b64decode(str(status.get("out-data", ""))).decode(errors="replace")
    if status.get("exitcode") != 0:
        error = base64.b64decode(str(status.get("err-data", ""))).decode(errors="replace")
        raise LabFailed(f"A script in guest {name} failed", why=error or out)
    return out


def set_rate(host: Host, name: str, **rates: float) -> None:
    """Change the diary's rates now: ``rate``, ``scratch``, ``zero``, ``discard`` (per second; 0 pauses)."""
    lines = "".join(f"{key}={value:g}\n" for key, value in rates.items())
    guest_shell(host, name, f"printf '{lines}' >/run/diary.new && mv /run/diary.new /run/diary.conf")


def disk_files(host: Host, name: str) -> list[str]:
    """The domain's disk images in order, as the host names them."""
    lines = host.run([*URI, "domblklist", name]).stdout.splitlines()
    return [line.split(None, 1)[1].strip() for line in lines if line.strip()]


def read_diary(host: Host, images: list[str]) -> diary.DiaryReport:
    """Judge disks by image paths (or NBD URIs) that are true *on that host*, in order.

    For a running guest this reads a moving target: pass exports or points, or stop it first.
    """
    found = []
    for number, image in enumerate(images):
        inside = f"/tmp/diary-{uuid.uuid4()}.raw"  # noqa: S108 - the host's own
        outside = host.path(inside)
        try:
            diary.to_raw(image, inside, enter=host.enter())
            found.append(diary.read_ring(outside, number))
        finally:
            outside.unlink(missing_ok=True)
    return diary.combine(found)
