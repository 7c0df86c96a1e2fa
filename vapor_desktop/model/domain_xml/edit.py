"""Small edits of an XML tree."""

from __future__ import annotations

from lxml import etree


def drop(node: etree._Element) -> None:
    """Remove the element from its parent."""
    parent = node.getparent()
    if parent is not None:
        parent.remove(node)


def drop_all(root: etree._Element, path: str) -> int:
    """Remove every element at that path; how many there were."""
    found = root.findall(path)
    for node in found:
        drop(node)
    return len(found)


def drop_attributes(node: etree._Element, *names: str) -> bool:
    """Remove those attributes; whether any was there."""
    present = [name for name in names if name in node.attrib]
    for name in present:
        del node.attrib[name]
    return bool(present)
