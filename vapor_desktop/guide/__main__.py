"""``python -m vapor_desktop.guide DIR``: the guide as HTML pages."""

from __future__ import annotations

import sys
from pathlib import Path

from vapor_desktop.guide.html import write


def main() -> int:
    """Exit code 2 for a wrong call."""
    if len(sys.argv) != 2:
        print("usage: python -m vapor_desktop.guide DIR", file=sys.stderr)
        return 2
    for path in write(Path(sys.argv[1])):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
