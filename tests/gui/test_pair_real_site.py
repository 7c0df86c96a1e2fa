"""The pairing wizard against two real site services on loopback, with real sshd and forced commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit"))

from memory_secrets import MemorySecrets
from test_transport_real_site import CONSOLE, Host, host

from vapor_desktop.app import SystemClock
from vapor_desktop.engine.console import EngineBackend
from vapor_desktop.engine.ports import Hypervisor
from vapor_desktop.engine.runtime import Engine, new_identity
from vapor_desktop.gui.bridge import Bridge
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.errands import Errands
from vapor_desktop.gui.layout_store import Memory
from vapor_desktop.gui.pair_wizard import PairWizard, fingerprint_text
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.errors import HypervisorUnreachable
from vapor_desktop.store import SqlRepository
from vapor_desktop.store.durable import DbosOperations
from vapor_desktop.transport.gateway import Gateway
from vapor_desktop.transport.pairing import SitePairing


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    root = tmp_path_factory.mktemp("s")
    with host(root / "a", "alpha") as alpha, host(root / "b", "beta") as beta:
        yield alpha, beta


@pytest.fixture
def secrets() -> MemorySecrets:
    return MemorySecrets()


@pytest.fixture
def backend(tmp_path: Path, secrets: MemorySecrets) -> Iterator[EngineBackend]:
    def no_hypervisor(uri: str) -> Hypervisor:
        raise HypervisorUnreachable(f"No libvirt in this test: {uri}")

    repository = SqlRepository(f"sqlite:///{tmp_path}/vapor.db")
    gateway = Gateway(repository, secrets, no_hypervisor)
    clock = SystemClock()
    engine = Engine(
        repository, gateway, clock, new_identity("console", clock), DbosOperations(f"sqlite:///{tmp_path}/vapor.db")
    )
    yield EngineBackend(engine, SitePairing(secrets, CONSOLE, "desk"))
    gateway.close()
    repository.close()


@pytest.fixture
def wizard(qtbot: QtBot, theme: Theme, memory: Memory, backend: EngineBackend) -> Iterator[PairWizard]:
    bridge = Bridge(backend)
    bridge.start()
    parent = QWidget()
    qtbot.addWidget(parent)
    made = PairWizard(Context(bridge, Errands(bridge), theme, memory), [], parent)
    made.show()
    yield made
    bridge.close(wait_s=20)


def go(qtbot: QtBot, wizard: PairWizard, first: tuple[str, str], second: tuple[str, str]) -> None:
    """Addresses, tokens, both certificates confirmed, and on."""
    for n, (url, token) in enumerate((first, second)):
        wizard.address.urls[n].setText(url)
        wizard.address.tokens[n].setText(token)
    wizard.next()
    qtbot.waitUntil(lambda: all(card.probe for card in wizard.identity.cards), timeout=30_000)
    for card in wizard.identity.cards:
        card.confirm.setChecked(True)
    wizard.next()


def ended(wizard: PairWizard) -> bool:
    return bool(wizard.run.problem.text())


def test_two_real_sites(
    qtbot: QtBot, wizard: PairWizard, hosts: tuple[Host, Host], backend: EngineBackend, secrets: MemorySecrets
) -> None:
    alpha, beta = hosts
    tokens = [alpha.site.one_time(), beta.site.one_time()]
    bare = f"127.0.0.1:{beta.site.port}"
    go(qtbot, wizard, (alpha.site.url, tokens[0]), (bare, tokens[1]))
    assert wizard.identity.cards[0].fingerprint.text().replace("\n", "") in alpha.site.admin("fingerprint")
    qtbot.waitUntil(lambda: ended(wizard), timeout=60_000)
    assert wizard.run.done, wizard.run.problem.text()
    assert "alpha and beta are paired. They reach each other directly." in wizard.run.problem.text()
    states = wizard.run.checks.states()
    # There is no libvirt behind these two services: said, with its fix, and the pairing stands all the same.
    bad = {title: state for title, state in states.items() if state != "ok"}
    assert bad["This console reaches its libvirt over SSH"] == "failed"
    assert set(bad) <= {
        "This console reaches its libvirt over SSH",
        "vapor-site doctor finds nothing there",
        "libvirt answers there",
    }
    assert states["It has room for replicas"] == states["Its clock is right"] == "ok"
    snapshot = backend.snapshot()
    assert {s.site.name for s in snapshot.sites} == {"alpha", "beta"}
    assert [route for _a, _b, route in snapshot.pairs] == ["direct"]
    assert not set(tokens) & set(secrets.kept.values()), "the console keeps its own tokens, not the pasted ones"
    assert wizard.address.tokens[0].text() == ""


def test_a_token_of_the_other_site(qtbot: QtBot, wizard: PairWizard, hosts: tuple[Host, Host]) -> None:
    alpha, beta = hosts
    go(qtbot, wizard, (alpha.site.url, beta.site.one_time()), (beta.site.url, beta.site.one_time()))
    qtbot.waitUntil(lambda: ended(wizard), timeout=30_000)
    assert "CERTIFICATE" in _codes(wizard) or "certificate" in wizard.run.problem.text().lower()
    assert not wizard.run.done


def test_a_damaged_and_an_expired_token(qtbot: QtBot, wizard: PairWizard, hosts: tuple[Host, Host]) -> None:
    alpha, beta = hosts
    go(qtbot, wizard, (alpha.site.url, "vapor1.nonsense"), (beta.site.url, beta.site.one_time()))
    qtbot.waitUntil(lambda: ended(wizard), timeout=30_000)
    assert "damaged or not complete" in wizard.run.problem.text()
    assert "vapor-site token new" in wizard.run.problem.text()


def test_a_locked_keyring_keeps_nothing(
    qtbot: QtBot, wizard: PairWizard, hosts: tuple[Host, Host], secrets: MemorySecrets, backend: EngineBackend
) -> None:
    alpha, beta = hosts
    secrets.locked = True
    go(qtbot, wizard, (alpha.site.url, alpha.site.one_time()), (beta.site.url, beta.site.one_time()))
    qtbot.waitUntil(lambda: ended(wizard), timeout=30_000)
    assert "The keyring is locked" in wizard.run.problem.text()
    assert "Unlock the keyring" in wizard.run.problem.text()
    secrets.locked = False
    assert secrets.kept == {}
    assert backend.snapshot().sites == ()


def test_nobody_listens_there(qtbot: QtBot, wizard: PairWizard, hosts: tuple[Host, Host]) -> None:
    wizard.address.urls[0].setText("127.0.0.1:9")
    wizard.address.tokens[0].setText("vapor1.x")
    wizard.address.urls[1].setText(hosts[1].site.url)
    wizard.address.tokens[1].setText("vapor1.y")
    wizard.next()
    qtbot.waitUntil(lambda: wizard.identity.cards[1].probe is not None, timeout=30_000)
    card = wizard.identity.cards[0]
    qtbot.waitUntil(card.retry.isVisible, timeout=30_000)
    assert "firewall" in card.state.text()
    assert not wizard.identity.isComplete()
    assert wizard.identity.cards[1].fingerprint.text() == fingerprint_text(_sha(hosts[1]))


def _sha(one: Host) -> str:
    import hashlib
    import ssl

    pem = (one.site.state / "tls" / "cert.pem").read_text()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def _codes(wizard: PairWizard) -> set[Any]:
    return {check.code for check in wizard.run.checks.checks.values()}
