"""What later libvirts write out of what every libvirt takes for granted: an earlier one refuses the words.

Compared by hand: the same definition of a q35 guest with UEFI, dumped by libvirt 9.0 and 11.3.
"""

from __future__ import annotations

from lxml import etree

from vapor_desktop.model.domain_xml.edit import drop, drop_all, drop_attributes


def forget_defaults(root: etree._Element) -> None:
    """Take out what the target's libvirt, if it is as new, writes in again by itself."""
    os_node = root.find("./os")
    loader = os_node.find("./loader") if os_node is not None else None
    if os_node is not None and loader is not None and loader.text:
        # A loader that is named needs no search for one; before 9.2 both at once are refused.
        drop_attributes(os_node, "firmware")
        drop_all(os_node, "./firmware")
        if loader.get("format") == "raw":
            drop_attributes(loader, "format")
    machine = root.find("./os/type")
    if machine is not None and "q35" in (machine.get("machine") or ""):
        # Part of the chip set; libvirt knows it by name since 9.1. Another action than the default is a choice.
        for watchdog in root.findall("./devices/watchdog[@model='itco']"):
            if watchdog.get("action", "reset") == "reset":
                drop(watchdog)
