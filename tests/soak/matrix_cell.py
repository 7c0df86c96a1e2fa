"""One cell of the matrix, in a process of its own: make the world, run the operation, tell the end state.

``matrix_cell.py pair LAB HOME`` pairs a console once (HOME/template); ``matrix_cell.py run LAB HOME KIND STEP FAULT``
prints one JSON line: {"state": …, "words": […], "wrong": […], "seconds": …}.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from matrix_faults import KILL, NONE, REPLICAS, Fault, NeverBoth
from matrix_scenes import NAME, OP_S, REASON, SCENES, Scene, answer, begin, key_of, wait_for_other_question

from vapor_desktop.lab import guests
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.processes import LabFailed, wait_until
from vapor_desktop.lab.stage import Stage
from vapor_desktop.model.errors import VaporError
from vapor_desktop.model.manifest import Manifest
from vapor_desktop.model.operations import Operation, OperationKind, OperationState, StepState
from vapor_desktop.model.sites import Protection
from vapor_desktop.model.states import Phase

HERE = Path(__file__).parent
TRIES = 6
CACHE = Path.home() / ".cache/vapor-lab"  # built images are worth keeping


def pair(lab: Lab, home: Path) -> None:
    """A console's database with both sites, to be copied for each cell."""
    template = home / "template"
    template.mkdir()
    stage = Stage(lab, template)
    stage.open()
    stage.pair()
    stage.close()


def clean(lab: Lab, scene: Scene) -> None:
    """Nothing of an earlier cell: no VM or replica at B, the guest running at A without our checkpoints."""
    a, b = lab.sites["a"], lab.sites["b"]
    lab.mend_link()
    for site in (a, b):
        if not site.runs("libvirtd"):
            site.start_libvirt()
        site.exec(["sh", "-c", "rm -rf /var/lib/vapor/guard/*.json /var/lib/vapor/plans/* /var/lib/vapor/drills/*"])
    for name in b.virsh("list", "--all", "--name").split():
        b.virsh("destroy", name, check=False)
        b.virsh("undefine", name, "--nvram", "--checkpoints-metadata", "--managed-save")
    for network in set(b.virsh("net-list", "--all", "--name").split()) - {b.network}:
        b.virsh("net-destroy", network, check=False)
        b.virsh("net-undefine", network, check=False)
    for site in (a, b):
        site.exec(["sh", "-c", f"rm -rf {REPLICAS}/* {REPLICAS}/.fill*"])
    known = a.virsh("list", "--all", "--name").split()
    for other in set(known) - {NAME}:
        a.virsh("destroy", other, check=False)
        a.virsh("undefine", other, "--nvram", "--checkpoints-metadata", "--managed-save")
    if NAME not in known:
        guests.add(a, guests.GuestSpec(NAME, rate=2, scratch=0), CACHE)
    elif a.virsh("domstate", NAME) != "running":
        a.virsh("destroy", NAME, check=False)
        a.virsh("start", NAME)
    for checkpoint in a.virsh("checkpoint-list", NAME, "--name").split():
        a.virsh("checkpoint-delete", NAME, checkpoint, check=False)
    if scene.booted:
        wait_until(lambda: a.virsh("qemu-agent-command", NAME, PING, check=False) != "", "its agent", timeout_s=120)


PING = '{"execute":"guest-ping"}'


def world(lab: Lab, home: Path, cell: Path, scene: Scene) -> Stage:
    """A protected guest with a point, as the scene wants it; the console of the stage is open."""
    shutil.copytree(home / "template", cell)
    clean(lab, scene)
    stage = Stage(lab, cell)
    backend = stage.open()
    site_a, site_b = (next(s.site for s in backend.snapshot().sites if s.site.name == f"site-{n}") for n in "ab")
    stage.protect(site_a, site_b, [NAME], rpo_target_s=10)
    stage.wait_for_point(NAME, 1)
    scene.prepare(stage)
    return stage


def to_its_end(stage: Stage, operation_id: str, scene: Scene, words: list[str]) -> Operation:
    """Answer what it asks, as one who wants it to succeed."""
    for _ in range(TRIES):
        operation = stage.backend.wait_operation(operation_id, OP_S)
        if operation.ended:
            return operation
        words.append(answer(stage.backend, operation_id, scene.answers))
        wait_for_other_question(stage.backend, operation)
    raise AssertionError(f"It asked {TRIES} times: {words[-1]}")


def killed(stage: Stage, scene: Scene, step: str, words: list[str]) -> Operation:
    """Another engine begins it and is killed once the step is recorded; ours takes it over and finishes it."""
    key, args = key_of(stage), json.dumps(scene.args(stage))
    stage.close()
    asked = [sys.executable, str(HERE / "matrix_engine.py"), scene.kind.value, key, args, step, "recorded"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=400, check=False)
    if done.returncode != -9:
        raise AssertionError(f"It did not die after {step} (exit code {done.returncode}): {done.stderr[-600:]}")
    stage.open()
    [operation] = [o for o in stage.backend.operations() if o.reason == REASON and o.kind is scene.kind]
    return to_its_end(stage, operation.operation_id, scene, words)


def faulted(stage: Stage, scene: Scene, step: str, what: str, words: list[str]) -> Operation:
    """The fault comes as the step begins; what asks or failed is tried again once it is mended."""
    assert stage.program is not None
    fault = Fault(stage.lab, what, step) if what != NONE else None
    if fault is not None:
        stage.program.engine.operations.observer = fault.observe
    try:
        for _ in range(TRIES):
            begun = begin(scene.kind, stage.backend, key_of(stage), scene.args(stage))
            operation = stage.backend.wait_operation(begun, OP_S)
            if fault is not None and fault.came.is_set() and not fault.mended.wait(60):
                raise AssertionError("the fault was not mended")
            operation = to_its_end(stage, begun, scene, words)
            if operation.state is not OperationState.FAILED:
                break
            words.append(f"failed: {operation.error and operation.error.get('what')}; begun again")
    finally:
        if fault is not None:
            fault.close()
    if fault is not None and fault.trouble:
        raise AssertionError("; ".join(fault.trouble))
    if fault is not None and not fault.came.is_set():
        raise AssertionError(f"the step {step} never began")
    return operation


def end_state(stage: Stage, operation: Operation) -> dict[str, Any]:
    """What must be the same whatever happened on the way."""
    assert stage.program is not None
    p = stage.row(NAME).protection
    names = {p.source_site: "a", p.target_site: "b"}
    target = next(s.site for s in stage.backend.snapshot().sites if s.site.site_id == p.target_site)
    view = stage.program.engine.gateway.api(target).replica(p.vm_uuid)
    m = view.manifest
    found: dict[str, Any] = {
        "operation": operation.state.value,
        "steps": {row.name: row.state.value for row in operation.steps},
        "phase": _phase(p, m).value,
        "epoch": [m.epoch.number, names.get(m.epoch.owner, m.epoch.owner)],
        "recorded epoch": [p.epoch_number, names.get(p.epoch_owner, p.epoch_owner)],
        "runs": sorted(m.runs),
        "pins": sorted(pin.partition(":")[0] for point in m.points for pin in point.pins),
        "direction": names.get(m.source_site, "") + " to " + names.get(m.target_site, ""),
    }
    for name, site in stage.lab.sites.items():
        info = site.virsh("dominfo", NAME, check=False)
        defined = {line.partition(":")[0]: line.partition(":")[2].strip() for line in info.splitlines()}
        guard = site.exec(["vapor-site", "guard", "show", NAME], user="vapor", check=False).stdout
        record = json.loads(guard) if guard else {}
        found[f"at {name}"] = {
            "state": defined.get("State", "undefined"),
            "autostart": defined.get("Autostart", ""),
            # Names of a drill's copy and bubble are its own each time.
            "other domains": len(set(site.virsh("list", "--all", "--name").split()) - {NAME}),
            "other networks": len(set(site.virsh("net-list", "--all", "--name").split()) - {site.network}),
            "guard": [record.get("state"), record.get("epoch", {}).get("number"), record.get("may_start")],
        }
    return found


def wait_for_word(stage: Stage) -> None:
    """Until the source's host has been told of the epoch; the engine does so at its next look."""
    assert stage.program is not None
    p = stage.row(NAME).protection
    target = next(s.site for s in stage.backend.snapshot().sites if s.site.site_id == p.target_site)
    epoch = stage.program.engine.gateway.api(target).replica(p.vm_uuid).manifest.epoch.number
    a = stage.lab.sites["a"]

    def told() -> bool:
        guard = a.exec(["vapor-site", "guard", "show", NAME], user="vapor", check=False).stdout
        return not guard or json.loads(guard)["epoch"]["number"] >= epoch

    with contextlib.suppress(LabFailed):
        wait_until(told, "the source's guard", timeout_s=45, every_s=1.0)


def wait_for_cycles(stage: Stage) -> None:
    """A cycle that met the fault too is tried again by itself, half a minute later if a person had to make room."""
    with contextlib.suppress(LabFailed):
        wait_until(lambda: stage.row(NAME).protection.phase is not Phase.ERROR, "a cycle", timeout_s=90, every_s=0.5)


def _phase(p: Protection, m: Manifest) -> Phase:
    """When the source is seen to be back, off and fenced, is a matter of the next look at it, not of the fault."""
    if p.phase is not Phase.SPLIT_BRAIN_RISK:
        # A cycle that happens to run at this moment is no other end.
        return Phase.PROTECTED if p.phase is Phase.SYNCING else p.phase
    return Phase.PROVISIONAL if m.provisional == m.epoch.number else Phase.FAILED_OVER


def state_of_steps(stage: Stage) -> list[str]:
    """What the last operation's journal says, for a cell that failed."""
    if stage.program is None:
        return []
    last = next(iter(stage.backend.operations(limit=1)), None)
    rows = [r for r in last.steps if r.state is not StepState.PENDING] if last else []
    return [f"{r.name}: {r.state.value} {r.note}" for r in rows]


def run(lab: Lab, home: Path, kind: OperationKind, step: str, fault: str) -> dict[str, Any]:
    """The cell's outcome."""
    scene, words, wrong = SCENES[kind], list[str](), list[str]()
    began = time.monotonic()
    cell = home / f"cell-{os.getpid()}"
    stage = world(lab, home, cell, scene)
    try:
        with NeverBoth(lab) as never:
            if fault == KILL:
                operation = killed(stage, scene, step, words)
            else:
                operation = faulted(stage, scene, step, fault, words)
        if never.seen and not scene.twice:
            wrong.append(f"the VM was seen running at both sites in {never.seen} of {never.looks} looks")
        if operation.state is not OperationState.DONE:
            wrong.append(f"it came to {operation.state}: {operation.error}")
        wait_for_word(stage)
        wait_for_cycles(stage)
        state = end_state(stage, operation)
        scene.after(stage)
    except (AssertionError, LabFailed, VaporError) as error:
        wrong += [f"{type(error).__name__}: {error}", *state_of_steps(stage)]
        state = {}
    finally:
        stage.close()
        shutil.rmtree(cell)
    return {"state": state, "words": words, "wrong": wrong, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    """The exit code."""
    verb, lab_name, home, *rest = sys.argv[1:]
    lab = Lab(lab_name, cache=CACHE)
    if verb == "pair":
        pair(lab, Path(home))
        return 0
    kind, step, fault = rest
    print(json.dumps(run(lab, Path(home), OperationKind(kind), step, fault)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
