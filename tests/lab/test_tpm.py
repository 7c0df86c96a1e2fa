"""A guest with a TPM 2.0: what it keeps in it is there after a failover, written and read by the guest itself."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator

import pytest

from vapor_desktop.engine.ports import SiteApi
from vapor_desktop.lab import guests, hostfiles
from vapor_desktop.lab.guest_tpm import define_secret, read_secret, write_secret
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.view import ProtectRequest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
SPEC = GuestSpec("vault", rate=0, scratch=0, tpm=True)
NAME, VM = SPEC.name, SPEC.uuid
STATE = f"/var/lib/libvirt/swtpm/{VM}/tpm2/tpm2-00.permall"


class Vault:
    """The guest, its protection, and cycles when a test says so."""

    def __init__(self, stage: Stage, pid: str) -> None:
        assert stage.program is not None
        self.stage, self.pid, self.engine = stage, pid, stage.program.engine
        self.a, self.b = stage.lab.sites["a"], stage.lab.sites["b"]

    @property
    def protection(self) -> Protection:
        found = self.engine.repository.protection(self.pid)
        assert found is not None
        return found

    @property
    def target_api(self) -> SiteApi:
        return self.engine.gateway.api(self.stage.backend._site(self.protection.target_site))

    def fail_over(self, reason: str) -> float:
        """Seconds to running. This engine's loop does not run, so it is asked without the database between."""
        begun = self.engine.operations.begin(OperationKind.FAILOVER, self.pid, {"seq": None}, reason, "proof")
        done = self.engine.operations.wait(begun.operation_id, 60)
        assert done.error is None, done.error
        return float(done.result["running_after_s"])

    def cycle(self) -> int | None:
        """The new point's number, None when nothing had changed."""
        outcome = self.engine.worker.run(self.pid)
        assert outcome is not None, self.protection.last_error
        return outcome.seq


@pytest.fixture(scope="module")
def vault(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    """The guest on A, with an NV index in its TPM, and both sites paired; protected."""
    remove_guests(lab)
    a = lab.sites["a"]
    guests.add(a, SPEC, lab.cache)
    guests.wait_for(a, NAME, "VAPOR-DIARY ", timeout_s=120)
    guests.wait_for_agent(a, NAME)
    guests.set_rate(a, NAME, rate=0, scratch=0, zero=0, discard=0)
    define_secret(a, NAME)
    home = tmp_path_factory.mktemp("vault")
    with KeyringSession(home):
        stage = Stage(lab, home)
        stage.open(run_engine=False)
        try:
            site_a, site_b = stage.pair()
            networks = {a.network: lab.sites["b"].network}
            # Not frozen: a freeze writes to the guest's file systems, and no cycle would find nothing to send.
            request = ProtectRequest((VM,), site_a.site_id, site_b.site_id, 10, networks, quiesce="never")
            checks = {c.key: c for c in stage.backend.preflight(request, lambda _c: None)}
            assert (checks["tpm"].state, checks["fit"].state) == ("ok", "ok")
            [protection] = stage.backend.protect(request)
            yield Vault(stage, protection.protection_id)
        finally:
            stage.close()
            remove_guests(lab)


def test_a_change_of_the_tpm_alone_makes_a_point(vault: Vault) -> None:
    api = vault.target_api
    write_secret(vault.a, NAME, secrets.token_bytes(16))
    vault.a.guest_shell(NAME, "sync")
    # The guest's kernel writes back what lies in its journal for up to half a minute.
    seqs = [vault.cycle()]
    ends = time.monotonic() + 90
    while seqs[-1] is not None:
        assert time.monotonic() < ends, "the guest's disk is never still"
        seqs.append(vault.cycle())
    first = seqs[-2]
    assert first is not None
    before = api.point(VM, first)
    assert before.tpm
    write_secret(vault.a, NAME, secrets.token_bytes(16))
    seq = vault.cycle()
    assert seq is not None
    after = api.point(VM, seq)
    assert after.tpm_digest not in {"", before.tpm_digest}
    assert vault.cycle() is None
    assert vault.protection.warnings == ()


def test_without_its_root_helper_the_target_cannot_and_the_vm_is_called_not_fully_protected(vault: Vault) -> None:
    os.kill(vault.b.pid_of("helper"), signal.SIGKILL)
    vault.cycle()
    [warning] = vault.protection.warnings
    assert warning.startswith("not fully protected: ")
    assert "root helper" in warning
    [row] = vault.stage.backend.snapshot().protections
    assert row.protection.warnings == (warning,)
    preview = vault.stage.backend.failover_preview(vault.pid)
    assert any(warning in line for line in preview.effects)
    vault.b.start_helper()
    wait_until(lambda: vault.target_api.tpm_support().why == "", "the root helper's answer", timeout_s=30)
    vault.cycle()
    assert vault.protection.warnings == ()


def test_a_drills_copy_has_the_points_tpm_and_leaves_none(vault: Vault) -> None:
    """Its secret can be read in the copy; changed there, it is the old one in the point; and nothing stays."""
    a, b = vault.a, vault.b
    secret = secrets.token_bytes(16)
    write_secret(a, NAME, secret)
    assert vault.cycle() is not None
    before = sorted(p.name for p in b.path("/var/lib/libvirt/swtpm").glob("*"))
    begun = vault.engine.operations.begin(OperationKind.DRILL, vault.pid, {"wanted": {"boot_s": 120}}, "r", "proof")
    done = vault.engine.operations.wait(begun.operation_id, 200)
    assert done.error is None, done.error
    copy = str(done.result["domain"])
    assert {c["key"]: c["state"] for c in done.result["checks"]}["agent"] == "ok"
    assert read_secret(b, copy) == secret
    write_secret(b, copy, secrets.token_bytes(16))
    begun = vault.engine.operations.begin(OperationKind.STOP_DRILL, vault.pid, {"passed": True}, "r", "proof")
    done = vault.engine.operations.wait(begun.operation_id, 60)
    assert done.error is None, done.error
    assert done.result["left"] == []
    assert sorted(p.name for p in b.path("/var/lib/libvirt/swtpm").glob("*")) == before
    assert read_secret(a, NAME) == secret


def test_a_failover_brings_the_tpm_up_with_the_point_and_keeps_what_lay_there(vault: Vault) -> None:
    """Last: it ends the stage."""
    a, b = vault.a, vault.b
    secret = secrets.token_bytes(16)
    write_secret(a, NAME, secret)
    assert vault.cycle() is not None
    sent = a.path(STATE).read_bytes()
    old = b.path(STATE)
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an earlier stay")
    vault.stage.lab.kill_site("a")
    assert vault.fail_over("proof of the TPM") < 3.0
    placed = b.path(STATE)
    assert (placed.stat().st_uid, placed.stat().st_gid) == hostfiles.user_ids(b.layout, "tss")
    assert placed.read_bytes()[:32] == sent[:32]
    [kept] = placed.parents[2].glob(f"{VM}.vapor-kept-*")
    assert (kept / "tpm2/tpm2-00.permall").read_bytes() == b"of an earlier stay"
    notes = [e.text for e in vault.engine.repository.events(vault.pid) if e.kind == "failover-note"]
    assert any(kept.name in text for text in notes), notes
    guests.wait_for(b, NAME, "VAPOR-DIARY ", timeout_s=120)
    guests.wait_for_agent(b, NAME)
    assert read_secret(b, NAME) == secret

    # The same failover once more, the VM off: what the guest wrote since is not taken back.
    later = secrets.token_bytes(16)
    write_secret(b, NAME, later)
    b.virsh("destroy", NAME)
    said = len(b.serial(NAME))
    vault.fail_over("once more")
    assert vault.protection.epoch_number == 2
    guests.wait_for(b, NAME, "VAPOR-DIARY ", timeout_s=120, after=said)
    guests.wait_for_agent(b, NAME)
    assert read_secret(b, NAME) == later
    assert len(list(placed.parents[2].glob(f"{VM}*"))) == 2
