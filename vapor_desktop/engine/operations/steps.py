"""What an operation is made of, and what a step may use.

A step *observes, decides and acts in one*: a recorded observation never justifies a later act (DESIGN §7). A step
may be run again after a cut, by another process; so it looks before it acts. What it returns is recorded as plain
JSON and must hold no secret.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from vapor_desktop.engine.lease import HeldLease
from vapor_desktop.engine.ports import Clock, Hypervisor, Mover, Repository, SiteApi, SiteGateway
from vapor_desktop.engine.sitewatch import SiteWatch
from vapor_desktop.engine.worker import EngineIdentity, ProtectionWorker
from vapor_desktop.model.errors import NotFound, VaporError
from vapor_desktop.model.operations import Choice, Operation, OperationKind, StepRow
from vapor_desktop.model.sites import Protection, Site

Result = dict[str, Any]
UNDO = Choice(key="undo", text="Undo all of it")
RETRY = Choice(key="retry", text="Try again")
STOP = Choice(key="stop", text="Leave it as it is")
TAKE_OVER = Choice(key="take-over", text="Take the VM's lease over from its holder")
# A fault that may mend itself is tried again this long before a person is asked.
RETRY_AFTER_S = (0.5, 1.0, 2.0, 4.0)


class Ask(Exception):
    """A step that needs a person: it is run again with the answer in ``StepContext.answers``."""

    def __init__(self, text: str, *choices: Choice, error: VaporError | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.choices = choices
        self.error = error  # what the operation failed with, when a person leaves it at that


class EngineStopping(BaseException):
    """This engine ends: the step stays unrecorded, and whoever adopts the operation runs it again."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What this engine has."""

    repository: Repository
    gateway: SiteGateway
    sites: SiteWatch
    clock: Clock
    identity: EngineIdentity
    worker: ProtectionWorker
    lapsed: Callable[[str], bool] = lambda _engine_id: False  # has that engine of this database ended unseen?


class Leases:
    """The leases one operation holds, site by site, from first use to its end (or this engine's).

    Held under the operation's own name: whoever adopts it takes them up again, everybody else is kept out.
    """

    def __init__(
        self, operation: Operation, name: str, lapsed: Callable[[str], bool] = lambda _engine_id: False
    ) -> None:
        self._operation = operation
        self._name = name
        self._lapsed = lapsed
        self._held: dict[str, HeldLease] = {}

    def get(self, api: SiteApi, site_id: str, takeover: str | None = None) -> HeldLease:
        """The lease at that site. Raises LeaseHeld naming the holder."""
        held = self._held.get(site_id)
        if held is not None and not held.lost():
            return held
        op = self._operation
        lease = HeldLease(
            api,
            op.vm_uuid,
            op.operation_id,
            self._name,
            op.kind.value,
            takeover=takeover,
            wait_s=LEASE_WAIT_S,
            lapsed=self._lapsed,
        )
        lease.__enter__()
        self._held[site_id] = lease
        return lease

    def close(self) -> None:
        """Give all back."""
        for lease in self._held.values():
            lease.__exit__(None, None, None)
        self._held.clear()


# A running cycle of the VM was asked to stop; it lets go of its lease at its next chunk.
LEASE_WAIT_S = 30.0


class Children(Protocol):
    """How an operation begins others. Not to be called on the thread that runs its steps."""

    def begin_child(
        self, parent: Operation, operation_id: str, kind: OperationKind, protection_id: str, args: dict[str, Any]
    ) -> Operation:
        """Raises Conflict naming the open operation of that VM. The id is the caller's, the same one each time."""


def with_networks(protection: Protection, args: Mapping[str, Any]) -> Protection:
    """The protection under the networks that this operation alone was given (of a recovery plan)."""
    given = args.get("networks") or {}
    networks = {**protection.mappings.networks, **given}
    return protection.model_copy(update={"mappings": protection.mappings.model_copy(update={"networks": networks})})


@dataclass(slots=True)
class StepContext:
    """What a step sees. ``done``: results of the steps before it; ``answers``: question (step's name) -> choice.

    ``subject``: the protection, None for what is not about one VM. ``tell``: changes of another step's row.
    """

    tools: Tools
    operation: Operation
    subject: Protection | None
    leases: Leases
    stopping: threading.Event
    note: Callable[[str], None]
    done: Mapping[str, Result] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    tell: Callable[[str, dict[str, Any]], None] = lambda _step, _changes: None
    children: Children | None = None
    take_over: bool = False  # a person said so: from whoever holds the VM's lease

    @property
    def protection(self) -> Protection:
        """Raises NotFound for an operation that is not about one VM."""
        if self.subject is None:
            raise NotFound("This operation is not about one protection")
        return self.subject

    @protection.setter
    def protection(self, value: Protection) -> None:
        self.subject = value

    def cancelled(self) -> bool:
        """Did a person ask to end it?"""
        now = self.tools.repository.operation(self.operation.operation_id)
        return now is not None and now.cancel_asked

    def site(self, site_id: str) -> Site:
        """Raises NotFound when it is not paired here."""
        site = self.tools.repository.site(site_id)
        if site is None:
            raise NotFound("A site of this operation is not paired with this console", fix="Pair it first")
        return site

    def api(self, site_id: str) -> SiteApi:
        """That site's service."""
        return self.tools.gateway.api(self.site(site_id))

    def hypervisor(self, site_id: str) -> Hypervisor:
        """That site's libvirt."""
        return self.tools.gateway.hypervisor(self.site(site_id))

    def mover(self, source: str, target: str) -> Mover:
        """A mover at ``source``."""
        return self.tools.gateway.mover(self.site(source), self.site(target))

    def lease(self, site_id: str, takeover: str | None = None) -> HeldLease:
        """The operation's lease at that site."""
        if takeover is None and self.take_over:
            takeover = f"{self.operation.kind.value} asked by {self.operation.asked_by}: {self.operation.reason}"
        return self.leases.get(self.api(site_id), site_id, takeover)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, every_s: float = 0.1) -> bool:
        """Whether it came true in time. Raises EngineStopping when this engine ends meanwhile."""
        deadline = self.tools.clock.monotonic() + timeout_s
        while not condition():
            if self.tools.clock.monotonic() >= deadline:
                return False
            if self.stopping.wait(every_s):
                raise EngineStopping
        return True


Act = Callable[[StepContext], Result]


@dataclass(frozen=True, slots=True)
class Step:
    """One step. ``undo`` takes back what it may have done, also when it was cut off half-way.

    ``retry_after_s``: the waits between tries of what may mend itself.
    """

    name: str
    title: str
    act: Act
    undo: Callable[[StepContext], None] | None = None
    no_return: bool = False
    parent: str = ""  # the step that it is shown under
    retry_after_s: tuple[float, ...] = RETRY_AFTER_S


@dataclass(frozen=True, slots=True)
class OperationType:
    """One kind of operation.

    ``asks``: a failed step becomes a question (try again, undo); else the operation fails with the step's error.
    ``failed``: what must be true in the records after a failure or an undo.
    ``steps_of``: the steps by the operation's arguments, where they differ. ``stops``: cancelling it leaves what it
    has done, instead of an undo.
    """

    kind: OperationKind
    steps: tuple[Step, ...]
    asks: bool
    ended: Callable[[StepContext, VaporError | None], None]
    steps_of: Callable[[Mapping[str, Any]], tuple[Step, ...]] | None = None
    stops: bool = False

    def steps_for(self, args: Mapping[str, Any]) -> tuple[Step, ...]:
        """The steps of an operation with these arguments; the same ones each time."""
        return self.steps if self.steps_of is None else self.steps_of(args)


def rows(steps: tuple[Step, ...]) -> tuple[StepRow, ...]:
    """As the journal shows them, none begun."""
    return tuple(StepRow(name=s.name, title=s.title, no_return=s.no_return, parent=s.parent) for s in steps)
