"""The guide's pages, and what each error code means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import vapor_desktop
from vapor_desktop.model.errors import NotFound

# In the order in which a new administrator reads them.
NAMES = (
    "get-started",
    "pair",
    "protect",
    "drill",
    "migrate",
    "emergency",
    "come-home",
    "plans",
    "break-glass",
    "errors",
)
ERRORS = "errors"


@dataclass(frozen=True, slots=True)
class Page:
    """``text``: Markdown, from its title on."""

    name: str
    title: str
    text: str


@cache
def folder() -> Path:
    """Where the pages lie: in a checkout or in a wheel. Raises FileNotFoundError naming both places."""
    package = Path(vapor_desktop.__file__).resolve().parent
    tried = (package / "_data" / "guide", package.parent / "docs" / "guide")
    for path in tried:
        if path.is_dir():
            return path
    raise FileNotFoundError(f"The installation is incomplete: neither {tried[0]} nor {tried[1]} exists")


@cache
def page(name: str) -> Page:
    """Raises NotFound for a name that is not in NAMES."""
    if name not in NAMES:
        raise NotFound(f"The guide has no page “{name}”", fix=f"There are: {', '.join(NAMES)}")
    text = (folder() / f"{name}.md").read_text(encoding="utf-8")
    return Page(name, text.partition("\n")[0].removeprefix("# ").strip(), text)


@cache
def pages() -> tuple[Page, ...]:
    """All of them, in reading order."""
    return tuple(page(name) for name in NAMES)


@cache
def explanations() -> dict[str, str]:
    """Error code -> Markdown of what it means, without its heading."""
    parts = re.split(r"^## +([A-Z0-9-]+) *$", page(ERRORS).text, flags=re.MULTILINE)
    # A chapter's heading ("# …") after the last section of the one before is not part of that section.
    return {
        code: re.split(r"^# ", text, maxsplit=1, flags=re.MULTILINE)[0].strip()
        for code, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def explanation(code: str) -> str:
    """Markdown of what ``code`` means, in any case of letters. Raises NotFound."""
    found = explanations().get(code.strip().upper())
    if found is None:
        raise NotFound(f"There is no error code “{code}”", fix="`vaporctl explain` lists them all")
    return found
