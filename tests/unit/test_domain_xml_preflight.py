"""What a target lacks, judged by the capabilities that a real libvirt 9.0 without KVM printed."""

from __future__ import annotations

from pathlib import Path

from vapor_desktop.model.domain_xml.preflight import Finding, preflight
from vapor_desktop.model.domain_xml.target import build_target

DATA = Path(__file__).parent / "domain_xml"
HOST = (DATA / "capabilities.xml").read_text()
OFFERS = (DATA / "domcapabilities-q35-qemu.xml").read_text()


ACTIVE = ("default", "lan", "wan", "storage")


def target(name: str) -> str:
    return (DATA / f"{name}.target.xml").read_text()


def findings(
    xml: str, networks: tuple[str, ...] = ACTIVE, offers: str | None = OFFERS, host: str = HOST
) -> list[Finding]:
    return preflight(xml, networks=networks, capabilities_xml=host, domain_capabilities_xml=offers)


def whats(found: list[Finding], blocking: bool = True) -> list[str]:
    return [f.what for f in found if f.blocking is blocking]


def test_a_target_that_fits_lacks_nothing() -> None:
    assert findings(target("hardware")) == []


def test_missing_network_names_the_active_ones() -> None:
    found = findings(target("hardware"), networks=("lan",))
    assert [(f.what, f.fix) for f in found] == [
        ("The target has no active network wan", "Start it there, or map it (active: lan)")
    ]
    error = found[0].error()
    assert (error.code, error.fix) == ("TARGET-LACKS", "Start it there, or map it (active: lan)")


def test_unmapped_bridge_is_a_doubt_not_a_refusal() -> None:
    source = (DATA / "uefi-tpm.xml").read_text()
    xml = build_target(
        source, disks={}, networks={"storage": "storage"}, nvram=None, kvm=False, fresh_genid=False
    ).xml
    found = findings(xml)
    assert whats(found) == []
    assert whats(found, blocking=False) == [
        "The bridge or device br-lan has no mapping; whether the target has one of that name is not known"
    ]


def test_machine_type_of_a_newer_host() -> None:
    xml = target("hardware").replace("pc-q35-7.2", "pc-q35-10.0")
    assert whats(findings(xml, offers=None)) == ["The target's QEMU does not know the machine type pc-q35-10.0"]


def test_kvm_guest_on_a_host_without_kvm() -> None:
    found = findings(target("uefi-tpm"), host=HOST.replace('<domain type="kvm"/>', ""))
    assert whats(found) == [
        "The target offers no kvm",
        "The target offers no CPU mode host-passthrough",
    ]


def test_missing_firmware_lists_what_there_is() -> None:
    xml = target("hardware").replace("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/edk2/ovmf/OVMF_CODE.fd")
    (found,) = findings(xml)
    assert found.what == "The target has no firmware /usr/share/edk2/ovmf/OVMF_CODE.fd"
    assert "/usr/share/OVMF/OVMF_CODE_4M.fd" in found.fix


def test_firmware_chosen_by_libvirt() -> None:
    auto = target("hardware").replace("<os>", "<os firmware='efi'>")
    auto = auto.replace(
        '<loader secure="no" readonly="yes" type="pflash">/usr/share/OVMF/OVMF_CODE_4M.fd</loader>', ""
    )
    assert findings(auto) == []
    without = OFFERS.replace("<value>efi</value>", "")
    assert whats(findings(auto, offers=without)) == ["The target has no efi firmware"]


def test_tpm_needs_swtpm() -> None:
    xml = target("hardware").replace("</devices>", "<tpm><backend type='emulator'/></tpm></devices>")
    assert findings(xml) == []
    assert whats(findings(xml, offers=OFFERS.replace("<value>emulator</value>", "")), blocking=False) == [
        "The target cannot emulate a TPM: the VM would start without one"
    ]


def test_cpu_model_that_the_host_cannot_be() -> None:
    def with_model(model: str) -> str:
        return target("hardware").replace('<cpu mode="maximum"/>', f"<cpu mode='custom'><model>{model}</model></cpu>")

    assert findings(with_model("qemu64")) == []
    assert whats(findings(with_model("phenom"))) == ["The target's processor cannot be a phenom"]
    assert whats(findings(with_model("Martian-v9"))) == ["The target's processor cannot be a Martian-v9"]


def test_more_memory_than_the_target_has() -> None:
    xml = target("hardware").replace('<memory unit="KiB">1048576</memory>', "<memory unit='TiB'>64</memory>")
    (found,) = findings(xml)
    assert found.what.startswith("The VM has 67108864 MiB of memory, the target ")


def test_screen_that_the_target_cannot_show() -> None:
    xml = target("hardware").replace("</devices>", "<graphics type='spice'/></devices>")
    without = OFFERS.replace("<value>spice</value>", "")
    assert whats(findings(xml, offers=without)) == ["The target's QEMU offers no graphics of type spice"]


def test_foreign_architecture() -> None:
    xml = target("hardware").replace('arch="x86_64"', 'arch="s390x"')
    assert "The target cannot run s390x guests" in whats(findings(xml))


def test_blocking_findings_come_first() -> None:
    xml = target("uefi-tpm").replace("host-passthrough", "host-model")
    found = findings(xml)
    assert [f.blocking for f in found] == sorted((f.blocking for f in found), reverse=True)
    assert whats(found, blocking=False) == [
        "The guest will see the target's processor: some licences ask for activation again"
    ]
