"""A VM's runbook: what a person types at the target to bring it up by hand, when nothing of ours is left to do it.

Pure text from facts. A line that begins with four spaces is a command, as root on that host; everything else is for
reading. The overlays lie in a directory of their own, so that nothing of ours takes them for its leftovers, and a
later failover to the same point takes them over as they are (``by_hand``).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from vapor_desktop.model.manifest import Manifest, PointEntry

BRING_UP, LOOK, UNDO = "BRING IT UP", "LOOK", "UNDO"
PARTS = ("IS IT REALLY OFF?", BRING_UP, LOOK, UNDO, "AFTERWARDS")
_COMMAND = "    "
_BEFORE = "defined-before.xml"  # what the host called by that UUID, if anything


def by_hand(epoch: int, seq: int) -> str:
    """Name below ``run/`` of the overlays that the runbook for that next epoch and point makes."""
    return f"by-hand-e{epoch}-p{seq}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the text is made from. Paths are absolute, on the target; times UTC, on the target's clock."""

    manifest: Manifest
    written_at: datetime
    here: str  # this site's name
    source: str  # the source site's name, or its UUID
    source_address: str | None  # None: not paired (any more)
    libvirt_uri: str
    folder: str  # the replica's directory
    point: PointEntry | None  # the one to bring up; None: there is none
    points: tuple[PointEntry, ...] = ()  # every living one, oldest first
    xml_path: str = ""  # the finished definition
    disks: Mapping[str, str] | None = None  # disk target -> image that the definition names
    nvram: str | None = None  # the varstore that the definition names
    tpm_root: str | None = None  # where libvirt keeps TPM states; None: the point holds none, or it cannot be used
    networks: tuple[str, ...] = ()  # libvirt networks that the definition names
    notes: tuple[str, ...] = ()
    refused: str = ""  # why this host's start guard would refuse the start; "" = it would not
    taken: bool = False  # this site runs it already: the definition names the run's images


def write(facts: Facts) -> str:
    """The runbook."""
    lines, point = [*_head(facts)], facts.point
    if point is None:
        ours = facts.manifest.epoch.owner == facts.manifest.target_site
        why = "It is this site's own, on its own disks" if ours else "There is no complete recovery point"
        lines += ["", f"{why}: there is nothing to bring up here."]
        return "\n".join(lines) + "\n"
    bring_up, undo, afterwards = _bring_up(facts, point), _undo(facts, point), _afterwards(facts, point)
    parts = (_really_off(facts), bring_up, _look(facts), undo, afterwards)
    for title, part in zip(PARTS, parts, strict=True):
        lines += ["", title, "-" * len(title), *part]
    return "\n".join(lines) + "\n"


def commands(text: str, part: str) -> list[str]:
    """The command lines of one part of a runbook."""
    found: list[str] = []
    here = ""
    for line in text.splitlines():
        here = line if line in PARTS else here
        if here == part and line.startswith(_COMMAND):
            found.append(line.removeprefix(_COMMAND))
    return found


# --- the parts --------------------------------------------------------------------------------------
def _head(f: Facts) -> list[str]:
    m = f.manifest
    owner = f.here if m.epoch.owner == m.target_site else f.source
    lines = [
        f"RUNBOOK: {m.vm_name}",
        f"VM {m.vm_uuid}, from {f.source} to {f.here} (this host).",
        f"Written {_time(f.written_at)}. Epoch {m.epoch.number}: it belongs to {owner}. "
        f"Settings version {m.settings_version}.",
    ]
    if f.point is None:
        return lines
    p = f.point
    age = max(timedelta(0), f.written_at - p.current_as_of).total_seconds()
    proven = f"proven by a drill {_time(p.proven_at)}" if p.proven_at else "never proven by a drill"
    lines += [
        f"Recovery point {p.seq}: taken {_time(p.taken_at)}, {p.consistency.value}, {proven}; {age:.0f} s old when "
        "this was written.",
        *(["ITS DATA DID NOT MATCH ITS DIGESTS: prefer another point."] if not p.verified else []),
        f"Networks it needs here: {_mapped(f)}.",
        *(f"Note: {note}." for note in f.notes),
    ]
    if not f.taken:
        others = [f"{o.seq} ({_time(o.taken_at)})" for o in reversed(f.points) if o.seq != p.seq]
        if others:
            lines.append(f"Other points, each with `vapor-site runbook {m.vm_name} --point N`: {', '.join(others)}.")
        short = shlex.join(["vapor-site", "failover", m.vm_name, "--point", str(p.seq), "--reason", "…"])
        lines += ["", f"While vapor-site works on this host, `{short}` does all of this."]
    lines += [
        "",
        "A line that begins with four spaces is a command: as root on this host, in this order, each only after the",
        "one before it succeeded.",
    ]
    return lines


def _mapped(f: Facts) -> str:
    by_target: dict[str, list[str]] = {}
    for source, target in f.manifest.mappings.networks.items():
        by_target.setdefault(target, []).append(source)
    named = [f"{n} (at {f.source}: {', '.join(by_target[n])})" if n in by_target else n for n in f.networks]
    return ", ".join(named) or "none"


def _really_off(f: Facts) -> list[str]:
    vm, name = f.manifest.vm_uuid, f.manifest.vm_name
    if f.taken:
        since = f"{f.here} owns it since epoch {f.manifest.epoch.number}"
        return [f"{since}. If it runs at {f.source} as well, stop it there."]
    where = f.source_address or f"the address of {f.source}"
    far = shlex.join(["ssh", f"root@{where}", "virsh", "-c", f.libvirt_uri])
    return [
        f"If {name} still runs at {f.source}, it will run twice, and what one of the two writes will be lost.",
        f"Ask {f.source} with an access of your own: `{far} domstate {vm}`.",
        f"It says “running”: switch it off there first: `{far} destroy {vm}`.",
        "It does not answer: that is no proof. Go there, or cut its power (management board, power strip), or take",
        "its network away from it. A ping that is not answered proves nothing either.",
    ]


def _bring_up(f: Facts, point: PointEntry) -> list[str]:
    lines = [_is_active(f, network) for network in f.networks]
    if f.taken:
        return [
            f"It was taken over here already, on point {point.seq}; its disks are {_listed(f)}.",
            "If libvirt has lost its definition:",
            *lines,
            _command(f, "define", "--validate", f.xml_path),
            _command(f, "start", f.manifest.vm_uuid),
        ]
    home, vm = _home(f, point), f.manifest.vm_uuid
    lines.append(_words("mkdir", "-m", "2770", home))
    for target, image in sorted((f.disks or {}).items()):
        name = point.files[target]
        backing = name if name.startswith("/") else f"../../disks/{name}"  # an original disk, where it lies
        lines.append(_words("qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", backing, image))
    if f.nvram:
        lines.append(_words("cp", f"{f.folder}/points/{point.seq:06d}/nvram.fd", f.nvram))
    files = [image for _, image in sorted((f.disks or {}).items())] + ([f.nvram] if f.nvram else [])
    lines += [_words("chown", "-R", f"--reference={f.folder}/disks", home), _words("chmod", "660", *files)]
    if f.tpm_root:
        lines += _tpm(f, point)
    if f.refused:
        lines += [
            f"This host's start guard would refuse it ({f.refused}), so it is told that the VM is this host's:",
            _words("vapor-site", "guard", "override", vm, "--reason", "brought up by hand"),
        ]
    before = shlex.quote(f"{home}/{_BEFORE}")
    dump = shlex.join(["virsh", "-c", f.libvirt_uri, "dumpxml", "--inactive", "--security-info", vm])
    lines += [
        f"{_COMMAND}{dump} >{before} 2>/dev/null || rm {before}",
        _command(f, "define", "--validate", f.xml_path),
        _command(f, "autostart", "--disable", vm),
        _command(f, "start", vm),
    ]
    fresh = f"`vapor-site runbook {f.manifest.vm_name}` prints a fresh one"
    return [
        *lines,
        f"A network is not found: `virsh -c {f.libvirt_uri} net-start NAME`, or another one in {f.xml_path}.",
        "`mkdir` fails: that was done before. Go on where it stopped, or UNDO and begin anew.",
        f"`qemu-img` does not find a backing file: this text is out of date; {fresh}.",
    ]


def _tpm(f: Facts, point: PointEntry) -> list[str]:
    state = f"{f.tpm_root}/{f.manifest.vm_uuid}"
    aside = f"{state}.{by_hand(f.manifest.epoch.number + 1, point.seq)}"
    return [
        f"{_COMMAND}test ! -e {shlex.quote(state)} || mv {shlex.quote(state)} {shlex.quote(aside)}",
        _words("install", "-d", "-m", "711", str(f.tpm_root), state),
        _words("tar", "-x", "-f", f"{f.folder}/points/{point.seq:06d}/tpm.tar", "-C", state),
        _words("chown", "-R", "tss:tss", state),
        _words("chmod", "-R", "u=rwX,go=", state),
        _words("chmod", "711", state),
    ]


def _look(f: Facts) -> list[str]:
    return [
        _command(f, "domstate", f.manifest.vm_uuid),
        _command(f, "domblklist", f.manifest.vm_uuid),
        "It must say “running”. Look at its screen, and at what it does for its users.",
    ]


def _undo(f: Facts, point: PointEntry) -> list[str]:
    vm = f.manifest.vm_uuid
    if f.taken:
        return [f"Not by hand: what {f.manifest.vm_name} wrote here since is only here. Use the console."]
    state = shlex.join(["virsh", "-c", f.libvirt_uri, "domstate", vm])
    off = shlex.join(["virsh", "-c", f.libvirt_uri, "destroy", vm])
    kept, before = f"{_home(f, point)}-undone-", shlex.quote(f"{_home(f, point)}/{_BEFORE}")
    redefine = shlex.join(["virsh", "-c", f.libvirt_uri, "define", f"{_home(f, point)}/{_BEFORE}"])
    return [
        "What it wrote here since is kept aside, and not looked at any more.",
        f"{_COMMAND}{state} | grep -qx 'shut off' || {off}",
        _command(f, "undefine", vm, "--keep-nvram", *(["--keep-tpm"] if f.tpm_root else [])),
        f"{_COMMAND}test ! -e {before} || {redefine}",
        f'{_COMMAND}mv {shlex.quote(_home(f, point))} {shlex.quote(kept)}"$(date -u +%Y%m%dT%H%M%SZ)"',
        "Delete that directory once nobody wants what is in it: until then the points below it are kept.",
    ]


def _afterwards(f: Facts, point: PointEntry) -> list[str]:
    m = f.manifest
    if f.taken:
        provisional = m.provisional == m.epoch.number
        how = "provisional: commit it, or roll it back, from there" if provisional else "failed over"
        return [f"A console that pairs with this site shows it as {how}."]
    done = shlex.join(
        ["vapor-site", "failover", m.vm_name, "--point", str(point.seq), "--reason", "it was brought up by hand"]
    )
    return [
        f"Once vapor-site works here again: `{done}`. It leaves the VM running as it is, and records that it is",
        f"{f.here}'s since epoch {m.epoch.number + 1}: {f.source} does not start it then, and every console knows.",
    ]


# --- how --------------------------------------------------------------------------------------------
def _home(f: Facts, point: PointEntry) -> str:
    return f"{f.folder}/run/{by_hand(f.manifest.epoch.number + 1, point.seq)}"


def _listed(f: Facts) -> str:
    return ", ".join(image for _, image in sorted((f.disks or {}).items()))


def _command(f: Facts, *words: str) -> str:
    return _words("virsh", "-c", f.libvirt_uri, *words)


def _words(*words: str) -> str:
    return _COMMAND + shlex.join(words)


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


def _is_active(f: Facts, network: str) -> str:
    listed = shlex.join(["virsh", "-c", f.libvirt_uri, "net-list", "--name"])
    return f"{_COMMAND}{listed} | grep -qFx {shlex.quote(network)}"
