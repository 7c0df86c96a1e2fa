"""What this host can do for the TPM of a VM that is to start here: look, and put a point's state in place.

A state is tried with this host's own swtpm before anything relies on it: one that is encrypted, damaged or
of a newer swtpm would keep its VM from starting at all. The try works on a copy and needs no privilege.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
from hashlib import sha256
from pathlib import Path

from vapor_desktop.model.errors import Conflict, NotFound, VaporError
from vapor_desktop.model.wire import PlaceTpm, TpmPlaced, TpmSupport
from vapor_desktop.site.helper_client import HelperClient
from vapor_desktop.site.helper_tpm import unpack
from vapor_desktop.site.replica import ReplicaStore
from vapor_desktop.site.replica.layout import BLOB_FILES

TRY_S = 10.0
PATH = "/usr/bin:/bin:/usr/local/bin:/usr/sbin:/sbin"
# Any command does: swtpm answers only once it has loaded the state.
_GET_RANDOM = {True: bytes.fromhex("80010000000c0000017b0008"), False: bytes.fromhex("00c10000000e0000004600000008")}


class TpmKeeper:
    """Of one site service. Thread-safe."""

    def __init__(self, store: ReplicaStore, helper: HelperClient) -> None:
        self._store = store
        self._helper = helper
        self._lock = threading.Lock()
        self._tried: dict[str, tuple[str, str]] = {}  # VM -> (digest of the last state tried, what it lacks)

    def support(self) -> TpmSupport:
        """Of this host, whatever the VM."""
        if any(shutil.which(tool, path=PATH) is None for tool in ("swtpm", "swtpm_setup")):
            return TpmSupport(
                emulates=False, why="the target has no swtpm", fix="Install swtpm and swtpm-tools there"
            )
        if not self._helper.ping():
            fix = "Start it there: `systemctl enable --now vapor-helper.socket`"
            return TpmSupport(emulates=True, why="the target's root helper does not answer", fix=fix)
        return TpmSupport(emulates=True)

    def of_point(self, vm: str, seq: int) -> TpmSupport:
        """Of the state that a point holds. Raises NotFound when there is no such point."""
        found = self.support()
        if found.why:
            return found
        try:
            archive = self._archive(vm, seq)
        except (Conflict, NotFound) as error:
            self._store.point(vm, seq)
            return TpmSupport(emulates=True, why=error.what, fix=error.fix)
        lacks = self._try(vm, archive)
        fix = "Install the source's version of swtpm at the target, or start the VM there with a new TPM"
        return TpmSupport(emulates=True, why=lacks, fix=fix if lacks else "")

    def place(self, vm: str, seq: int, request: PlaceTpm) -> TpmPlaced:
        """Raises StaleLease, NotFound (no state in the point), Conflict (damaged; in use), NotAllowed (no helper)."""
        self._store.check_lease(vm, request.fence)
        return TpmPlaced(kept=self._helper.place_tpm(request.as_uuid, self._archive(vm, seq)))

    def place_copy(self, vm: str, seq: int, as_uuid: str) -> None:
        """The same for a drill's copy, whose UUID nobody else has: no lease guards it."""
        self._helper.place_tpm(as_uuid, self._archive(vm, seq))

    def _archive(self, vm: str, seq: int) -> bytes:
        point = self._store.point(vm, seq)
        if not point.tpm:
            raise NotFound(f"point {seq} holds no TPM state", fix="Take a new point once what hinders it is mended")
        archive = self._store.point_file(vm, seq, BLOB_FILES["tpm"]).read_bytes()
        if point.tpm_digest and sha256(archive).hexdigest() != point.tpm_digest:
            raise Conflict(f"the TPM state in point {seq} is damaged", fix="Take a new point, or choose another one")
        return archive

    def _try(self, vm: str, archive: bytes) -> str:
        """Why this host's swtpm does not take the state; "" when it does. Tried once per state."""
        digest = sha256(archive).hexdigest()
        with self._lock:
            before = self._tried.get(vm)
        if before is not None and before[0] == digest:
            return before[1]
        lacks = why_not_loaded(archive)
        with self._lock:
            self._tried[vm] = digest, lacks
        return lacks


def why_not_loaded(archive: bytes) -> str:
    """Why this host's swtpm does not load the archive's state; "" when it does."""
    try:
        states = unpack(archive)
    except VaporError as error:
        return error.what
    with tempfile.TemporaryDirectory(prefix="vapor-tpm-") as temporary:
        for name, content in states.items():
            file = Path(temporary) / name
            file.parent.mkdir()
            file.write_bytes(content)
            if not _loads(file.parent, tpm2=name.startswith("tpm2/")):
                return "the target's swtpm does not load this TPM state: it is encrypted, damaged or of a newer swtpm"
    return ""


def _loads(directory: Path, *, tpm2: bool) -> bool:
    ours, its = socket.socketpair()
    with ours, its:
        words = ["swtpm", "socket", "--tpmstate", f"dir={directory}", "--fd", str(its.fileno())]
        words += ["--flags", "not-need-init", "--log", f"file={directory}.log"]
        child = subprocess.Popen(
            [*words, "--tpm2"] if tpm2 else words,
            pass_fds=(its.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
        its.close()
        ours.settimeout(TRY_S)
        try:
            ours.sendall(_GET_RANDOM[tpm2])
            answered = len(ours.recv(4096)) > 0
        except OSError:  # it hung up without an answer, or took too long: either way nothing to rely on
            answered = False
        ours.close()  # ends it
        try:
            child.wait(TRY_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    return answered
