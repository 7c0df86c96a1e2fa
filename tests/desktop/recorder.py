"""A desktop in the test process: records notifications, presses their buttons, hosts tray items (dbus-fast)."""

# dbus-fast reads D-Bus signatures from annotations, so no postponed evaluation here.
# ruff: noqa: F821, F722

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dbus_fast import PropertyAccess, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.service import ServiceInterface, dbus_property, method, signal

CAPABILITIES = ("actions", "body", "body-markup", "persistence")


def plain(value: Any) -> Any:
    """Variants as what they hold."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


@dataclass
class Shown:
    """One Notify call."""

    id: int
    replaces: int
    app: str
    icon: str
    title: str
    body: str
    actions: list[str]
    hints: dict[str, Any]
    signatures: dict[str, str] = field(default_factory=dict)


class Notifications(ServiceInterface):
    def __init__(self, capabilities: tuple[str, ...], record: Callable[[Shown], None]) -> None:
        super().__init__("org.freedesktop.Notifications")
        self._capabilities, self._record, self._last = capabilities, record, 0

    @method()
    def GetCapabilities(self) -> "as":
        return list(self._capabilities)

    @method()
    def GetServerInformation(self) -> "ssss":
        return ["recorder", "tests", "1", "1.2"]

    @method()
    def Notify(
        self, app: "s", replaces: "u", icon: "s", title: "s", body: "s", actions: "as", hints: "a{sv}", timeout: "i"
    ) -> "u":
        if not replaces:
            self._last += 1
        number = replaces or self._last
        kinds = {key: value.signature for key, value in hints.items()}
        self._record(Shown(number, replaces, app, icon, title, body, list(actions), plain(hints), kinds))
        return number

    @method()
    def CloseNotification(self, number: "u"):
        self.NotificationClosed(number, 3)

    @signal()
    def ActionInvoked(self, number, key) -> "us":
        return [number, key]

    @signal()
    def ActivationToken(self, number, token) -> "us":
        return [number, token]

    @signal()
    def NotificationClosed(self, number, reason) -> "uu":
        return [number, reason]


class Watcher(ServiceInterface):
    """What a panel with a tray offers."""

    def __init__(self, record: Callable[[str], None]) -> None:
        super().__init__("org.kde.StatusNotifierWatcher")
        self._record, self._items = record, []

    @method()
    def RegisterStatusNotifierItem(self, service: "s"):
        self._items.append(service)
        self._record(service)
        self.StatusNotifierItemRegistered(service)

    @method()
    def RegisterStatusNotifierHost(self, service: "s"):
        pass

    @dbus_property(access=PropertyAccess.READ)
    def RegisteredStatusNotifierItems(self) -> "as":
        return self._items

    @dbus_property(access=PropertyAccess.READ)
    def IsStatusNotifierHostRegistered(self) -> "b":
        return True

    @dbus_property(access=PropertyAccess.READ)
    def ProtocolVersion(self) -> "i":
        return 0

    @signal()
    def StatusNotifierItemRegistered(self, service) -> "s":
        return service

    @signal()
    def StatusNotifierHostRegistered(self):
        pass


class Desktop:
    """A notification server and/or a tray on a session bus, in a thread of its own."""

    def __init__(
        self, bus_address: str, *, notifications: bool, tray: bool, capabilities: tuple[str, ...] = CAPABILITIES
    ) -> None:
        self.shown: list[Shown] = []
        self.items: list[str] = []
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server = Notifications(capabilities, lambda shown: self._note(self.shown, shown))
        self._bus: MessageBus | None = None
        args = (bus_address, notifications, tray)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(*args)), name="desktop")
        self._thread.start()
        assert self._ready.wait(10), "the recording desktop did not start"

    async def _serve(self, address: str, notifications: bool, tray: bool) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._bus = await MessageBus(bus_address=address).connect()
        if notifications:
            self._bus.export("/org/freedesktop/Notifications", self._server)
            await self._bus.request_name("org.freedesktop.Notifications")
        if tray:
            self._bus.export("/StatusNotifierWatcher", Watcher(lambda item: self._note(self.items, item)))
            await self._bus.request_name("org.kde.StatusNotifierWatcher")
        self._ready.set()
        await self._stop.wait()
        self._bus.disconnect()

    def _note(self, where: list[Any], what: Any) -> None:
        with self._changed:
            where.append(what)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
        """Until the condition holds."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while not condition():
                assert self._changed.wait(max(0.0, end - time.monotonic())), f"{what}: never; shown {self.shown}"

    def press(self, number: int, action: str, token: str = "") -> None:
        """A person presses a button of a notification."""
        assert self._loop is not None

        def do() -> None:
            if token:
                self._server.ActivationToken(number, token)
            self._server.ActionInvoked(number, action)

        self._loop.call_soon_threadsafe(do)

    def call(self, service: str, path: str, interface: str, member: str, *args: Any) -> Any:
        """Call a method of a tray item, by its introspected proxy."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(
            self._call(service, path, interface, member, args), self._loop
        ).result(20)

    async def _call(self, service: str, path: str, interface: str, member: str, args: tuple[Any, ...]) -> Any:
        assert self._bus is not None
        node = await self._bus.introspect(service, path)
        proxy = self._bus.get_proxy_object(service, path, node).get_interface(interface)
        return plain(await getattr(proxy, member)(*args))

    def close(self) -> None:
        """Leave the bus."""
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
