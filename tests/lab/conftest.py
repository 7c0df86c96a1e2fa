"""The session's lab: two hosts, brought up once under the machine-wide lock, taken down at the end.

A missing tool is a failure, not a skip: these tests are the product's proof.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from vapor_desktop.lab import guests
from vapor_desktop.lab.lab import Lab, Site
from vapor_desktop.lab.processes import LabFailed

# The suite's own XDG directories are thrown away; built images and releases are worth keeping.
CACHE = Path.home() / ".cache/vapor-lab"
# Another number is another lab beside the first: its own names, its own lock.
NUMBER = os.environ.get("VAPOR_TEST_LAB", "")
LOCK = Path(f"/tmp/vapor-lab{NUMBER}.lock")  # noqa: S108 - the same for all users of the machine

# Their assertions are the proofs'.
pytest.register_assert_rewrite("proofs", "desk", "left_behind")


# The labs that are up, for what a failure tells of them.
UP: list[Lab] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lab)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure tells what the hosts looked like at that moment: they are gone before anybody can look."""
    report = yield
    if report.failed and item.get_closest_marker("lab"):
        lines = [f"load {' '.join(f'{n:.1f}' for n in os.getloadavg())}"]
        for site in (site for lab in UP for site in lab.sites.values()):
            lines += _state_of(site)
        report.sections.append(("Lab at that moment", "\n".join(lines)))
    return report


def _state_of(site: Site) -> list[str]:
    """One line for each guest: state, agent, and the last of its console."""
    try:
        found = []
        for name in site.virsh("list", "--all", "--name").split():
            asked = {"execute": "guest-fsfreeze-status"}
            words = ["qemu-agent-command", name, json.dumps(asked), "--timeout", "5"]
            agent = site.exec([*guests.URI, *words], check=False)
            said = " | ".join(guests.serial(site, name).splitlines()[-6:])
            found.append(
                f"{site.name}/{name}: {site.virsh('domstate', name, '--reason')}; "
                f"agent: {(agent.stdout or agent.stderr).strip()}; console: {said}"
            )
    except LabFailed as error:
        return [f"{site.name}: {error}"]
    return found


def _inherited(lock: Path) -> int | None:
    """A descriptor of the lock that `flock /tmp/vapor-lab.lock pytest …` left open for us: it holds it already."""
    wanted = lock.stat()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found = entry.stat()
        except FileNotFoundError:  # the listing's own descriptor
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return int(entry.name)
    return None


@pytest.fixture(scope="module", autouse=True)
def nothing_left_open() -> Iterator[None]:
    """What a module forgot to close is told in that module, not wherever the collector happens to come by."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def lab_lock() -> Iterator[None]:
    """One lab at a time on this machine."""
    LOCK.touch()
    inherited = _inherited(LOCK)
    descriptor = os.open(LOCK, os.O_RDWR) if inherited is None else inherited
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    if inherited is None:
        os.close(descriptor)


@pytest.fixture(scope="session")
def lab(lab_lock: None) -> Iterator[Lab]:
    """Two hosts with libvirt, sshd and the site service; guests are the tests' own business."""
    lab = Lab(f"tests{NUMBER}", cache=CACHE)
    lab.up()
    UP.append(lab)
    yield lab
    UP.remove(lab)
    lab.down()


@pytest.fixture(scope="session")
def bare_lab(lab_lock: None) -> Iterator[Lab]:
    """Two hosts without the site service, for tests of the lab itself (a kill there hurts nobody else)."""
    lab = Lab(f"bare{NUMBER}", cache=CACHE)
    lab.up(site_service=False)
    yield lab
    lab.down()
