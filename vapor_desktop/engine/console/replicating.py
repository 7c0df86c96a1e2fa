"""Replication as it goes on: cycles, seeds, pauses, pins."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from vapor_desktop.engine import records
from vapor_desktop.engine.backend import OnSeed
from vapor_desktop.engine.console.desk import VERB_DEADLINE_S, Desk
from vapor_desktop.engine.operations.seed import SeedCopy
from vapor_desktop.model.errors import Unexpected, from_wire
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import Phase
from vapor_desktop.model.wire import ImageFormat

SYNC_DEADLINE_S = 3600.0


class ReplicatingDesk(Desk):
    """The cycles and points of a protection."""

    def sync_now(self, protection_id: str, *, wait: bool = False) -> None:
        """Start a cycle now. ``wait``: until it is done; raises what it failed with."""
        p = self._protection(protection_id)
        last = next(iter(self._repository.cycles(p.protection_id, 1)), None)
        self._ask("sync", {"protection_id": protection_id}, VERB_DEADLINE_S)
        if not wait:
            return
        deadline = self._clock.monotonic() + SYNC_DEADLINE_S
        pause = threading.Event()
        while self._clock.monotonic() < deadline:
            now = next(iter(self._repository.cycles(p.protection_id, 1)), None)
            if now is not None and now != last:
                if now.outcome in {"point", "unchanged", "partial"}:
                    self._engine.forget_rows()
                    return
                if now.outcome == "failed":
                    raise from_wire({"code": now.error_code, "what": now.error})
            last = now
            pause.wait(0.1)
        raise Unexpected(f"The cycle of “{p.vm_name}” did not end within an hour")

    def wait_for_point(self, protection_id: str) -> None:
        """Until the first recovery point is complete; raises what keeps it from being made (operator's to mend)."""
        deadline = self._clock.monotonic() + SYNC_DEADLINE_S
        pause = threading.Event()
        while self._clock.monotonic() < deadline:
            if self._repository.points(protection_id):
                return
            p = self._protection(protection_id)
            if p.failures >= 3 and p.last_error:
                raise from_wire({"code": p.last_error_code, "what": p.last_error})
            pause.wait(0.1)
        raise Unexpected("The first copy did not end within an hour")

    def seed(
        self,
        protection_id: str,
        images: Mapping[str, str],
        image_format: ImageFormat = "qcow2",
        on_state: OnSeed = lambda _s: None,
    ) -> None:
        """Copy images that are at the target already (disk -> path there) as bases of the disks' first copies."""
        p = self._protection(protection_id)
        source, target = self._site(p.source_site), self._site(p.target_site)
        me = self._engine.identity
        copy = SeedCopy(self._gateway.api(target), self._gateway.hypervisor(source), p, me.engine_id, me.name)
        copy.run(images, image_format, lambda: self._stop_cycle(protection_id), on_state)
        self._note(
            "seeded",
            f"First copies of {', '.join(sorted(images))} begin from images at {target.name}",
            p.protection_id,
        )
        self._engine.wake()

    def pause(self, protection_id: str) -> None:
        """No more cycles until resumed; a running one is cancelled at its next chunk."""
        self._protection(protection_id)

        def change(p: Protection) -> Protection:
            return records.to_phase(Phase.PAUSED)(p).model_copy(update={"paused": True})

        records.update(self._repository, protection_id, change)
        self._stop_cycle(protection_id)
        self._changed()
        self._note("paused", "Replication paused", protection_id)

    def resume(self, protection_id: str) -> None:
        """Cycles again, the first one at once if it is due."""
        p = self._protection(protection_id)
        phase = Phase.PROTECTED if self._repository.points(p.protection_id) else Phase.INITIAL_SYNC

        def change(q: Protection) -> Protection:
            moved = records.to_phase(phase)(q) if q.phase is Phase.PAUSED else q
            return moved.model_copy(update={"paused": False, "not_before": None})

        records.update(self._repository, protection_id, change)
        self._note("resumed", "Replication resumed", protection_id)
        self._changed()

    def cancel(self, task_key: str) -> None:
        """Cancel the cycle of that protection."""
        self._ask("cancel", {"protection_id": task_key.removeprefix("cycle:")}, VERB_DEADLINE_S)

    def pin(self, protection_id: str, seq: int, note: str) -> None:
        """Keep a point whatever the retention says."""
        self._ask("pin", {"protection_id": protection_id, "seq": seq, "note": note or "kept"}, VERB_DEADLINE_S)

    def unpin(self, protection_id: str, seq: int) -> None:
        """Let the user's pins go."""
        self._ask("pin", {"protection_id": protection_id, "seq": seq, "note": None}, VERB_DEADLINE_S)
