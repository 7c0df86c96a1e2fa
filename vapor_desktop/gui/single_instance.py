"""One console per user: a second start hands its arguments to the first and raises that one's window."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QObject, Signal
from PySide6.QtNetwork import QLocalServer, QLocalSocket

from vapor_desktop.gui.arguments import MOST_BYTES, Call

log = logging.getLogger(__name__)
ANSWER_MS = 2000
_TAKEN = b"taken\n"


class SingleInstance(QObject):
    """Signals:
    called: somebody started the console again, with this Call.
    """

    called = Signal(object)

    def __init__(self, socket: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._path = str(socket)
        self._server = QLocalServer(self)
        self._server.setSocketOptions(QLocalServer.SocketOption.UserAccessOption)
        self._server.newConnection.connect(self._arrived)

    def claim(self, argv: Sequence[str] = ()) -> bool:
        """True: we are the first. False: another one lives, and has our arguments."""
        if hand_over(Path(self._path), argv):
            return False
        QLocalServer.removeServer(self._path)  # nobody listens: left over from a crash
        Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        if not self._server.listen(self._path):
            log.warning("a second console could start: %s", self._server.errorString())
        return True

    def close(self) -> None:
        """Give the place free."""
        self._server.close()

    def _arrived(self) -> None:
        while (socket := self._server.nextPendingConnection()) is not None:
            socket.disconnected.connect(socket.deleteLater)
            socket.readyRead.connect(lambda socket=socket: self._read(socket))
            self._read(socket)

    def _read(self, socket: QLocalSocket) -> None:
        if socket.canReadLine():
            call = Call.parse(bytes(socket.readLine().data()))
            socket.write(_TAKEN)
            socket.flush()
            self.called.emit(call)
        elif socket.bytesAvailable() > MOST_BYTES:
            socket.abort()


def hand_over(path: Path, argv: Sequence[str]) -> bool:
    """Give our arguments to the console that runs; False when none does."""
    other = QLocalSocket()
    other.connectToServer(str(path))
    if not other.waitForConnected(ANSWER_MS):
        return False
    token = os.environ.get("XDG_ACTIVATION_TOKEN") or os.environ.get("DESKTOP_STARTUP_ID") or ""
    other.write(Call(tuple(argv), token).line())
    other.waitForBytesWritten(ANSWER_MS)
    if not other.canReadLine():
        other.waitForReadyRead(ANSWER_MS)  # it lives, whether it answers in time or not: we are the second
    other.disconnectFromServer()
    return True
