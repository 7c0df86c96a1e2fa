"""Settings of a host's site service: ``/etc/vapor/site.toml`` or the file ``VAPOR_SITE_CONFIG`` names.

Read by every process on the host (serve, helper, mover, receive). A missing file means the defaults;
an unknown key is an error, so a misspelt path never falls back silently. Environment variables do not
override the file: a forced command of sshd must not be steered by what a client sends along.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from vapor_desktop.model.errors import InvalidRequest

CONFIG_VARIABLE = "VAPOR_SITE_CONFIG"
DEFAULT_CONFIG = Path("/etc/vapor/site.toml")
GIB = 1024**3

LOOPBACK = ("localhost", "127.0.0.1", "::1")

Port = Annotated[int, Field(ge=0, le=65535)]


def config_path() -> Path:
    """The settings file in use."""
    return Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)


class AlarmTargets(BaseModel):
    """Where the site's own RPO alarm goes besides the journal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    webhook: str | None = None  # an http(s) URL; gets a POST with the event as JSON
    mail_to: tuple[str, ...] = ()
    mail_from: str = "vapor@localhost"
    smtp_host: str = "localhost"
    smtp_port: Port = 25
    smtp_tls: Literal["none", "starttls", "tls"] = "none"  # tls: from the first byte, usually port 465
    smtp_ca_file: Path | None = None  # None: the system's certificate authorities
    smtp_user: str | None = None
    smtp_password_file: Path | None = None  # its first line; read anew for every mail
    every_s: Annotated[float, Field(gt=0)] = 10.0  # how often the replicas' ages are looked at

    @model_validator(mode="after")
    def _password_is_never_in_the_clear(self) -> Self:
        if (self.smtp_user is None) != (self.smtp_password_file is None):
            raise ValueError("smtp_user and smtp_password_file go together")
        if self.smtp_user and self.smtp_tls == "none" and self.smtp_host not in LOOPBACK:
            raise ValueError('a password goes to another host only with smtp_tls = "starttls" or "tls"')
        return self


class SiteSettings(BaseSettings):
    """All settings; the defaults are those of ``docs/protocols.md``."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    name: str = Field(default_factory=socket.gethostname)
    listen: str = "0.0.0.0"  # noqa: S104 - the API is meant for the other machines; token and pin guard it
    port: Port = 7770
    advertised_address: str | None = None  # in the URL that `token new` prints; None: this host's name
    ssh_address: str | None = None  # None: the advertised address
    ssh_port: Port = 22
    user: str = "vapor"
    state_dir: Path = Path("/var/lib/vapor")
    run_dir: Path = Path("/run/vapor")
    replica_roots: Annotated[tuple[Path, ...], Field(min_length=1)] = (Path("/var/lib/libvirt/images/vapor"),)
    replica_reserve_bytes: Annotated[int, Field(ge=0)] = 2 * GIB
    scratch_dir: Path = Path("/var/lib/libvirt/images/.vapor-scratch")
    scratch_reserve_bytes: Annotated[int, Field(ge=0)] = 1 * GIB
    libvirt_uri: str = "qemu:///system"
    helper_socket: Path = Path("/run/vapor/helper.sock")
    bubble_socket: Path = Path("/run/vapor/bubble.sock")  # of the second root helper: the probes of drills
    helper_run_dir: Path = Path("/run/vapor-helper")  # root's own; sockets of offline exports
    helper_image_roots: tuple[Path, ...] = (Path("/var/lib/libvirt/images"),)
    helper_block_devices: tuple[Path, ...] = ()  # LVM volumes and the like that back VMs, by their /dev name
    helper_nvram_roots: tuple[Path, ...] = (Path("/var/lib/libvirt/qemu/nvram"),)
    helper_tpm_root: Path = Path("/var/lib/libvirt/swtpm")
    ssh_host_keys: tuple[Path, ...] = ()  # public key files of this host's sshd; (): /etc/ssh/ssh_host_*_key.pub
    site_command: str = "vapor-site"  # how sshd's forced commands call us; absolute where not in sshd's PATH
    guard_patience_s: Annotated[float, Field(ge=0)] = 60.0  # policy start: how long a silent peer is asked first
    libvirt_hook_dir: Path = Path("/etc/libvirt/hooks/qemu.d")
    alarm: AlarmTargets = AlarmTargets()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the TOML file; nothing else."""
        return init_settings, TomlConfigSettingsSource(settings_cls, toml_file=config_path())

    # --- what follows from state_dir (docs/protocols.md, "On a host") --------------------------------
    @property
    def site_file(self) -> Path:
        """``site.json``: this site's UUID."""
        return self.state_dir / "site.json"

    @property
    def tls_cert(self) -> Path:
        """The API's certificate (PEM)."""
        return self.state_dir / "tls" / "cert.pem"

    @property
    def tls_key(self) -> Path:
        """The API's private key (PEM, 0600)."""
        return self.state_dir / "tls" / "key.pem"

    @property
    def tokens_file(self) -> Path:
        """Hashes of tokens."""
        return self.state_dir / "tokens.json"

    @property
    def enrolments_file(self) -> Path:
        """Consoles and peers."""
        return self.state_dir / "enrolments.json"

    @property
    def audit_log(self) -> Path:
        """JSON lines, one per act of trust."""
        return self.state_dir / "audit.log"

    @property
    def ssh_key(self) -> Path:
        """The private key with which this site reaches its peers (OpenSSH, ed25519, 0600)."""
        return self.state_dir / "ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """Pinned host keys of the peers, by host key alias ``vapor-<site UUID>``."""
        return self.state_dir / "ssh" / "known_hosts"

    @property
    def authorized_keys(self) -> Path:
        """sshd's list for the account; ours are the lines that end in ``console:UUID`` or ``peer:UUID``."""
        return self.state_dir / ".ssh" / "authorized_keys"

    @property
    def leases_dir(self) -> Path:
        """One file per VM."""
        return self.state_dir / "leases"

    @property
    def watches_dir(self) -> Path:
        """What the guardian watches, one file per VM."""
        return self.state_dir / "watches"

    @property
    def guard_dir(self) -> Path:
        """The start guard's records, one file per VM; libvirt's hook reads them."""
        return self.state_dir / "guard"

    @property
    def guard_proof(self) -> Path:
        """Which installed hook was seen to refuse."""
        return self.state_dir / "guard-proof.json"

    @property
    def plans_dir(self) -> Path:
        """Recovery plans that use this site as a target."""
        return self.state_dir / "plans"

    @property
    def drills_dir(self) -> Path:
        """Drills on record, one file each, and their pictures."""
        return self.state_dir / "drills"

    @property
    def digests_dir(self) -> Path:
        """Block-digest tables of the VMs that this site sources."""
        return self.state_dir / "digests"

    @property
    def events_file(self) -> Path:
        """What the guardian did by itself (JSON lines)."""
        return self.state_dir / "guardian-events.jsonl"

    @property
    def reach_address(self) -> str:
        """The address other machines use for the API."""
        return self.advertised_address or socket.getfqdn()

    @property
    def reach_ssh_address(self) -> str:
        """The address other machines use for SSH."""
        return self.ssh_address or self.reach_address


def load_settings() -> SiteSettings:
    """The settings of this host. Raises InvalidRequest naming the file and the key that does not fit."""
    path = config_path()
    try:
        return SiteSettings()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{path} does not fit at {key!r}", why=first["msg"], fix=f"Correct {path}") from error
    except (OSError, ValueError) as error:  # tomllib.TOMLDecodeError is a ValueError
        raise InvalidRequest(f"{path} cannot be read", why=str(error), fix=f"Correct {path}") from error
