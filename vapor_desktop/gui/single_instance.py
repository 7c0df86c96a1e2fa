"""One console per user: a second start raises the first one's window."""

from __future__ import annotations

import logging
from pathlib import Path

from PySide6.QtCore import QObject, Signal
from PySide6.QtNetwork import QLocalServer, QLocalSocket

log = logging.getLogger(__name__)
ANSWER_MS = 1000


class SingleInstance(QObject):
    """Signals:
    raised: somebody started the console again.
    """

    raised = Signal()

    def __init__(self, socket: Path, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._path = str(socket)
        self._server = QLocalServer(self)
        self._server.setSocketOptions(QLocalServer.SocketOption.UserAccessOption)
        self._server.newConnection.connect(self._called)

    def claim(self) -> bool:
        """True: we are the first. False: another one lives and was asked to show itself."""
        other = QLocalSocket()
        other.connectToServer(self._path)
        if other.waitForConnected(ANSWER_MS):
            other.write(b"raise\n")
            other.waitForBytesWritten(ANSWER_MS)
            other.disconnectFromServer()
            return False
        QLocalServer.removeServer(self._path)  # nobody listens: left over from a crash
        Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        if not self._server.listen(self._path):
            log.warning("a second console could start: %s", self._server.errorString())
        return True

    def close(self) -> None:
        """Give the place free."""
        self._server.close()

    def _called(self) -> None:
        while (socket := self._server.nextPendingConnection()) is not None:
            socket.disconnected.connect(socket.deleteLater)
            self.raised.emit()
