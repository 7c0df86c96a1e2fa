"""A change of a VM's configuration is seen; what moves by itself, or is only written otherwise, is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import etree

from vapor_desktop.model.domain_xml.digest import configuration_digest
from vapor_desktop.model.domain_xml.mark import Mark, write_mark
from vapor_desktop.model.domain_xml.parse import parse_root
from vapor_desktop.model.manifest import config_of_point

DATA = Path(__file__).parent / "domain_xml"
XML = (DATA / "uefi-tpm.xml").read_text()
DIGEST = configuration_digest(XML)


def changed(old: str, new: str) -> str:
    assert old in XML, old
    return configuration_digest(XML.replace(old, new, 1))


def test_the_name_the_balloon_and_our_mark_do_not_count() -> None:
    root = parse_root(XML)
    name = root.find("./name")
    assert name is not None
    name.text = "renamed"
    balloon = root.find("./currentMemory")
    if balloon is None:
        balloon = etree.SubElement(root, "currentMemory")
    balloon.text = "17"
    write_mark(root, Mark("p", 3, 9))
    assert configuration_digest(etree.tostring(root, encoding="unicode", pretty_print=True)) == DIGEST


def test_white_space_and_the_order_of_attributes_do_not_count() -> None:
    plain = "<domain type='kvm'><uuid>u</uuid><vcpu placement='static' current='1'>2</vcpu></domain>"
    other = "<domain id='7' type='kvm'>\n <uuid>u</uuid>\n\n <vcpu current='1' placement='static'> 2 </vcpu></domain>"
    assert configuration_digest(plain) == configuration_digest(other)


@pytest.mark.parametrize(
    ("old", "new"),
    [("<vcpu", "<on_crash>restart</on_crash><vcpu"), ("<devices>", "<devices><input type='tablet'/>")],
)
def test_anything_else_counts(old: str, new: str) -> None:
    assert changed(old, new) != DIGEST


def test_nvram_and_tpm_belong_to_it() -> None:
    assert config_of_point("", {"nvram": b"1"}) == ""
    plain = config_of_point(DIGEST, {})
    one, other = config_of_point(DIGEST, {"nvram": b"1"}), config_of_point(DIGEST, {"nvram": b"2"})
    assert len({plain, one, other, config_of_point(DIGEST, {"nvram": b"1", "tpm": b""})}) == 4
    assert one == config_of_point(DIGEST, {"nvram": b"1"})
