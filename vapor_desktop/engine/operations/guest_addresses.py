"""Give a recovered Linux guest its addresses at the target, by a script that its agent runs.

The network card is found by its MAC, which the VM keeps. NetworkManager keeps the new address across a restart of
the guest; any other way of configuring is changed for now only, and the result says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from vapor_desktop.engine.operations.steps import Result, StepContext
from vapor_desktop.model.errors import GuestMissing
from vapor_desktop.model.plans import Address
from vapor_desktop.model.sites import Protection

AGENT_S = 120.0
SCRIPT_S = 30.0
SEEN_S = 10.0

_SCRIPT = """set -e
mac={mac} want={address} gateway={gateway} dns={dns}
card=
for path in /sys/class/net/*; do
    [ -r "$path/address" ] && [ "${{path##*/}}" != lo ] || continue
    [ -z "$mac" ] || [ "$(cat "$path/address")" = "$mac" ] || continue
    card=${{path##*/}}; break
done
[ -n "$card" ] || {{ echo "no network card ${{mac:-at all}}" >&2; exit 3; }}
if command -v nmcli >/dev/null 2>&1 && name=$(nmcli -g GENERAL.CONNECTION device show "$card") && [ -n "$name" ]; then
    nmcli connection modify "$name" ipv{family}.method manual ipv{family}.addresses "$want" \\
        ipv{family}.gateway "$gateway" ipv{family}.dns "$dns"
    nmcli connection up "$name" >/dev/null
    echo kept
    exit 0
fi
# What renews a lease would set the old address again.
for pid in $(ps -o pid,args 2>/dev/null | sed -n 's/^ *\\([0-9]*\\) .*\\(udhcpc\\|dhclient\\|dhcpcd\\).*/\\1/p'); do
    [ "$pid" = $$ ] || kill "$pid" 2>/dev/null || :
done
ip link set "$card" up
ip -{family} addr flush dev "$card" scope global
ip addr add "$want" dev "$card"
[ -z "$gateway" ] || ip -{family} route replace default via "$gateway" dev "$card"
if [ -n "$dns" ]; then
    : >/etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
fi
echo "for now"
"""


def script(address: Address) -> str:
    """What the agent runs; the same again changes nothing."""
    return _SCRIPT.format(
        mac=shlex.quote(address.mac),
        address=shlex.quote(address.address),
        gateway=shlex.quote(address.gateway),
        dns=shlex.quote(" ".join(address.dns)),
        family=6 if ":" in address.ip else 4,
    )


def set_addresses(
    ctx: StepContext, p: Protection, wanted: Sequence[Address], check: Callable[[], None]
) -> list[Result]:
    """Set each and see it. ``check`` raises when a person stopped it. Raises GuestMissing naming what was not so."""
    hv = ctx.hypervisor(p.target_site)

    def answers() -> bool:
        check()
        return hv.agent_ping(p.vm_uuid)

    def shows(address: Address) -> Callable[[], bool]:
        return lambda: there(address)

    def there(address: Address) -> bool:
        told = hv.agent_addresses(p.vm_uuid)
        return any(address.address in found for mac, found in told.items() if address.mac in {"", mac})

    if not ctx.wait_until(answers, AGENT_S, 0.5):
        raise GuestMissing(
            f"The addresses of “{p.vm_name}” were not set: its agent has not answered for {AGENT_S:g} s",
            fix="Set them in the guest, or install qemu-guest-agent in it",
        )
    done = []
    for address in wanted:
        how = "it had it already"
        if not there(address):
            ran = hv.agent_run(p.vm_uuid, script(address), SCRIPT_S)
            if ran.code != 0:
                ended = "the script did not end" if ran.code is None else f"it ended with {ran.code}"
                why = ran.err.strip() or ended
                raise GuestMissing(f"“{p.vm_name}” did not take the address {address.address}", why=why)
            how = "kept across restarts" if ran.out.strip() == "kept" else "until the guest is restarted"
            if not ctx.wait_until(shows(address), SEEN_S, 0.5):
                raise GuestMissing(f"“{p.vm_name}” was given the address {address.address} and does not show it")
        done.append({"address": address.address, "how": how})
    return done
