"""A real PostgreSQL server of one's own: temporary directory, unix socket, no TCP."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yields a URL of the server's maintenance database, to be completed by ``new_database``."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise RuntimeError("PostgreSQL's server programs are not installed (Debian: apt install postgresql)")
    programs = found[-1].parent
    home = Path(tempfile.mkdtemp(prefix="vapor-pg-", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(home, "postgres", "postgres")
    run, data = _run, home / "data"
    control = [str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(home / "log")]
    try:
        run(str(programs / "initdb"), "-D", str(data), "-U", "vapor", "-A", "trust", "-E", "UTF8", "--no-sync")
        # The zone is far from UTC on purpose: what comes back must still be UTC.
        run(*control, "-o", f"-k {home} -c listen_addresses= -c fsync=off -c timezone=Asia/Tokyo", "start")
        try:
            yield f"postgresql+psycopg://vapor@/postgres?host={home}"
        finally:
            run(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)


def _run(*command: str) -> None:
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    run_as = as_user if os.geteuid() == 0 else []  # PostgreSQL refuses to run as root
    subprocess.run([*run_as, *command], check=True, cwd="/", stdout=subprocess.DEVNULL)


def crash(url: str) -> None:
    """End the server of that URL at once, as a power cut would, and start it again as it was started."""
    home = Path(url.rpartition("host=")[2])
    control = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))[-1]
    _run(str(control), "-D", str(home / "data"), "-w", "-l", str(home / "log"), "-m", "immediate", "restart")


def new_database(url: str, name: str) -> str:
    """The URL of a new, empty database on that server."""
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return url.replace("/postgres?", f"/{name}?")
