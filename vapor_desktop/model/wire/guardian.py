"""The guardian of backup jobs and freezes, and what it did by itself."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from vapor_desktop.model.policy import Value


class WatchJob(Value):
    """PUT /guardian/{vm}/job on the source, before backupBegin and then every renewal.

    The guardian ends the job when ``ttl_s`` lapses, or when the scratch's file system has less than
    ``reserve_bytes`` free; it resumes the guest only when the pause is this job's ENOSPC.
    """

    holder: str
    ttl_s: float = 60.0
    scratch_dir: str
    reserve_bytes: int


SCRATCH_FULL_BYTES = 16 << 20  # less than this is "full" whatever reserve was asked for


class ScratchSpace(Value):
    """GET /guardian/scratch: where backup jobs put their scratch files, and what is free there for us."""

    path: str
    free_bytes: int
    reserve_bytes: int
    at: datetime  # the site's clock

    @property
    def low(self) -> bool:
        """Below the reserve: the guardian ends jobs, and none may begin."""
        return self.free_bytes < max(self.reserve_bytes, SCRATCH_FULL_BYTES)


class WatchFreeze(Value):
    """PUT /guardian/{vm}/freeze on the source, before fsFreeze: the host thaws after ``deadline_s``."""

    holder: str
    deadline_s: float = 20.0


class GuardianEvent(Value):
    """GET /guardian/events: what the guardian did by itself."""

    at: datetime
    vm_uuid: str
    what: Literal[
        "job-ended",
        "thawed",
        "resumed",
        "rpo-alarm",
        "rpo-recovered",
        "guard-held",  # a VM is not started here, and why
        "guard-released",  # it was held, and may start now
        "guard-risk",  # started without the peer's word: split-brain risk
        "guard-started",  # what autostart wanted
        "guard-override",  # a person on the host took it, under a new epoch
        "guard-failed",  # it may start, and did not
        "taken-over",  # a person on the host failed it over, without a console
        "drill-ended",  # a drill's time was over, or its host was restarted
        "drill-paused",  # it wrote more than it may
        "drill-stuck",  # something of it could not be removed
    ]
    why: str
    cause: Literal["", "scratch", "lapsed"] = ""  # of job-ended
