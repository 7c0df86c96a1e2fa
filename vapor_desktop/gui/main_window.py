"""The main window: navigation, tool bar, banners, pages, activity panel, status bar."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt, QTimer, Signal
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import (
    QHBoxLayout,
    QListWidget,
    QListWidgetItem,
    QMainWindow,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from vapor_desktop.gui.activity import ActivityPage, ActivityPanel
from vapor_desktop.gui.banner import BannerBar
from vapor_desktop.gui.commands import Commands
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.detail_page import DetailPage
from vapor_desktop.gui.first_run import FirstRun
from vapor_desktop.gui.icons import icon
from vapor_desktop.gui.menus import Menus
from vapor_desktop.gui.operations_tab import question_banners
from vapor_desktop.gui.overview import Overview
from vapor_desktop.gui.plan_commands import PlanCommands
from vapor_desktop.gui.plans_page import PlansPage
from vapor_desktop.gui.preferences import Preferences
from vapor_desktop.gui.protection_columns import Chip, Row
from vapor_desktop.gui.reports_page import ReportsPage
from vapor_desktop.gui.session import remember_place, restore_place
from vapor_desktop.gui.sites_page import SitesPage
from vapor_desktop.gui.status_line import StatusLine
from vapor_desktop.gui.verbs import Verbs
from vapor_desktop.gui.vms_page import VmsPage
from vapor_desktop.model.errors import KeyringLocked, KeyringMissing, VaporError
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Banner, Snapshot

PAGES = (
    ("overview", "&Overview"),
    ("vms", "&Virtual machines"),
    ("sites", "&Sites"),
    ("activity", "&Activity"),
    ("plans", "&Plans"),
    ("reports", "&Reports"),
)
VMS, ACTIVITY, PLANS, DETAIL = 1, 3, 4, len(PAGES)


class MainWindow(QMainWindow):
    """The console.

    Signals:
        close_asked: the user wants the window gone; whoever hosts the engine decides how.
        quit_asked: the user wants the program to end.
    """

    close_asked = Signal()
    quit_asked = Signal()

    def __init__(self, context: Context, *, demo: bool = False) -> None:
        super().__init__()
        self.context = context
        self.snapshot: Snapshot | None = None
        self._own_banners: dict[str, Banner] = {}
        self._may_close = False
        self._left_vm = ""  # shown when the window was left
        self._wanted_operation = ""  # begun here, to be shown as soon as it is known
        self.setWindowTitle("Vapor Desktop — DEMO" if demo else "Vapor Desktop")
        self.setObjectName("main")
        self.verbs = Verbs(context.theme, self)
        self.commands = Commands(context, self)
        self.plan_commands = PlanCommands(context, self)
        self._build_pages()
        self._build_frame()
        self.menus = Menus(self, PAGES)
        self.first_run = FirstRun(self)
        self._connect()
        self._recolour()
        self._restore()
        self._clock = QTimer(self)
        self._clock.timeout.connect(self._tick)
        self._clock.start(1000)

    # --- building ---------------------------------------------------------------------------------
    def _build_pages(self) -> None:
        context = self.context
        self.overview = Overview(context, self)
        self.vms = VmsPage(context, self.verbs, self)
        self.sites = SitesPage(context, self)
        self.activity = ActivityPage(context, self)
        self.plans = PlansPage(context, self)
        self.reports = ReportsPage(context, self)
        self.detail = DetailPage(context, self.verbs, self)
        self.pages = QStackedWidget(self)
        for page in (self.overview, self.vms, self.sites, self.activity, self.plans, self.reports, self.detail):
            self.pages.addWidget(page)

    def _build_frame(self) -> None:
        self.navigation = QListWidget(self)
        self.navigation.setAccessibleName("Pages")
        self.navigation.setIconSize(QSize(20, 20))
        self.navigation.setFrameShape(QListWidget.Shape.NoFrame)
        for _key, text in PAGES:
            item = QListWidgetItem(text.replace("&", ""))
            item.setSizeHint(QSize(0, max(38, self.fontMetrics().height() + 18)))
            self.navigation.addItem(item)
        widest = max(self.fontMetrics().horizontalAdvance(f"{text}  (9999)") for _key, text in PAGES)
        self.navigation.setFixedWidth(max(190, widest + 46))  # icon, margins
        self.banners = BannerBar(self.context.theme, self)
        right = QVBoxLayout()
        right.setContentsMargins(0, 0, 0, 0)
        right.setSpacing(0)
        right.addWidget(self.banners)
        right.addWidget(self.pages, 1)
        body = QWidget(self)
        row = QHBoxLayout(body)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        row.addWidget(self.navigation)
        row.addLayout(right, 1)
        self.setCentralWidget(body)
        self.panel = ActivityPanel(self.context.theme, self)
        self.addDockWidget(Qt.DockWidgetArea.BottomDockWidgetArea, self.panel)
        self.resizeDocks([self.panel], [150], Qt.Orientation.Vertical)
        self.status_line = StatusLine(self.context.theme)
        self.setStatusBar(self.status_line)

    def _connect(self) -> None:
        context = self.context
        context.bridge.snapshot.connect(self.take)
        context.bridge.trouble.connect(self._trouble)
        context.errands.changed.connect(self._show_tasks)
        context.errands.failed.connect(self.commands.show_failure)
        context.theme.changed.connect(self._recolour)
        self.navigation.currentRowChanged.connect(self._navigated)
        self.verbs.asked.connect(self.commands.do)
        self.commands.opened.connect(self.open_vm)
        self.commands.begun.connect(self.open_operation)
        self.activity.operations.answer_asked.connect(self.commands.answer)
        self.activity.alerts.open_asked.connect(self.open_vm)
        self.activity.operations.undo_asked.connect(self.commands.undo)
        self.vms.opened.connect(self._open_row)
        self.overview.opened.connect(self._open_row)
        self.overview.chip_asked.connect(self.show_chip)
        self.overview.card_asked.connect(self.first_run.take)
        self.sites.pair_asked.connect(self.commands.pair)
        self.sites.remove_asked.connect(self.commands.remove_site)
        self.sites.adopt_asked.connect(self.commands.adopt)
        self._connect_plans()
        self.detail.left.connect(lambda: self.go(VMS))
        self.panel.cancel_asked.connect(self.commands.cancel)
        self.banners.acted.connect(self._banner_acted)

    def _connect_plans(self) -> None:
        page, commands = self.plans, self.plan_commands
        page.new_asked.connect(commands.new)
        page.edit_asked.connect(commands.edit)
        page.run_asked.connect(commands.run)
        page.delete_asked.connect(commands.delete)
        page.stop_asked.connect(commands.stop)
        page.answer_asked.connect(self.commands.answer)

    # --- showing ------------------------------------------------------------------------------------
    def take(self, snapshot: Snapshot) -> None:
        """Show a snapshot, everywhere."""
        self.snapshot = snapshot
        self._own_banners.pop("trouble", None)
        self.commands.take(snapshot)
        self.plan_commands.take(snapshot)
        for page in (self.overview, self.vms, self.sites, self.activity, self.plans, self.detail):
            page.take(snapshot)
        if self._wanted_operation and self.activity.operations.select(self._wanted_operation):
            self._wanted_operation = ""
        self._restore_vm()
        self.status_line.take(snapshot)
        self._show_tasks()
        self._show_banners()
        self._count()

    def set_banner(self, banner: Banner) -> None:
        """A standing condition of the console's own."""
        self._own_banners[banner.key] = banner
        self._show_banners()

    def open_vm(self, protection_id: str) -> bool:
        """Raise the window on that VM's page; False when there is no such protection."""
        row = self.vms.model.get(protection_id)
        self.raise_up()
        if row is None or row.status is None:
            return False
        self._open_row(row)
        return True

    def open_operation(self, operation_id: str) -> None:
        """The activity page with that operation; one begun just now as soon as it is known."""
        self.go(ACTIVITY)
        self._wanted_operation = "" if self.activity.show_operation(operation_id) else operation_id

    def raise_up(self) -> None:
        """Show the window in front."""
        self.setWindowState(self.windowState() & ~Qt.WindowState.WindowMinimized)
        self.show()
        self.raise_()
        self.activateWindow()

    def go(self, page: int) -> None:
        """Show one of the pages of the navigation."""
        self.navigation.setCurrentRow(page)
        self._navigated(page)

    def go_to(self, key: str) -> None:
        """Show a page by its key."""
        self.go([name for name, _text in PAGES].index(key))

    def show_chip(self, chip: Chip) -> None:
        """The table, filtered."""
        self.go(VMS)
        self.vms.filter_edit.clear()
        self.vms.choose(chip)
        self.vms.table.setFocus()

    def _navigated(self, page: int) -> None:
        if page >= 0:
            self.pages.setCurrentIndex(page)
            self.verbs.use(self.vms.chosen() if page == VMS else [])

    def _open_row(self, row: Row) -> None:
        if row.status is None:
            self.commands.protect([row])
            return
        self.navigation.setCurrentRow(VMS)
        self.pages.setCurrentIndex(DETAIL)
        self.vms.table.select(row.key)
        self.detail.show_row(row)

    def _show_tasks(self) -> None:
        theirs = self.snapshot.tasks if self.snapshot else ()
        self.panel.show_tasks(self.context.errands.tasks() + theirs)

    def _show_banners(self) -> None:
        banners = list(self._own_banners.values())
        if self.snapshot is not None:
            banners += [*self.snapshot.banners, *question_banners(self.snapshot)]
            if self.snapshot.trouble:
                banners.append(Banner("snapshot-trouble", Severity.CRITICAL, self.snapshot.trouble, "refresh"))
        self.banners.show_banners(tuple(banners))

    def _trouble(self, error: VaporError) -> None:
        keyring = isinstance(error, KeyringLocked | KeyringMissing)
        text = str(error) if keyring else f"The state cannot be read. {error}"
        self.set_banner(Banner("trouble", Severity.CRITICAL, text, "refresh"))

    def _banner_acted(self, banner: Banner) -> None:
        if banner.action == "open-vm" and banner.subject:
            self.open_vm(banner.subject)
        elif banner.action == "open-operation" and banner.subject:
            self.open_operation(banner.subject)
        elif banner.action == "open-plan" and banner.subject:
            self.go(PLANS)
            self.plans.select(banner.subject)
        elif banner.action == "open-site":
            self.go(2)
        elif banner.action == "pair":
            self.commands.pair()
        else:
            self.context.bridge.refresh()

    def _count(self) -> None:
        snapshot = self.snapshot
        if snapshot is None:
            return
        counts = {1: len(snapshot.protections), 2: len(snapshot.sites), PLANS: len(snapshot.plans)}
        for n, (_key, text) in enumerate(PAGES):
            plain = text.replace("&", "")
            self.navigation.item(n).setText(f"{plain}  ({counts[n]})" if counts.get(n) else plain)

    def _tick(self) -> None:
        self.status_line.refresh()

    def find_vm(self) -> None:
        """The filter of the VMs, ready to type."""
        self.go(VMS)
        self.vms.filter_edit.setFocus()
        self.vms.filter_edit.selectAll()

    def _recolour(self) -> None:
        colours = self.context.theme.colours
        for n, (key, _text) in enumerate(PAGES):
            name = {"vms": "vm", "sites": "site", "plans": "plan", "reports": "report"}.get(key, key)
            self.navigation.item(n).setIcon(icon(name, colours.text))
        self.navigation.setStyleSheet(
            f"QListWidget {{ background: {colours.alternate}; border-right: 1px solid {colours.line}; }}"
            f"QListWidget::item {{ padding-left: 10px; color: {colours.text}; }}"
            f"QListWidget::item:selected {{ background: {colours.highlight}; color: {colours.highlighted_text}; }}"
        )
        self.menus.recolour()

    # --- coming and going -----------------------------------------------------------------------------
    def _restore(self) -> None:
        memory = self.context.memory
        restore_place(self, memory, 1320, 780)
        keys = [key for key, _text in PAGES]
        left = memory.get("page_key") if Preferences(memory).get("restore_session") else None
        self.go(keys.index(left) if left in keys else 0)
        self.navigation.setFocus()
        self._left_vm = str(memory.get("open_vm") or "") if left is not None else ""

    def _restore_vm(self) -> None:
        """Once, with the first snapshot, unless the user has gone elsewhere meanwhile."""
        key, self._left_vm = self._left_vm, ""
        row = self.vms.model.get(key) if key and self.pages.currentIndex() == VMS else None
        if row is not None and row.status is not None:
            self._open_row(row)

    def let_close(self) -> None:
        """The next close is real."""
        self._may_close = True

    def closeEvent(self, event: QCloseEvent) -> None:
        """Remember, and ask whoever hosts the engine."""
        remember_place(self, self.context.memory)
        self.vms.table.remember()
        self.context.memory.put("page_key", PAGES[max(0, self.navigation.currentRow())][0])
        self.context.memory.put("open_vm", self.detail.key if self.pages.currentWidget() is self.detail else "")
        if self._may_close:
            super().closeEvent(event)
        else:
            event.ignore()
            self.close_asked.emit()
