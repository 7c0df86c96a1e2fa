"""One pinned HTTPS connection pool to one site, and its errors as ours."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from vapor_desktop.model.errors import (
    ApiVersionMismatch,
    InvalidRequest,
    NotAVaporSite,
    SiteUnreachable,
    Unexpected,
    VaporError,
    from_wire,
)
from vapor_desktop.transport.causes import connect_error, why

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
LONG_READ_TIMEOUT_S = 900.0  # verbs that move data at the site: a merge of a large point
_X509_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME [openssl x509_vfy.h]


def pinned_context(cert_pem: str) -> ssl.SSLContext:
    """Trusts exactly this certificate: the leaf as the only authority [facts/desktop 2, row Certificates].

    Names and dates do not matter: the certificate itself is what was agreed on. TLS 1.2 or newer.
    Raises InvalidRequest when it is no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=cert_pem)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidRequest("The site's pinned certificate cannot be read", fix="Pair the site again") from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags |= ssl.VerifyFlags(_X509_NO_CHECK_TIME)
    return context


class PinnedHttp:
    """JSON requests to one site. Thread-safe; connections stay alive between calls.

    Raises SiteUnreachable, CertificateChanged (before anything is sent), NotAVaporSite, ApiVersionMismatch,
    and whatever error the site answered with.
    """

    def __init__(self, api_url: str, cert_pem: str) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._closed = False
        self._url = httpx2.URL(api_url)
        self.place = f"{self._url.netloc.decode()}"
        self._client = httpx2.Client(
            base_url=api_url,
            verify=pinned_context(cert_pem),
            trust_env=False,  # no proxy out of the environment, no netrc
            follow_redirects=False,
            timeout=httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=60),
        )

    def request(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: Any = None,
        params: dict[str, str] | None = None,
        long: bool = False,
        read_s: float | None = None,
    ) -> Any:
        """The JSON answer (None for 204). ``body``: JSON-ready values."""
        headers = {"Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        read_s = read_s or (LONG_READ_TIMEOUT_S if long else READ_TIMEOUT_S)
        options: dict[str, Any] = {
            "headers": headers,
            "params": params,
            "timeout": httpx2.Timeout(read_s, connect=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S),
        }
        if body is not None:
            options["json"] = body
        with self._open():
            return self._answer(self._send(method, path, options, read_s))

    def close(self) -> None:
        """No new requests; the connections are closed with the last one that is running."""
        with self._lock:
            self._closed = True
            idle = not self._running
        if idle:
            self._client.close()

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Counts a request. Raises SiteUnreachable after ``close``: whoever asked has an old connection."""
        with self._lock:
            if self._closed:
                raise SiteUnreachable(
                    f"The connection to {self.place} was given up meanwhile", why="the site was lost or edited",
                    fix="The next try opens a new one",
                )  # fmt: skip
            self._running += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1
            last = self._closed and not self._running
        if last:
            self._client.close()

    def _send(self, method: str, path: str, options: dict[str, Any], read_s: float) -> httpx2.Response:
        for again in (method == "GET", False):
            try:
                return self._client.request(method, path, **options)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                raise connect_error(self.place, error) from error
            except httpx2.ReadTimeout as error:
                raise SiteUnreachable(
                    f"{self.place} does not answer", why=f"no answer within {read_s:g} s"
                ) from error
            except httpx2.TimeoutException as error:
                raise SiteUnreachable(f"{self.place} cannot be reached", why="the connection timed out") from error
            except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
                if again:
                    continue  # an idle connection that the site was closing at that moment; reading twice is safe
                raise SiteUnreachable(f"The connection to {self.place} broke off", why=why(error)) from error
            except httpx2.HTTPError as error:
                raise Unexpected(f"The request to {self.place} failed", why=type(error).__name__) from error
        raise Unexpected(f"The request to {self.place} was not made")  # the loop above always ends in one of its arms

    def _answer(self, response: httpx2.Response) -> Any:
        if response.is_success:
            return self._json(response) if response.content else None
        raise self._refusal(response)

    def _json(self, response: httpx2.Response) -> Any:
        try:
            return response.json()
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise NotAVaporSite(f"What answers at {self.place} is not a Vapor site", why="no JSON") from error

    def _refusal(self, response: httpx2.Response) -> VaporError:
        kind = response.headers.get("content-type", "").partition(";")[0].strip()
        if kind == "application/problem+json":
            body = self._json(response)
            if isinstance(body, dict) and "code" in body:
                return from_wire(body)
        if response.status_code in (404, 405):
            return ApiVersionMismatch(
                f"The site at {self.place} does not know this request", status=response.status_code
            )
        return NotAVaporSite(
            f"What answers at {self.place} does not answer like a Vapor site",
            why=f"HTTP status {response.status_code}",
        )
