"""``./vapor screenshots DIR``: every page, tab and sheet of the console, in light and in dark, as PNG.

The story behind them is real: two hosts of the lab, guests that write and are replicated, a plan, a drill that has
passed, one that runs. Nothing is drawn by hand, so a picture shows what the program does today.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lab"))

from click.testing import CliRunner
from desk import Desk

from tests.screens.walk import walk
from vapor_desktop.cli.main import vaporctl
from vapor_desktop.gui.theme import Scheme
from vapor_desktop.lab import guests
from vapor_desktop.lab.guests import GuestSpec
from vapor_desktop.lab.keyring_session import KeyringSession
from vapor_desktop.lab.lab import Lab
from vapor_desktop.lab.stage import Stage

GUESTS = (
    GuestSpec("web", rate=4, scratch=1),
    GuestSpec("db", firmware="uefi", disk_count=2, rate=4, scratch=1),
    GuestSpec("mail", rate=1, scratch=0),
)
PLAN = """
name = "Shop"
[[tiers]]
name = "data"
[[tiers.vms]]
name = "db"
checks = [{kind = "agent"}]
[[tiers]]
name = "front"
pause = "Is the DNS moved?"
[[tiers.vms]]
name = "web"
checks = [{kind = "running"}]
"""


def main() -> int:
    """Exit code 2 for a wrong call."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: ./vapor screenshots DIR", file=sys.stderr)
        return 2
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="vapor-screens-"))
    lab = Lab("screens")
    try:
        with KeyringSession(home):
            say("two hosts and their guests")
            lab.up()
            for spec in GUESTS:
                guests.add(lab.sites["a"], spec, lab.cache)
            with story(lab, home):
                pass
            with console(home) as desk:
                for scheme in (Scheme.LIGHT, Scheme.DARK):
                    say(f"the {scheme.value} screens")
                    desk.context.theme.use(scheme)
                    for name, picture in walk(desk):
                        path = target / f"{name}-{scheme.value}.png"
                        if picture.isNull() or not picture.save(str(path)):
                            raise OSError(f"{path} could not be written")
                        say(str(path))
    finally:
        lab.down()
        shutil.rmtree(home, ignore_errors=True)
    return 0


@contextmanager
def story(lab: Lab, home: Path) -> Iterator[Stage]:
    """What has happened before the console is opened: pairs, points, a plan, a passed drill."""
    stage = Stage(lab, home)
    stage.open()
    try:
        a, b = stage.pair()
        for spec in GUESTS:
            guests.wait_for(lab.sites["a"], spec.name, "VAPOR-DIARY ", timeout_s=120)
        say("first copies")
        stage.protect(a, b, ["web"], rpo_target_s=15)
        stage.protect(a, b, ["db"], rpo_target_s=20)
        for name in ("web", "db"):
            stage.wait_for_point(name, 5, timeout_s=240)
        file = home / "shop.toml"
        file.write_text(PLAN)
        ctl("plan", "create", str(file))
        say("a drill")
        ctl("drill", "start", "web", "--reason", "quarterly rehearsal", "--agent")
        ctl("drill", "stop", "web", "--passed", "--note", "all services answered")
        ctl("drill", "start", "db", "--reason", "before the upgrade")
        yield stage
    finally:
        stage.close()


@contextmanager
def console(home: Path) -> Iterator[Desk]:
    """The console on what the story left behind; its engine goes on with it."""
    desk = Desk(home)
    try:
        desk.until(lambda: len(desk.statuses()) == 2, "the protections")
        known = {s.key: s.last_seq or 0 for s in desk.statuses()}
        desk.until(
            lambda: all((s.last_seq or 0) > known[s.key] for s in desk.statuses()), "the new engine's points", 120
        )
        desk.window.resize(1360, 860)
        yield desk
    finally:
        desk.close()
        del os.environ["VAPOR_DATABASE_URL"]


def ctl(*arguments: str) -> Any:
    """vaporctl beside the engine, as a person's shell would be. Its failure ends the run."""
    done = CliRunner().invoke(vaporctl, [*arguments, "--json"], catch_exceptions=False)
    if done.exit_code != 0:
        raise RuntimeError(f"vaporctl {' '.join(arguments)}: {done.output}")
    return json.loads(done.output.splitlines()[-1])


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"screenshots: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
