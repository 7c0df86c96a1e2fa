"""Trust, in the order it is made (DESIGN §2): look, compare, then tell; ``engine.ports.Pairing``."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import socket
import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from vapor_desktop.engine.ports import Secrets
from vapor_desktop.model.errors import (
    ApiVersionMismatch,
    CertificateChanged,
    NotAVaporSite,
    SiteUnreachable,
    TokenExpired,
    TokenInvalid,
    TokenRevoked,
    VaporError,
)
from vapor_desktop.model.sites import Site
from vapor_desktop.model.view import Check, SiteProbe
from vapor_desktop.model.wire import (
    API_VERSION,
    ConsoleToken,
    EnrolConsole,
    EnrolPeer,
    SshInfo,
    TokenExchange,
)
from vapor_desktop.transport.address import host_of, normalise_url
from vapor_desktop.transport.api_client import HttpSiteApi, parsed
from vapor_desktop.transport.causes import connect_error
from vapor_desktop.transport.names import site_token
from vapor_desktop.transport.pinned import CONNECT_TIMEOUT_S, PinnedHttp
from vapor_desktop.transport.ssh_key import console_public_key

_KEYS = uuid.UUID("6f0c3b1e-7a52-5d0e-9d5b-2f1d6c1f7d35")  # the namespace of ids that are made of keys
TOKEN_PREFIX = "vapor1."  # noqa: S105 - how every token begins, not one
_TOKEN_BYTES = 32 + 24  # SHA-256 of the certificate, then the secret [docs/protocols.md]
OnCheck = Callable[[Check], None]


def token_pin(token: str) -> bytes:
    """The certificate's SHA-256 (32 bytes) that the token's text carries. Raises TokenInvalid."""
    text = "".join(token.split())  # a terminal or a mail may have broken the line
    try:
        raw = base64.b64decode(text.removeprefix(TOKEN_PREFIX), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):  # from None: the token is in the traceback's values, not in its text
        raw = b""
    if not text.startswith(TOKEN_PREFIX) or len(raw) != _TOKEN_BYTES:
        raise TokenInvalid("The token's text is damaged or not complete")
    return raw[:32]


def probe(url: str) -> SiteProbe:
    """The first look: who answers there, with which certificate. Sends nothing secret.

    Raises InvalidRequest, SiteUnreachable, NotAVaporSite, ApiVersionMismatch.
    """
    api_url = normalise_url(url)
    host, port = host_of(api_url)
    der = _certificate_at(host, port)
    pem = ssl.DER_cert_to_PEM_cert(der)
    http = PinnedHttp(api_url, pem)
    try:
        hello = http.request("GET", "/hello")
    except ApiVersionMismatch as error:  # no such path: somebody else's server
        raise NotAVaporSite(f"What answers at {http.place} is not a Vapor site") from error
    finally:
        http.close()
    if not isinstance(hello, dict) or hello.get("product") != "vapor-site":
        raise NotAVaporSite(f"What answers at {http.place} is not a Vapor site")
    if hello.get("api_version") != API_VERSION:
        raise ApiVersionMismatch(
            f"The site at {http.place} speaks version {hello.get('api_version')} of the API, "
            f"this program version {API_VERSION}"
        )
    return SiteProbe(api_url=api_url, host=host, cert_pem=pem, cert_sha256=hashlib.sha256(der).hexdigest())


def _certificate_at(host: str, port: int) -> bytes:
    """The certificate shown there (DER), believed by nobody yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is compared with the token's pin before anything is sent
    try:
        with (
            socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            der = secured.getpeercert(binary_form=True)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError) as error:
        # It accepted the connection and hung up on a TLS greeting: something is there, but not one of ours.
        raise NotAVaporSite(
            f"What answers at {host}:{port} is not a Vapor site", why="it does not speak TLS"
        ) from error
    except OSError as error:
        raise connect_error(f"{host}:{port}", error) from error
    if not der:
        raise NotAVaporSite(f"What answers at {host}:{port} is not a Vapor site", why="it shows no certificate")
    return der


def pair_site(
    seen: SiteProbe,
    token: str,
    console_id: str,
    console_name: str,
    public_key: str,
    on_check: OnCheck = lambda check: None,
) -> tuple[Site, str]:
    """(site, the console's own token): exchange, identity, SSH host keys, enrolment.

    The token leaves only after the certificate it names was compared with the one seen. When a later step
    fails, the token received in exchange is revoked again. Raises TokenInvalid, CertificateChanged and what
    the site answers.
    """
    with _step(on_check, "pin", "The certificate is the one the token was made for"):
        _compare_pin(seen, token)
    http = PinnedHttp(seen.api_url, seen.cert_pem)
    try:
        with _step(on_check, "token", "The one-time token is accepted"):
            request = TokenExchange(console_name=console_name, console_id=console_id)
            one_time = "".join(token.split())
            body = http.request("POST", "/tokens/exchange", token=one_time, body=request.model_dump(mode="json"))
            granted: ConsoleToken = parsed(ConsoleToken, body, http.place)
    finally:
        http.close()
    api = HttpSiteApi(seen.api_url, seen.cert_pem, lambda: granted.token)
    try:
        return _introduce(api, seen, granted, EnrolConsole(
            console_id=console_id, console_name=console_name, public_key=public_key
        ), on_check), granted.token  # fmt: skip
    except VaporError:
        _give_back(api)
        raise
    finally:
        api.close()


def _compare_pin(seen: SiteProbe, token: str) -> None:
    shown = hashlib.sha256(ssl.PEM_cert_to_DER_cert(seen.cert_pem)).digest()
    if not hmac.compare_digest(token_pin(token), shown):
        raise CertificateChanged(
            f"The certificate at {seen.host} is not the one this token was made for",
            why="the token is of another host, or somebody is in between; the token was not sent",
            fix="Compare the address with the one `vapor-site token new` printed, on that very host",
        )


def _introduce(
    api: HttpSiteApi, seen: SiteProbe, granted: ConsoleToken, console: EnrolConsole, on_check: OnCheck
) -> Site:
    with _step(on_check, "identity", "The site says who it is"):
        identity, _, _ = api.identity()
    with _step(on_check, "ssh", "Its SSH host keys are known"):
        ssh = api.ssh_info()
    with _step(on_check, "enrol", "This console's SSH key is known there"):
        api.enrol_console(console)
    return Site(
        site_id=identity.site_id,
        name=identity.name,
        api_url=seen.api_url,
        cert_pem=seen.cert_pem,
        cert_sha256=seen.cert_sha256,
        ssh_host=seen.host,
        ssh_port=ssh.port,
        ssh_user=ssh.user,
        ssh_host_keys=ssh.host_keys,
        replica_root=identity.replica_root,
        paired_at=datetime.now(UTC),
        token_id=granted.token_id,
        token_expires_at=granted.expires_at,
    )


def _give_back(api: HttpSiteApi) -> None:
    """A token nobody will use. If the site cannot be told, its administrator still sees and can revoke it."""
    try:
        api.revoke_own_token()
    except (SiteUnreachable, TokenInvalid, TokenExpired, TokenRevoked):
        return


def _give_token_back(site: Site, token: str) -> None:
    api = HttpSiteApi(site.api_url, site.cert_pem, lambda: token)
    try:
        _give_back(api)
    finally:
        api.close()


def pair_sites(
    api_a: HttpSiteApi, site_a: Site, api_b: HttpSiteApi, site_b: Site, on_check: OnCheck = lambda check: None
) -> str:
    """Let A and B trust each other, both ways; "direct" if each reaches the other over SSH, else "relay".

    When the second enrolment fails the first is taken back. Raises what the sites answer.
    """
    with _step(on_check, "keys", "Both sites tell their SSH keys"):
        ssh_a, ssh_b = api_a.ssh_info(), api_b.ssh_info()
    with _step(on_check, "enrol-a", f"{site_a.name} knows {site_b.name}"):
        api_a.enrol_peer(_peer(site_b, ssh_b))
    try:
        with _step(on_check, "enrol-b", f"{site_b.name} knows {site_a.name}"):
            api_b.enrol_peer(_peer(site_a, ssh_a))
    except VaporError as error:
        try:
            api_a.remove_peer(site_b.site_id)
        except VaporError as second:
            error.add_note(f"{site_a.name} still knows {site_b.name}: {second}")
        raise
    there = _reaches(api_a, site_a, site_b, on_check)
    back = _reaches(api_b, site_b, site_a, on_check)
    return "direct" if there and back else "relay"


def _peer(site: Site, ssh: SshInfo) -> EnrolPeer:
    """The other site, under the address by which the console reaches it: the best guess for its peer too."""
    return EnrolPeer(
        site_id=site.site_id,
        name=site.name,
        public_key=ssh.user_key,
        host_keys=ssh.host_keys,
        address=site.ssh_host,
        port=ssh.port,
        user=ssh.user,
    )


def _reaches(api: HttpSiteApi, here: Site, there: Site, on_check: OnCheck) -> bool:
    key, title = f"reach-{here.site_id}", f"{here.name} reaches {there.name} over SSH"
    on_check(Check(key, title, "running"))
    answer = api.check_peer(there.site_id)
    if answer.reachable:
        took = "" if answer.latency_s is None else f"{answer.latency_s * 1000:.0f} ms"
        on_check(Check(key, title, "ok", took))
        return True
    error = answer.error or {}
    text = str(error.get("what", "It does not"))
    on_check(Check(key, title, "warning", text, str(error.get("fix", "")), str(error.get("code", ""))))
    return False


@contextmanager
def _step(on_check: OnCheck, key: str, title: str) -> Iterator[None]:
    """Reports running, then ok or failed; the error goes on."""
    on_check(Check(key, title, "running"))
    try:
        yield
    except VaporError as error:
        text = f"{error.what}: {error.why}" if error.why else error.what
        on_check(Check(key, title, "failed", text, error.fix, error.code))
        raise
    on_check(Check(key, title, "ok"))


class SitePairing:
    """``engine.ports.Pairing``. Tokens and the console's SSH key go to ``secrets`` and nowhere else.

    ``console_id`` None: the UUID that the SSH key's public half makes.
    """

    def __init__(self, secrets: Secrets, console_id: str | None, console_name: str) -> None:
        self._secrets = secrets
        self._console_id = console_id
        self._console_name = console_name

    def normalise_url(self, text: str) -> str:
        """See ``address.normalise_url``."""
        return normalise_url(text)

    def probe(self, url: str) -> SiteProbe:
        """See ``probe``."""
        return probe(url)

    def add_site(self, probe: SiteProbe, token: str, on_check: OnCheck) -> Site:
        """``pair_site``, its token put into the keyring; the caller saves the site.

        The keyring is opened first: a one-time token must not be spent when its fruit cannot be kept.
        """
        with _step(on_check, "keyring", "The keyring is open"):
            public_key = console_public_key(self._secrets)
        console_id = self._console_id or str(uuid.uuid5(_KEYS, public_key))
        site, own = pair_site(probe, token, console_id, self._console_name, public_key, on_check)
        name = site_token(site.site_id)
        with _step(on_check, "keep", "This console's own token is in the keyring"):
            try:
                before = self._secrets.get(name)
                self._secrets.put(name, own)
            except VaporError:
                _give_token_back(site, own)
                raise
        if before is not None:
            _give_token_back(site, before)  # paired again: its last token is nobody's now
        return site

    def pair_sites(self, a: Site, b: Site, on_check: OnCheck) -> str:
        """See ``pair_sites``; the caller saves the pair and its route."""
        api_a, api_b = self._api(a), self._api(b)
        try:
            return pair_sites(api_a, a, api_b, b, on_check)
        finally:
            api_a.close()
            api_b.close()

    def forget_site(self, site: Site) -> None:
        """Revoke this console's token there, then forget it here, whether the site could be told or not.

        Raises what kept the site from being told: then its administrator must revoke ``site.token_id``.
        """
        api = self._api(site)
        try:
            api.revoke_own_token()
        finally:
            api.close()
            self._secrets.forget(site_token(site.site_id))

    def _api(self, site: Site) -> HttpSiteApi:
        return HttpSiteApi(site.api_url, site.cert_pem, lambda: own_token(self._secrets, site))


def own_token(secrets: Secrets, site: Site) -> str:
    """This console's token for the site. Raises TokenInvalid when the keyring has none."""
    token = secrets.get(site_token(site.site_id))
    if token is None:
        raise TokenInvalid(
            f"The keyring holds no token for {site.name}",
            fix="Make a new token on the host with `vapor-site token new` and pair the site again",
        )
    return token
