"""Recovery plans as values, and when one is ready: pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from vapor_desktop.model.domain_xml.preflight import Finding
from vapor_desktop.model.errors import InvalidRequest
from vapor_desktop.model.plans import CheckKind, Plan, PlanVm, Problem, Tier, WaitFor, newest, read_plan, shared_vms
from vapor_desktop.model.policy import Policy
from vapor_desktop.model.readiness import SiteSeen, VmSeen, problems
from vapor_desktop.model.sites import Protection

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
GIB = 1 << 30


def plan(**more: Any) -> Plan:
    tiers = (
        Tier(vms=(PlanVm(vm_uuid="u-db", name="db"),)),
        Tier(vms=(PlanVm(vm_uuid="u-web", name="web"),)),
    )
    return Plan(**({"plan_id": "p", "name": "Shop", "tiers": tiers, "changed_at": NOW, "version": 1} | more))


def seen(name: str, **more: Any) -> VmSeen:
    p = Protection(
        protection_id=f"p-{name}", vm_uuid=f"u-{name}", vm_name=name, source_site="A", target_site="B",
        policy=Policy(), epoch_owner="A", created_at=NOW,
    )  # fmt: skip
    return VmSeen(**({"protection": p, "owner": "A", "newest": 7} | more))


GOOD = {"B": SiteSeen("site-b", networks=("dr",), free_bytes=50 * GIB, reserve_bytes=GIB)}


def test_a_plan_whose_vms_all_have_what_they_need_is_ready() -> None:
    assert problems(plan(), {"u-db": seen("db"), "u-web": seen("web")}, GOOD) == ()


@pytest.mark.parametrize(
    ("broken", "sites", "words"),
    [
        (None, GOOD, "web: it is not protected"),
        (seen("web", newest=None), GOOD, "web: it has no complete recovery point"),
        (seen("web", verified=False), GOOD, "web: the data of its recovery point 7 did not match its digests"),
        (
            seen("web", lacks=(Finding("The network dr is not at the target", "Map it"),)),
            GOOD,
            "web: The network dr is not at the target",
        ),
        (seen("web", trouble="its manifest is damaged"), GOOD, "web: its manifest is damaged"),
        (seen("web", owner="B"), GOOD, "web: it belongs to site-b already; nothing protects it there"),
        (seen("web"), {"B": SiteSeen("site-b", trouble="timed out")}, "site-b cannot be looked at: timed out"),
        (
            seen("web"),
            {"B": SiteSeen("site-b", free_bytes=GIB // 2, reserve_bytes=GIB)},
            "site-b has no space for what the VMs would write there (0.5 GiB free, 1.0 GiB of it reserved)",
        ),
    ],
)
def test_it_loses_its_tick_and_says_which_vm_and_which_thing(
    broken: VmSeen | None, sites: dict[str, SiteSeen], words: str
) -> None:
    found = problems(plan(), {"u-db": seen("db"), "u-web": broken}, sites)
    assert [p.words for p in found] == [words]


def test_a_doubt_is_no_reason_and_a_network_of_the_plan_must_be_there() -> None:
    doubt = seen("db", lacks=(Finding("Whether the bridge is there is not known", "", blocking=False),))
    assert problems(plan(), {"u-db": doubt, "u-web": seen("web")}, GOOD) == ()
    mapped = plan(tiers=(Tier(vms=(PlanVm(vm_uuid="u-db", name="db", networks={"lan": "gone", "x": "dr"}),)),))
    assert problems(mapped, {"u-db": seen("db")}, GOOD) == (
        Problem("u-db", "db", "site-b has no network gone", "Map it to one of the networks there"),
    )


def test_what_is_wrong_in_a_plan_is_named() -> None:
    raw = plan().model_dump(mode="json")
    assert read_plan(raw) == plan()
    for change, words in [
        ({"tiers": []}, "it has no tier"),
        ({"tiers": [*raw["tiers"], raw["tiers"][0]]}, "“db” is in it twice"),
        ({"name": ""}, "name"),
        ({"parallel": 0}, "parallel"),
        ({"plan_format": 2}, "plan_format"),
        ({"tires": []}, "tires"),
    ]:
        with pytest.raises(InvalidRequest) as caught:
            read_plan({**raw, **change})
        assert words in caught.value.why


@pytest.mark.parametrize(
    "wrong",
    [
        {"checks": [{"kind": "tcp"}]},
        {"checks": [{"kind": "agent", "port": 80}]},
        {"checks": [{"kind": "tcp", "port": 80, "address": "web.example"}]},
        {"addresses": [{"address": "198.51.100.7"}]},
        {"addresses": [{"address": "198.51.100.7/24", "mac": "52:54"}]},
        {"addresses": [{"address": "198.51.100.7/24", "gateway": "the router"}]},
    ],
)
def test_a_check_or_an_address_that_cannot_be(wrong: dict[str, Any]) -> None:
    raw = plan().model_dump(mode="json")
    raw["tiers"][0]["vms"][0].update(wrong)
    with pytest.raises(InvalidRequest):
        read_plan(raw)


def test_the_higher_version_is_the_newer_copy() -> None:
    old, new = plan(version=2), plan(version=3, deleted=True, tiers=())
    assert newest([new, old, plan(version=1)]) == {"p": new}


def test_plans_that_share_a_vm() -> None:
    other = plan(plan_id="q", tiers=(Tier(vms=(PlanVm(vm_uuid="u-web", name="web"),)),))
    assert shared_vms(plan(), other) == ("web",)
    assert shared_vms(plan(), plan(plan_id="q", tiers=(Tier(vms=(PlanVm(vm_uuid="z", name="z"),)),))) == ()


def test_checks_in_words() -> None:
    assert WaitFor(kind=CheckKind.TCP, port=80).words == "port 80"
    assert WaitFor(kind=CheckKind.AGENT).words == "agent answers"
