"""Whether a VM's TPM survives a failover, and the words for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vapor_desktop.model.domain_xml.parse import parse_domain
from vapor_desktop.model.domain_xml.target import build_target
from vapor_desktop.model.tpm import TpmPlan, plan_tpm, tpm_fix, tpm_warning
from vapor_desktop.model.wire import TpmState, TpmSupport

SOURCE = (Path(__file__).parent / "domain_xml" / "uefi-tpm.xml").read_text()
BACKEND = "<backend type='emulator' version='2.0'/>"
READ = TpmState(digest="ab")
ABLE = TpmSupport(emulates=True)
NO_HELPER = TpmSupport(emulates=True, why="the target's root helper does not answer", fix="Start it")
NO_SWTPM = TpmSupport(emulates=False, why="the target has no swtpm", fix="Install it")


def with_backend(backend: str) -> str:
    assert SOURCE.count(BACKEND) == 1
    return SOURCE.replace(BACKEND, backend)


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (BACKEND, ""),
        ("", ""),
        ("<backend type='emulator'><encryption secret='u'/></backend>", "encrypted"),
        ("<backend type='emulator'><source type='dir' path='/srv/tpm'/></backend>", "/srv/tpm"),
        ("<backend type='passthrough'><device path='/dev/tpm0'/></backend>", "own TPM"),
        ("<backend type='external'><source type='unix' path='/s'/></backend>", "type external"),
    ],
)
def test_what_a_definition_says_against_it(backend: str, words: str) -> None:
    facts = parse_domain(with_backend(backend))
    assert facts.has_tpm
    assert words in facts.tpm_obstacle
    assert bool(facts.tpm_obstacle) == bool(words)
    assert (facts.tpm_dir is None) == bool(words)


def build(xml: str, *, tpm: bool = True) -> str:
    return build_target(xml, disks={}, networks={}, nvram=None, kvm=True, fresh_genid=False, tpm=tpm).xml


def test_the_target_gets_a_tpm_that_needs_no_secret_and_no_directory_of_the_source() -> None:
    backend = (
        "<backend type='emulator'><source type='dir' path='/srv/tpm'/><encryption secret='5ec'/>"
        "<active_pcr_banks><sha256/></active_pcr_banks></backend>"
    )
    facts = parse_domain(build(with_backend(backend)))
    assert (facts.has_tpm, facts.tpm_obstacle) == (True, "")
    assert "sha256" in build(with_backend(backend))


def test_a_target_without_swtpm_gets_no_tpm() -> None:
    assert not parse_domain(build(SOURCE, tpm=False)).has_tpm


def test_the_plan_of_a_start() -> None:
    assert plan_tpm("", ABLE) == TpmPlan(True, True)
    for obstacle, support, device, words in (
        ("", NO_HELPER, True, NO_HELPER.why),
        ("its state is encrypted", ABLE, True, "its state is encrypted"),
        ("its state is encrypted", NO_SWTPM, False, NO_SWTPM.why),
    ):
        plan = plan_tpm(obstacle, support)
        assert (plan.device, plan.place) == (device, False)
        assert words in plan.note


def test_called_not_fully_protected_with_the_first_reason() -> None:
    unread = TpmState(digest=None, why="The root helper does not answer", fix="Start the source's")
    assert tpm_warning("", READ, ABLE) == ""
    assert tpm_fix("", READ, ABLE) == ""
    for obstacle, source, target, words, fix in (
        ("", unread, NO_HELPER, unread.why, unread.fix),
        ("", READ, NO_SWTPM, NO_SWTPM.why, NO_SWTPM.fix),
        ("its state is encrypted", None, NO_SWTPM, "its state is encrypted", "Keep the recovery keys"),
    ):
        warning = tpm_warning(obstacle, source, target)
        assert warning.startswith("not fully protected: ")
        assert warning.endswith(words)
        assert tpm_fix(obstacle, source, target).startswith(fix)
