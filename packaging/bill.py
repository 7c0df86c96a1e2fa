"""``bill.py ENVIRONMENT NAME VERSION DIR``: a package's parts (CycloneDX) and their licences, into DIR."""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path


def main() -> int:
    """Exit code 0."""
    environment, name, version, target = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    [packages] = environment.glob("lib/python3*/site-packages")
    found = sorted(distributions(path=[str(packages)]), key=lambda d: d.metadata["Name"].casefold())
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": name, "version": version}},
        "components": [component(d) for d in found],
    }
    (target / "sbom.cdx.json").write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    texts = "\n".join(part for d in found for part in licence(d))
    (target / "LICENSES.txt").write_text(texts, encoding="utf-8")
    return 0


def component(dist: Distribution) -> dict[str, object]:
    """As CycloneDX has it."""
    name = dist.metadata["Name"]
    made: dict[str, object] = {
        "type": "library",
        "name": name,
        "version": dist.version,
        "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{dist.version}",
    }
    said = told(dist)
    return made | ({"licenses": [{"license": {"name": said}}]} if said else {})


def told(dist: Distribution) -> str:
    """What its metadata say of the licence; "" when nothing."""
    classified = [
        c.rsplit(" :: ", 1)[-1] for c in dist.metadata.get_all("Classifier") or [] if c.startswith("License")
    ]
    first = (dist.metadata.get("License") or "").strip().splitlines()
    return dist.metadata.get("License-Expression") or ", ".join(classified) or (first[0] if first else "")


def licence(dist: Distribution) -> list[str]:
    """A heading, and the texts that came with it."""
    words = ("licen", "copying", "notice", "authors")
    files = [f for f in dist.files or [] if ".dist-info" in str(f) and any(w in f.name.lower() for w in words)]
    lines = ["=" * 100, f"{dist.metadata['Name']} {dist.version}: {told(dist) or 'see its text'}", ""]
    return [*lines, *(Path(str(dist.locate_file(f))).read_text(encoding="utf-8", errors="replace") for f in files)]


if __name__ == "__main__":
    sys.exit(main())
