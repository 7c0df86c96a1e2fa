"""What an assistive technology sees of the console, asked line by line. Debian's own Python runs it: it has pyatspi.

A line of stdin is JSON ``{"role": …, "name": a regular expression}``; the answer is a list of what is showing.
"""

import json
import re
import sys

import pyatspi
from gi.repository import GLib

APP = "vapor-desktop"


def console():
    for found in pyatspi.Registry.getDesktop(0):
        if found is not None and found.name == APP:
            return found
    return None


def walk(node, depth=0):
    """Everything below that is on the screen; a hidden page is not gone into."""
    if node is None or depth > 40:
        return
    yield node
    for n in range(node.childCount):
        child = node.getChildAtIndex(n)
        if child is not None and (
            child.getState().contains(pyatspi.STATE_SHOWING) or child.getRole() == pyatspi.ROLE_TABLE_CELL
        ):
            yield from walk(child, depth + 1)


def told(node):
    states = node.getState()
    box = node.queryComponent().getExtents(pyatspi.DESKTOP_COORDS)
    return {
        "name": node.name,
        "role": node.getRoleName(),
        "enabled": states.contains(pyatspi.STATE_ENABLED),
        "checked": states.contains(pyatspi.STATE_CHECKED),
        "box": [box.x, box.y, box.width, box.height],
    }


def find(role, pattern):
    found = []
    for node in walk(console()):
        try:
            if (not role or node.getRoleName() == role) and re.search(pattern, node.name or ""):
                found.append(told(node))
        except (
            LookupError,
            NotImplementedError,
            GLib.GError,
        ):  # it went away while it was looked at; or it has no place
            continue
    return [f for f in found if f["box"][2] > 0 and f["box"][0] > -1000]


for line in sys.stdin:
    asked = json.loads(line)
    try:
        answer = find(asked["role"], asked["name"])
    except (LookupError, RuntimeError, GLib.GError) as error:  # a thing went away meanwhile: to be asked again
        answer = {"error": repr(error)}
    print(json.dumps(answer), flush=True)
