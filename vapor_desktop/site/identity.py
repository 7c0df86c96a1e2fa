"""What makes this host *this site*: its UUID, its TLS certificate and its SSH user key; made once, on first start."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import pwd
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vapor_desktop.model.errors import InvalidRequest, NotFound, Unexpected
from vapor_desktop.site.settings import SiteSettings
from vapor_desktop.site.statefile import locked, make_dir, read_json, write_atomic, write_json

CERTIFICATE_DAYS = 3650  # it is pinned, not chained: a short life would only break pins


def site_id(settings: SiteSettings) -> str:
    """This site's UUID. Raises NotFound before the first start."""
    value = read_json(settings.site_file)
    if value is None:
        raise NotFound("This host is no site yet", fix="Start `vapor-site serve` once")
    try:
        return str(UUID(value["site_id"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Unexpected(f"{settings.site_file} is damaged", why=str(error)) from error


def ensure_identity(settings: SiteSettings) -> str:
    """Make whatever of UUID, certificate and SSH key is missing; idempotent. Returns the UUID."""
    if not settings.state_dir.is_dir():
        make_dir(settings.state_dir)
        _give_to_account(settings)
    for directory in (settings.tls_key.parent, settings.ssh_key.parent, settings.authorized_keys.parent):
        make_dir(directory, 0o700)
    with locked(settings.site_file):
        if read_json(settings.site_file) is None:
            write_json(settings.site_file, {"site_id": str(uuid4()), "made_at": datetime.now(UTC).isoformat()})
        identity = site_id(settings)
        if not settings.tls_key.exists() or not settings.tls_cert.exists():
            _make_certificate(settings, identity)
        if not settings.ssh_key.exists():
            _make_ssh_key(settings.ssh_key, f"vapor-site:{identity}")
    return identity


def certificate_der(settings: SiteSettings) -> bytes:
    """The API's certificate. Raises NotFound before the first start."""
    try:
        pem = settings.tls_cert.read_bytes()
    except FileNotFoundError as error:
        raise NotFound("This site has no TLS certificate yet", fix="Start `vapor-site serve` once") from error
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def certificate_sha256(settings: SiteSettings) -> bytes:
    """What consoles pin: SHA-256 of the DER certificate, 32 bytes."""
    return hashlib.sha256(certificate_der(settings)).digest()


def fingerprint_text(digest: bytes) -> str:
    """``AB:CD:…``, as people compare it."""
    return digest.hex(":").upper()


def user_public_key(settings: SiteSettings) -> str:
    """``ssh-ed25519 AAAA…`` of the key with which this site reaches its peers."""
    try:
        key = serialization.load_ssh_private_key(settings.ssh_key.read_bytes(), password=None)
    except FileNotFoundError as error:
        raise NotFound("This site has no SSH key yet", fix="Start `vapor-site serve` once") from error
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def host_keys(settings: SiteSettings) -> tuple[str, ...]:
    """The public host keys of this host's sshd, "TYPE BASE64" each.

    Raises NotFound when there is none (no sshd here).
    """
    files = settings.ssh_host_keys or tuple(sorted(Path("/etc/ssh").glob("ssh_host_*_key.pub")))
    keys = []
    for path in files:
        try:
            parts = path.read_text().split()
        except OSError as error:
            raise NotFound(f"The SSH host key {path} cannot be read", why=error.strerror or "") from error
        if len(parts) < 2:
            raise InvalidRequest(f"{path} is not an OpenSSH public key")
        keys.append(f"{parts[0]} {parts[1]}")
    if not keys:
        raise NotFound("This host has no SSH host keys", fix="Install and start openssh-server")
    return tuple(keys)


def _make_certificate(settings: SiteSettings, identity: str) -> None:
    """Self-signed leaf, EC P-256; fits OpenSSL's strict verification as its own only trust anchor."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"vapor-site {identity}")])
    now = datetime.now(UTC)
    subject_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))  # the console's clock may be behind
        .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(settings, identity)), critical=False)
        .add_extension(subject_id, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_id), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomic(settings.tls_key, private, 0o600)
    write_atomic(settings.tls_cert, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(settings: SiteSettings, identity: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName(identity)]
    try:
        names.append(x509.IPAddress(ipaddress.ip_address(settings.reach_address)))
    except ValueError:
        names.append(x509.DNSName(settings.reach_address))
    return names


def _give_to_account(settings: SiteSettings) -> None:
    """Root may be the first to run us; the service's account must own what follows."""
    if os.geteuid() != 0:
        return
    try:
        entry = pwd.getpwnam(settings.user)
    except KeyError:
        return  # nobody to give it to: the service runs as whoever starts it
    os.chown(settings.state_dir, entry.pw_uid, entry.pw_gid)


def _make_ssh_key(path: Path, comment: str) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_atomic(path, private, 0o600)
    write_atomic(path.with_suffix(".pub"), public + b" " + comment.encode() + b"\n", 0o644)
