"""A guest with a TPM 2.0: what it keeps in it is there after a failover, written and read by the guest itself.

The guest speaks to /dev/tpm0 in the TPM's own commands: an NV index of 16 bytes, under the empty owner password.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator

import pytest

from vapor_desktop.lab import guests, hostfiles
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import LabFailed, wait_until
from vapor_desktop.lab.stage import Stage, remove_guests
from vapor_desktop.model.operations import OperationKind
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.view import ProtectRequest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
SPEC = GuestSpec("vault", rate=0, scratch=0, tpm=True)
NAME, VM = SPEC.name, SPEC.uuid
STATE = f"/var/lib/libvirt/swtpm/{VM}/tpm2/tpm2-00.permall"
OWNER, INDEX = "40000001", "01500016"
EMPTY_PASSWORD = "00000009" + "40000009" + "0000" + "01" + "0000"
PUBLIC = (
    "000e" + INDEX + "000b" + "00060006" + "0000" + "0010"
)  # SHA-256; owner and index may read and write; 16 bytes


def tpm(site: Site, code: str, handles: str, parameters: str) -> bytes:
    """One command to the guest's TPM [TPM 2.0 library, part 3]; its answer's parameters. Fails on a TPM's error."""
    body = handles + EMPTY_PASSWORD + parameters
    command = f"8002{len(body) // 2 + 10:08x}{code}{body}"
    octal = "".join(f"\\{byte:03o}" for byte in bytes.fromhex(command))
    script = f"exec 3<>/dev/tpm0 && printf '{octal}' >&3 && dd bs=4096 count=1 <&3 2>/dev/null | od -An -v -tx1"
    answer = bytes.fromhex("".join(site.guest_shell(NAME, script).split()))
    assert answer[6:10] == b"\0\0\0\0", f"the TPM answered {answer.hex()}"
    return answer[14:]


def write_secret(site: Site, secret: bytes) -> None:
    tpm(site, "00000137", OWNER + INDEX, f"{len(secret):04x}{secret.hex()}0000")


def read_secret(site: Site) -> bytes:
    return tpm(site, "0000014e", OWNER + INDEX, "00100000")[2:18]


def agent_answers(site: Site) -> None:
    def answers() -> bool:
        try:
            guests.agent(site, NAME, "guest-ping")
        except LabFailed:
            return False
        return True

    wait_until(answers, "the guest agent", timeout_s=90, every_s=0.5)


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
    agent_answers(a)
    guests.set_rate(a, NAME, rate=0, scratch=0, zero=0, discard=0)
    tpm(a, "0000012a", OWNER, "0000" + PUBLIC)
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
    api = vault.engine.gateway.api(vault.stage.backend._site(vault.protection.target_site))
    write_secret(vault.a, secrets.token_bytes(16))
    vault.a.guest_shell(NAME, "sync")
    seqs = [vault.cycle()]
    while seqs[-1] is not None:
        assert len(seqs) < 8, "the guest's disk is never still"
        seqs.append(vault.cycle())
    first = seqs[-2]
    assert first is not None
    before = api.point(VM, first)
    assert before.tpm
    write_secret(vault.a, secrets.token_bytes(16))
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
    vault.cycle()
    assert vault.protection.warnings == ()


def test_a_failover_brings_the_tpm_up_with_the_point_and_keeps_what_lay_there(vault: Vault) -> None:
    """Last: it ends the stage."""
    a, b = vault.a, vault.b
    secret = secrets.token_bytes(16)
    write_secret(a, secret)
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
    agent_answers(b)
    assert read_secret(b) == secret

    # The same failover once more, the VM off: what the guest wrote since is not taken back.
    later = secrets.token_bytes(16)
    write_secret(b, later)
    b.virsh("destroy", NAME)
    said = len(b.serial(NAME))
    vault.fail_over("once more")
    assert vault.protection.epoch_number == 2
    guests.wait_for(b, NAME, "VAPOR-DIARY ", timeout_s=120, after=said)
    agent_answers(b)
    assert read_secret(b) == later
    assert len(list(placed.parents[2].glob(f"{VM}*"))) == 2
