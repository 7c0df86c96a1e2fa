"""Sites, and what a console knows of them. Identity is the site's UUID, never its address."""

from __future__ import annotations

from datetime import datetime

from vapor_desktop.model.policy import Mappings, Policy, Value
from vapor_desktop.model.states import DrillState, Phase, Verification


class Site(Value):
    """A paired site as the console's database keeps it. No secrets."""

    site_id: str
    name: str
    api_url: str  # https://HOST:7770/api/v1
    cert_pem: str
    cert_sha256: str
    ssh_host: str
    ssh_port: int
    ssh_user: str
    ssh_host_keys: tuple[str, ...]
    replica_root: str
    paired_at: datetime
    token_id: str = ""
    token_expires_at: datetime | None = None


class Protection(Value):
    """One VM's protection as the database caches it (the truth is the manifest at the target)."""

    protection_id: str
    vm_uuid: str
    vm_name: str
    source_site: str
    target_site: str
    policy: Policy
    mappings: Mappings = Mappings()
    settings_version: int = 1  # of policy and mappings, as the manifest counts them
    epoch_number: int = 1
    epoch_owner: str
    phase: Phase = Phase.INITIAL_SYNC
    verification: Verification = Verification.NEVER
    drill: DrillState = DrillState.NONE
    drilled_at: datetime | None = None  # when a drill last passed, as the newest proven point tells
    paused: bool = False
    version: int = 1  # optimistic edits
    created_at: datetime
    last_error: str | None = None
    last_error_code: str | None = None
    failures: int = 0
    not_before: datetime | None = None  # back-off
    warnings: tuple[str, ...] = ()  # "not fully protected: …"
    commit_ask_at: datetime | None = None  # when a person is asked to commit a provisional failover, or roll it back
