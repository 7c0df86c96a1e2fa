"""Where this console keeps what (XDG)."""

from __future__ import annotations

import warnings
from pathlib import Path

import platformdirs

from vapor_desktop.program_log import APP, log_file


def places() -> list[tuple[str, Path, str]]:
    """(what, where, the variable that moves it)."""
    return [
        ("Settings and the window's memory", config_file(), "XDG_CONFIG_HOME"),
        ("Database, unless VAPOR_DATABASE_URL names another", data_folder() / "vapor.db", "XDG_DATA_HOME"),
        ("Log", log_file(), "XDG_STATE_HOME"),
        ("Socket of the running console", runtime_folder() / "console.sock", "XDG_RUNTIME_DIR"),
    ]


def config_file(*, demo: bool = False) -> Path:
    """The window's memory."""
    return Path(platformdirs.user_config_dir(APP)) / ("window-demo.json" if demo else "window.json")


def data_folder() -> Path:
    """The database's folder."""
    return Path(platformdirs.user_data_dir(APP))


def runtime_folder() -> Path:
    """Gone at the end of the session."""
    with warnings.catch_warnings():  # no session has set one up: below /tmp then, which is right for us
        warnings.simplefilter("ignore", UserWarning)
        return Path(platformdirs.user_runtime_dir(APP))
