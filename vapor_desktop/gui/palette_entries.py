"""What the command palette lists: every action of the menus, VMs, sites, plans, operations, the guide."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from PySide6.QtGui import QAction, QKeySequence
from PySide6.QtWidgets import QMenu

from vapor_desktop.gui import routes, words
from vapor_desktop.gui.command_palette import Entry
from vapor_desktop.gui.guide_window import open_guide
from vapor_desktop.gui.icons import icon
from vapor_desktop.gui.preferences import SETTINGS
from vapor_desktop.guide.pages import pages

if TYPE_CHECKING:
    from vapor_desktop.gui.main_window import MainWindow


def plain(text: str) -> str:
    """An action's text as people read it."""
    return text.replace("&&", "\0").replace("&", "").replace("\0", "&")


def menu_actions(menus: list[QAction], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], QAction]]:
    """Every real action under a menu bar, with the menus that lead to it."""
    for action in menus:
        menu = action.menu()
        if isinstance(menu, QMenu):
            yield from menu_actions(menu.actions(), (*path, plain(action.text())))
        elif not action.isSeparator():
            yield path, action


def why_not(action: QAction) -> str:
    """What keeps a disabled action from being used."""
    return "" if action.isEnabled() else str(action.property("why") or "there is nothing that it could act on")


def keys_of(action: QAction) -> str:
    """Its shortcuts, as people write them."""
    return ", ".join(s.toString(QKeySequence.SequenceFormat.NativeText) for s in action.shortcuts())


def entries(window: MainWindow) -> list[Entry]:
    """Everything, now."""
    return [*_actions(window), *_vms(window), *_known(window), *_settings(window), *_guide(window)]


def _actions(window: MainWindow) -> Iterator[Entry]:
    for path, action in menu_actions(window.menuBar().actions()):
        if action is window.menus.palette_action:
            continue
        title = plain(action.text())
        ticked = " (on)" if action.isCheckable() and action.isChecked() else ""
        yield Entry(
            f"{title}{ticked}", " › ".join(path), action.trigger, keys_of(action), why_not(action),
            action.statusTip(), None if action.icon().isNull() else action.icon(),
        )  # fmt: skip


def _vms(window: MainWindow) -> Iterator[Entry]:
    snapshot, ink = window.snapshot, window.context.theme.colours.text
    if snapshot is None:
        return
    for row in snapshot.protections:
        told = f"Virtual machine · {row.status_text}"
        run = partial(window.open_vm, row.key)
        yield Entry(row.protection.vm_name, told, run, words=row.protection.vm_uuid, icon=icon("vm", ink))
    for vm in snapshot.unprotected:
        show = partial(routes.show_unprotected, window, vm)
        told = f"Virtual machine · not protected, at {vm.site_name}"
        yield Entry(vm.name, told, show, words=vm.vm_uuid, icon=icon("vm", ink))


def _known(window: MainWindow) -> Iterator[Entry]:
    snapshot, ink = window.snapshot, window.context.theme.colours.text
    if snapshot is None:
        return
    for s in snapshot.sites:
        state = {True: "reachable", False: "unreachable", None: "not tried yet"}[s.reachable]
        run = partial(routes.open_site, window, s.site.site_id)
        yield Entry(s.site.name, f"Site · {state}", run, words=s.site.api_url, icon=icon("site", ink))
    for p in snapshot.plans:
        run = partial(routes.open_plan, window, p.plan.plan_id)
        yield Entry(p.plan.name, "Recovery plan", run, icon=icon("plan", ink))
    for o in snapshot.operations:
        run = partial(routes.open_operation, window, o.operation_id)
        title = f"{words.capital(o.kind.value)} {o.vm_name}".strip()
        yield Entry(title, f"Operation · {o.state.value}", run, icon=icon("activity", ink))


def _settings(window: MainWindow) -> Iterator[Entry]:
    picture = icon("settings", window.context.theme.colours.text)
    for setting in SETTINGS:
        run = partial(window.menus.open_settings, setting.title)
        words_ = f"{setting.key} {setting.told}"
        yield Entry(setting.title, f"Setting › {setting.section}", run, words=words_, icon=picture)


def _guide(window: MainWindow) -> Iterator[Entry]:
    theme = window.context.theme
    for page in pages():
        run = partial(open_guide, window, theme, page.name)
        yield Entry(page.title, "User guide", run, icon=icon("eye", theme.colours.text))
