"""Did a VM's configuration change since its last recovery point? One number says so."""

from __future__ import annotations

import hashlib

from lxml import etree

from vapor_desktop.model.domain_xml.edit import drop_all, drop_attributes
from vapor_desktop.model.domain_xml.mark import NAMESPACE
from vapor_desktop.model.domain_xml.parse import parse_root

# The name is only followed (a VM is its UUID); the balloon moves by itself; the mark is ours.
_VOLATILE = ("./name", "./currentMemory", f"./metadata/{{{NAMESPACE}}}replica")


def configuration_digest(domain_xml: str) -> str:
    """SHA-256 (hex) of what a ``<domain>`` document says; the order of attributes and white space do not count."""
    root = parse_root(domain_xml)
    for path in _VOLATILE:
        drop_all(root, path)
    for metadata in root.findall("./metadata"):
        if len(metadata) == 0:
            root.remove(metadata)
    drop_attributes(root, "id")
    for node in root.iter():
        node.text = (node.text or "").strip() or None
        node.tail = None
    etree.cleanup_namespaces(root)
    return hashlib.sha256(etree.tostring(root, method="c14n")).hexdigest()
