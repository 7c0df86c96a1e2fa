"""What holds for every suite: no test reaches the session of the person who runs it, and none is skipped unseen.

``./vapor test`` repeats in a few lines what failed after all suites: it names the file in VAPOR_FAILURES.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Shared cores make single examples slow at random; a hang is caught by the suite's own timeout.
settings.register_profile("vapor", deadline=None, print_blob=True)
settings.load_profile("vapor")

_XDG = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")
_skipped: list[str] = []
MOST_WORDS = 500


@pytest.fixture(autouse=True, scope="session")
def _own_user_directories() -> Iterator[None]:
    """Settings, data, keyring files and sockets of a test run live in a directory of their own.

    The directory's name is short: a unix socket's path may have 107 bytes.
    """
    before = {name: os.environ.get(name) for name in _XDG}
    with tempfile.TemporaryDirectory(prefix="vapor-t-") as root:
        for name in _XDG:
            path = Path(root, name.removeprefix("XDG_").split("_")[0].lower())
            path.mkdir(mode=0o700)
            os.environ[name] = str(path)
        yield
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember the skipped, and write down the failed."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)
    told = os.environ.get("VAPOR_FAILURES")
    if report.failed and told and "PYTEST_XDIST_WORKER" not in os.environ:  # there the one that gathers writes it
        with Path(told).open("a") as out:
            out.write(_in_few_words(report))


def _in_few_words(report: pytest.TestReport) -> str:
    """Which test, in which phase, and the first words of what was wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    message = str(crash.message if crash else report.longrepr).strip()[:MOST_WORDS]
    where = f"{crash.path}:{crash.lineno}" if crash else ""
    return f"{report.nodeid} [{report.when}] {where}\n    " + "\n    ".join(message.splitlines()) + "\n"


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Whole files may be skipped too."""
    if report.skipped:
        _skipped.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """``./vapor test`` installs every tool, so there a skip means that something was not proven."""
    if _skipped and os.environ.get("VAPOR_NO_SKIP") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a run without a failed test failed."""
    if _skipped and os.environ.get("VAPOR_NO_SKIP"):
        terminalreporter.section("skipped tests count as failures here", red=True)
        for nodeid in _skipped:
            terminalreporter.line(nodeid)
