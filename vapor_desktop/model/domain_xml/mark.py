"""Our mark in a domain's ``<metadata>``: which protection, point and epoch a definition came from."""

from __future__ import annotations

from dataclasses import dataclass

from lxml import etree

from vapor_desktop.model.domain_xml.parse import parse_root

NAMESPACE = "urn:vapor-desktop:domain:1"


@dataclass(frozen=True, slots=True)
class Mark:
    """What the mark says."""

    protection_id: str
    epoch: int
    seq: int | None = None  # the recovery point the definition was made from


def read_mark(xml: str) -> Mark | None:
    """The mark of a ``<domain>`` document, None when it has none or a damaged one."""
    node = parse_root(xml).find(f"./metadata/{{{NAMESPACE}}}replica")
    if node is None or not (node.get("epoch") or "").isdigit():
        return None
    seq = node.get("point") or ""
    return Mark(node.get("protection") or "", int(node.get("epoch") or 0), int(seq) if seq.isdigit() else None)


def write_mark(root: etree._Element, mark: Mark) -> None:
    """Put the mark into a ``<domain>`` element, in place of an older one; others' metadata stay."""
    metadata = root.find("./metadata")
    if metadata is None:
        metadata = etree.Element("metadata")
        after = root.find("./uuid")
        root.insert(0 if after is None else root.index(after) + 1, metadata)
    for old in metadata.findall(f"./{{{NAMESPACE}}}replica"):
        metadata.remove(old)
    node = etree.SubElement(metadata, f"{{{NAMESPACE}}}replica", nsmap={"vapor": NAMESPACE})
    node.set("protection", mark.protection_id)
    node.set("epoch", str(mark.epoch))
    if mark.seq is not None:
        node.set("point", str(mark.seq))
