"""What is known of points, and forgetting one by merging."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from vapor_desktop.model.errors import Conflict, InvalidRequest, NotFound
from vapor_desktop.model.manifest import Manifest, PointEntry
from vapor_desktop.model.wire import CurrentAsOf, WriteGrant
from vapor_desktop.site.replica import drills, index, merge
from vapor_desktop.site.replica.digests import UNKNOWN, DigestTable
from vapor_desktop.site.replica.files import locked
from vapor_desktop.site.replica.guarded import GuardedReplicas
from vapor_desktop.site.replica.layout import DRILL_PICTURE, DRILL_REPORT

_CLOCK_NOISE = timedelta(seconds=10)


class PointKeeping(GuardedReplicas):
    """Pins, proofs and ends of points."""

    def pin(self, vm: str, seq: int, grant: WriteGrant, pin: str) -> Manifest:
        """Pins are ``user:NOTE``, ``drill:ID``. Idempotent."""
        if not pin.startswith(("user:", "drill:")):
            raise InvalidRequest("A pin is user:NOTE or drill:ID")
        return self._change(
            vm, seq, grant, lambda e: e if pin in e.pins else e.model_copy(update={"pins": (*e.pins, pin)})
        )

    def unpin(self, vm: str, seq: int, grant: WriteGrant, pin: str) -> Manifest:
        """Idempotent. The pin of a run is not taken off this way."""
        if not pin.startswith(("user:", "drill:")):
            raise InvalidRequest("A pin is user:NOTE or drill:ID")
        return self._change(
            vm, seq, grant, lambda e: e.model_copy(update={"pins": tuple(p for p in e.pins if p != pin)})
        )

    def current_as_of(self, vm: str, request: CurrentAsOf) -> Manifest:
        """Only forward (an older time changes nothing), only for the newest point, not into the future."""
        latest = datetime.now(UTC) + _CLOCK_NOISE
        if request.at > latest:
            raise InvalidRequest(f"{request.at.isoformat()} is in the future of this site's clock")

        def advance(entry: PointEntry) -> PointEntry:
            # A time from the future says only that this clock was set back since: what is proven now is better.
            later = request.at if entry.current_as_of > latest else max(entry.current_as_of, request.at)
            images = entry.images if request.images is None else request.images
            return entry.model_copy(update={"current_as_of": later, "images": images})

        return self._change(vm, request.seq, request.grant, advance, newest_only=True)

    def mark_verified(self, vm: str, seq: int, grant: WriteGrant) -> Manifest:
        """The scrub found a whole pass without a mismatch."""
        return self._change(vm, seq, grant, lambda e: e.model_copy(update={"verified": True}))

    def mark_corrupt(
        self, vm: str, seq: int, grant: WriteGrant, blocks: Mapping[str, Iterable[int]] | None = None
    ) -> Manifest:
        """The point loses its tick; the digests of ``blocks`` become unknown, so a compare sends them again.

        Blocks (64 KiB numbers) are those of the newest point's tables.
        """
        with self._locked(vm) as layout:
            self._granted(layout, grant)
            for disk, numbers in (blocks or {}).items():
                table = DigestTable(layout.table(disk), 0)
                for block in numbers:
                    table.write(block, UNKNOWN)
                table.sync()
        return self._change(vm, seq, grant, lambda e: e.model_copy(update={"verified": False}))

    def mark_proven(self, vm: str, seq: int, grant: WriteGrant, at: datetime) -> Manifest:
        """A drill passed on it."""
        return self._change(vm, seq, grant, lambda e: e.model_copy(update={"proven_at": at}))

    def drop(self, vm: str, seq: int, grant: WriteGrant) -> Manifest:
        """Forget a point by merging the next one down. Raises PointPinned, Conflict, ImageToolFailed.

        A merge that was cut before goes on first. Conflict: a receive is in the way, or a failover stopped it;
        the next drop, or ``reconcile``, goes on with what was begun.
        """
        with self._merging(vm) as layout:
            with locked(layout.lock):
                self._granted(layout, grant)
                cut = layout.merge_journal.exists()
            if cut and self._merge(layout) is None:
                raise Conflict("Something more urgent stopped a merge that goes on first")
            with locked(layout.lock):
                merge.start(layout, self._granted(layout, grant), seq, self._scan)
            done = self._merge(layout)
            if done is None:
                raise Conflict("Something more urgent stopped the merge; it goes on later")
            return done

    def prove(self, vm: str, seq: int, at: datetime, report: bytes, png: bytes | None) -> None:
        """A drill passed on it: beside the point lie its report and its picture. Raises NotFound."""
        with self._locked(vm) as layout:
            manifest = self._load(layout)
            entry = manifest.entry(seq)
            if entry is None:
                raise NotFound(f"There is no recovery point {seq} of VM {manifest.vm_name}")
            drills.keep_proof(layout, seq, report, png)
            index.save(layout, manifest, index.replaced(manifest, entry.model_copy(update={"proven_at": at})))

    def proof(self, vm: str, seq: int) -> tuple[bytes, bytes | None]:
        """(report, PNG) of the last drill that passed on the point. Raises NotFound."""
        layout, _ = self._entry(vm, seq)
        directory = layout.point(seq)
        try:
            report = (directory / DRILL_REPORT).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"No drill has passed on recovery point {seq}") from error
        picture = directory / DRILL_PICTURE
        return report, picture.read_bytes() if picture.exists() else None
