"""What surrounds the window: tray, notifications, the hosted engine, and how it all ends."""

from __future__ import annotations

import logging

from PySide6.QtCore import QObject, QTimer, Signal
from PySide6.QtWidgets import QMessageBox

from vapor_desktop.gui.alerting import Alerting
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.engine_thread import EngineThread
from vapor_desktop.gui.episodes import Notice, Urgency
from vapor_desktop.gui.main_window import MainWindow
from vapor_desktop.gui.notify import Notifier
from vapor_desktop.gui.preferences import Preferences
from vapor_desktop.gui.protection_columns import Chip
from vapor_desktop.gui.settings_dialog import SettingsDialog
from vapor_desktop.gui.tray import Tray
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Banner, Snapshot

log = logging.getLogger(__name__)
STOP_WAIT_MS = 30_000
_TEST = "test"
_TOLD = "close_to_tray_told"
_TOLD_END = "close_ends_told"


class Shell(QObject):
    """Signals:
    over: the program may end now.
    """

    over = Signal()

    def __init__(self, context: Context, window: MainWindow, notifier: Notifier, engine: EngineThread | None) -> None:
        super().__init__()
        self._context, self.window, self.notifier, self.engine = context, window, notifier, engine
        self._snapshot: Snapshot | None = None
        self.ending = False
        self.question: QMessageBox | None = None
        self.preferences = Preferences(context.memory)
        self.alerting = Alerting(notifier, context.memory, self)
        self.tray = Tray(context.theme, notifications=self.alerting.enabled, parent=self)
        context.bridge.snapshot.connect(self._take)
        window.close_asked.connect(self._close)
        window.quit_asked.connect(self.ask_quit)
        self.alerting.open_asked.connect(self._open)
        self.alerting.plain_invoked.connect(lambda action: self.ask_quit() if action == "quit" else None)
        alerts = window.activity.alerts
        self.alerting.many_asked.connect(self._open_many)
        self.alerting.known.connect(alerts.show_known)
        alerts.acknowledge_asked.connect(self.alerting.acknowledge)
        alerts.snooze_asked.connect(self.alerting.snooze)
        window.menus.setting_changed.connect(self._setting_changed)
        window.menus.test_asked.connect(self._test)
        notifier.sent.connect(lambda notice: self._tested(notice, "The desktop has taken it."))
        notifier.failed.connect(lambda notice, why: self._tested(notice, f"It could not be shown: {why}"))
        self.tray.open_asked.connect(window.raise_up)
        self.tray.toggle_asked.connect(self._toggle)
        self.tray.vm_asked.connect(window.open_vm)
        self.tray.quit_asked.connect(self.ask_quit)
        self.tray.notifications_asked.connect(self.alerting.enable)
        if engine is not None:
            engine.failed.connect(self._engine_failed)
            engine.finished.connect(self._engine_finished)

    @property
    def hosting(self) -> bool:
        """Whether replication ends with this process."""
        running = self.engine is not None and self.engine.isRunning()
        return running and (self._snapshot is None or self._snapshot.engine == "here")

    def _take(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.tray.take(snapshot)
        self.alerting.take(snapshot)

    def _setting_changed(self, key: str) -> None:
        if key == "notifications":
            self.alerting.enable(self.preferences.get(key))
            self.tray.notifications.setChecked(self.alerting.enabled)

    def _test(self) -> None:
        text = "This is what an alert of Vapor Desktop looks like."
        self.notifier.notify(Notice(_TEST, "Test notification", text, Urgency.NORMAL, closed=True))

    def _tested(self, notice: Notice, text: str) -> None:
        dialog = self.window.menus.dialog
        if notice.slot == _TEST and isinstance(dialog, SettingsDialog):
            dialog.say_test(text)

    def _open(self, protection_id: str) -> None:
        if protection_id:
            self.window.open_vm(protection_id)
        else:
            self.window.raise_up()

    def _open_many(self) -> None:
        self.window.raise_up()
        self.window.show_chip(Chip.ATTENTION)

    def stay_out(self) -> None:
        """Started for the tray, and there is none: end while a service does the work, else be seen."""
        if self.hosting or self._snapshot is None:
            self.window.showMinimized()
        elif not self.window.isVisible():
            log.info("this desktop has no tray; the service goes on without a console")
            self.quit()

    def _toggle(self) -> None:
        if self.window.isVisible() and self.window.isActiveWindow():
            self.window.hide()
        else:
            self.window.raise_up()

    # --- closing ----------------------------------------------------------------------------------------
    def _close(self) -> None:
        if self.hosting:
            self._ask(tray=self.tray.available() and self.preferences.get("close_to_tray"))
        elif self.tray.available() and self.preferences.get("close_to_tray"):
            self._to_tray("Replication runs in the service.")
        else:
            self._say_that_it_ends()
            self.quit()

    def ask_quit(self) -> None:
        """The user wants to end the program."""
        if self.hosting:
            self._ask(tray=False)
        else:
            self.quit()

    def _ask(self, *, tray: bool) -> None:
        if self.question is not None:
            self.question.raise_()
            return
        count = len(self._snapshot.protections) if self._snapshot else 0
        vms = {0: "Replication", 1: "Replication of 1 virtual machine"}.get(
            count, f"Replication of {count} virtual machines"
        )
        box = QMessageBox(self.window)
        box.setIcon(QMessageBox.Icon.Warning)
        box.setWindowTitle("Stop replication?")
        box.setText(f"<b>{vms} stops when this console ends.</b>")
        box.setInformativeText(
            "This console hosts the engine. Recovery points that exist stay at the target, but no new ones are made "
            "until a console or the service runs again."
        )
        stop = box.addButton("&Stop replication and quit", QMessageBox.ButtonRole.DestructiveRole)
        stop.clicked.connect(self.quit)
        if tray:
            keep = box.addButton("&Keep running in the tray", QMessageBox.ButtonRole.AcceptRole)
            keep.clicked.connect(lambda: self._to_tray("Replication goes on."))
        cancel = box.addButton(QMessageBox.StandardButton.Cancel)
        box.setDefaultButton(cancel)
        box.setEscapeButton(cancel)
        box.finished.connect(self._answered)
        self.question = box
        self.window.raise_up()
        box.open()

    def _answered(self) -> None:
        if self.question is not None:
            self.question.deleteLater()
        self.question = None

    def _to_tray(self, text: str) -> None:
        self.window.hide()
        if not self._context.memory.get(_TOLD):
            self._context.memory.put(_TOLD, True)
            buttons = (("default", "Open"), ("open", "Open"), ("quit", "Quit console"))
            self.notifier.notify(
                Notice("tray", "The console is in the tray", text, Urgency.LOW, closed=True, actions=buttons)
            )

    def _say_that_it_ends(self) -> None:
        """Once, on a desktop without a tray: the window is gone, and so is the console; the service goes on."""
        memory = self._context.memory
        if self.tray.available() or memory.get(_TOLD_END) or self._snapshot is None:
            return
        memory.put(_TOLD_END, True)
        runs = "Replication goes on in the service." if self._snapshot.engine == "service" else ""
        text = f"This desktop has no tray, so closing the window ends the console. {runs}".strip()
        self.notifier.notify(Notice("ended", "The console has ended", text, Urgency.LOW, closed=True, actions=()))

    def quit(self) -> None:
        """End, without a question. The engine gets time to end its cycles."""
        if self.ending:
            return
        self.ending = True
        if self.engine is not None and self.engine.isRunning():
            self.window.set_banner(Banner("stopping", Severity.WARNING, "Stopping replication…"))
            QTimer.singleShot(STOP_WAIT_MS, self._give_up)
            self.engine.stop_engine()
        else:
            self._finish()

    def _give_up(self) -> None:
        if self.engine is not None and self.engine.isRunning():
            log.error("the engine did not stop in %d s; leaving it behind", STOP_WAIT_MS // 1000)
            self._finish()

    def _engine_finished(self) -> None:
        if self.ending:
            self._finish()

    def _engine_failed(self, error: VaporError) -> None:
        text = f"The engine in this window has stopped; nothing is replicated by it. {error}"
        self.window.set_banner(Banner("engine-failed", Severity.CRITICAL, text))

    def _finish(self) -> None:
        self.tray.icon.hide()
        self.window.let_close()
        self.window.close()
        self.over.emit()
