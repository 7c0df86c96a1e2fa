"""``vaporctl settings`` and ``vaporctl edit``: what a protection promises, read and changed at its target."""

from __future__ import annotations

import click

from vapor_desktop.cli import program
from vapor_desktop.cli.completing import vm_names
from vapor_desktop.cli.output import Output, duration, json_option, size
from vapor_desktop.cli.policy_options import PolicyOptions, policy_options
from vapor_desktop.model import retention
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.times import times_text
from vapor_desktop.model.view import ProtectionSettings, SettingsEdit


def settings_facts(s: ProtectionSettings) -> dict[str, object]:
    """For ``--json``."""
    return {
        "vm": s.vm_name,
        "version": s.version,
        "policy": s.policy.model_dump(mode="json"),
        "networks": dict(s.mappings.networks),
        "points_kept": retention.kept_points(s.policy.retention),
        "chain_limit": s.chain_limit,
        "reaches_back_s": retention.reach(s.policy.retention, retention.interval_s(s.policy)).total_seconds(),
    }


def _lines(s: ProtectionSettings) -> list[tuple[str, str]]:
    policy, keep = s.policy, s.policy.retention
    reach = retention.reach(keep, retention.interval_s(policy)).total_seconds()
    windows = "; ".join(
        f"{w.start:%H:%M}-{w.end:%H:%M} {_rate(w.bandwidth_bytes_s)}" for w in policy.bandwidth_windows
    )
    return [
        ("RPO target", duration(policy.rpo_target_s)),
        ("Cycles", f"at {times_text(policy.at_times)} UTC" if policy.at_times else "by the RPO target"),
        (
            "Points kept",
            f"newest {keep.newest}, hourly {keep.hourly}, daily {keep.daily}: {retention.kept_points(keep)} points "
            f"(at most {s.chain_limit - 1} fit), back to {duration(reach)}",
        ),
        ("Quiesce", policy.quiesce.value),
        ("Bandwidth limit", _rate(policy.bandwidth_bytes_s)),
        ("Windows (UTC)", windows or "none"),
        ("Streams", str(policy.streams)),
        ("Priority", str(policy.priority)),
        ("Networks", ", ".join(f"{a} → {b}" for a, b in sorted(s.mappings.networks.items())) or "none"),
        ("Version", str(s.version)),
    ]


def _rate(count: int | None) -> str:
    return "no limit" if count is None else f"{size(count)}/s"


@click.command()
@click.argument("vm", shell_complete=vm_names)
@json_option
@click.pass_obj
def settings(out: Output, vm: str) -> None:
    """What VM's protection promises, read from the manifest at its target."""
    with program.reading() as backend:
        found = backend.settings(program.find_protection(backend, vm).key)
    if out.as_json:
        out.json(settings_facts(found))
        return
    for name, text in _lines(found):
        click.echo(f"  {name + ':':<18}{text}")


@click.command()
@click.argument("vm", shell_complete=vm_names)
@policy_options
@click.option("--if-version", type=int, default=None, help="Only if the settings are still at this version.")
@json_option
@click.pass_obj
def edit(out: Output, vm: str, asked: PolicyOptions, if_version: int | None) -> None:
    """Change what VM's protection promises. What is not given stays. It is written to the target's manifest.

    A running cycle is stopped and goes on under the new settings; what it has sent is kept.
    """
    with program.reading() as backend:
        row = program.find_protection(backend, vm)
        before = backend.settings(row.key)
        policy: Policy = asked.policy(before.policy)
        mappings = before.mappings.model_copy(update={"networks": asked.networks(before.mappings.networks)})
        if (policy, mappings) == (before.policy, before.mappings):
            raise InvalidRequest("Nothing would change", fix="`vaporctl edit --help` names what can be")
        version = before.version if if_version is None else if_version
        backend.edit(row.key, SettingsEdit(version, policy, mappings))
        after = backend.settings(row.key)
    out.say(f"{after.vm_name}: settings changed (version {after.version})", **settings_facts(after))


COMMANDS = (settings, edit)
