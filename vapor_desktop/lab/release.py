"""The root of a host of another Debian release, made once with mmdebstrap and kept in the cache.

The host sees it through an overlay of its own, so every lab starts from the pristine root.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vapor_desktop.lab.guestkit import locked
from vapor_desktop.lab.processes import LabFailed, run

MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = (
    "libvirt-daemon-system",
    "libvirt-clients",
    "qemu-system-x86",
    "qemu-utils",
    "qemu-block-extra",
    "openssh-server",
    "openssh-client",
    "python3",
    "python3-libvirt",
    "python3-libnbd",
    "iproute2",
    "iptables",
    "dnsmasq-base",
    "ovmf",
    "swtpm",
    "swtpm-tools",
    "procps",
)
LIBRARIES = "/opt/vapor-python"  # the site's requirements, for the release's own interpreter
# libvirt's and libnbd's bindings come from the release itself: they are bound to its libraries.
FROM_THE_RELEASE = ("libvirt-python",)
PLATFORMS = ("manylinux_2_41", "manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")


@dataclass(frozen=True)
class Release:
    """What differs between releases."""

    suite: str
    python: str


TRIXIE = Release("trixie", "3.13")


def build(cache: Path, release: Release, requirements: Path) -> Path:
    """The release's root, from the cache or made now (about a minute, some 450 MB of downloads' worth)."""
    wanted = without(requirements.read_text(), FROM_THE_RELEASE)
    digest = hashlib.sha256(wanted.encode() + "".join(PACKAGES).encode()).hexdigest()[:12]
    root = cache / f"root-{release.suite}-{digest}"
    with locked(cache / "release.lock"):
        if not root.exists():
            made = Path(tempfile.mkdtemp(prefix="root-", dir=cache))
            try:
                made.chmod(0o755)
                _bootstrap(made, release)
                _libraries(made, release, wanted)
                made.rename(root)
            except BaseException:
                shutil.rmtree(made)
                raise
    return root


def _bootstrap(root: Path, release: Release) -> None:
    if shutil.which("mmdebstrap") is None:
        raise LabFailed("mmdebstrap is not installed", fix="apt-get install mmdebstrap")
    source = f"deb [signed-by={KEYRING}] {MIRROR} {release.suite} main"
    words = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(PACKAGES)}", release.suite]
    run([*words, root, source], timeout_s=900)


def _libraries(root: Path, release: Release, wanted: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(wanted)
        file.flush()
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", file.name]
        words += ["--only-binary=:all:", "--implementation", "cp", "--python-version", release.python]
        for platform in PLATFORMS:
            words += ["--platform", f"{platform}_x86_64"]
        run([*words, "--root-user-action=ignore", "--target", str(root / LIBRARIES.lstrip("/"))], timeout_s=600)


def without(requirements: str, names: tuple[str, ...]) -> str:
    """A requirements file (``uv pip compile --generate-hashes``) without these packages."""
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", requirements)
    return "".join(block for block in blocks if not block.startswith(tuple(f"{name}==" for name in names)))
