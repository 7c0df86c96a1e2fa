"""Pairing and protecting, and everything that can go wrong in them."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import shiboken6
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLineEdit, QWizard

from vapor_desktop.gui.pair_wizard import NEW, NOBODY, PairWizard, fingerprint_text
from vapor_desktop.gui.protect_wizard import ProtectWizard
from vapor_desktop.model.errors import (
    ApiVersionMismatch,
    KeyringLocked,
    KeyringMissing,
    NotAVaporSite,
    SiteUnreachable,
    TokenExpired,
    TokenInvalid,
    TokenRevoked,
)
from vapor_desktop.model.view import Check, ProtectRequest

A, B = "https://192.168.122.129:7770/api/v1", "https://192.168.122.130:7770/api/v1"


@pytest.fixture
def pair(console) -> PairWizard:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.commands.pair()
    wizard: PairWizard = window.commands.dialog
    wizard.address.known.setCurrentText(NEW)
    return wizard


def fill(wizard: PairWizard) -> None:
    wizard.address.urls[0].setText(A)
    wizard.address.urls[1].setText("192.168.122.130")
    wizard.address.tokens[0].setText("vapor1.first")
    wizard.address.tokens[1].setText("vapor1.second")


def identify(console, wizard: PairWizard) -> None:  # type: ignore[no-untyped-def]
    wizard.next()
    console.until(lambda: all(card.probe for card in wizard.identity.cards))


def test_addresses_are_normalised_while_typing(pair: PairWizard) -> None:
    page = pair.address
    page.urls[0].setText("192.168.122.129")
    assert page.hints[0].text() == f"→ {A}"
    page.urls[0].setText(A)
    assert page.hints[0].text() == f"→ {A}"
    page.urls[0].setText("http://x y")
    assert "not the address of a site" in page.hints[0].text()
    assert not page.isComplete()


def test_tokens_lose_blanks_and_are_masked(pair: PairWizard) -> None:
    token = pair.address.tokens[0]
    token.setText(" vapor1.ab\ncd ")
    assert token.text() == "vapor1.abcd"
    assert token.echoMode() is QLineEdit.EchoMode.Password


def test_no_token_leaves_before_the_tick(console, pair: PairWizard) -> None:  # type: ignore[no-untyped-def]
    fill(pair)
    assert pair.address.isComplete()
    identify(console, pair)
    commit = pair.button(QWizard.WizardButton.CommitButton)
    card = pair.identity.cards[0]
    assert card.fingerprint.text() == fingerprint_text("ab12" * 16)
    assert card.fingerprint.text().replace("\n", "") == ":".join(["AB", "12"] * 16)
    assert not commit.isEnabled()
    card.confirm.setChecked(True)
    assert not commit.isEnabled(), "the second one is not confirmed"
    assert console.asked("add_site") == []
    pair.identity.cards[1].confirm.setChecked(True)
    assert commit.isEnabled()
    commit.click()
    console.until(lambda: pair.run.done)
    assert console.asked("add_site") == [(A, "vapor1.first"), (B, "vapor1.second")]
    assert console.asked("pair_sites") == [("id-site-192.168.122.129", "id-site-192.168.122.130")]
    assert "are paired" in pair.run.problem.text()


def test_going_back_forgets_the_tick(console, pair: PairWizard) -> None:  # type: ignore[no-untyped-def]
    fill(pair)
    identify(console, pair)
    for card in pair.identity.cards:
        card.confirm.setChecked(True)
    pair.back()
    console.backend.cert = "cd34" * 16
    identify(console, pair)
    assert not any(card.confirm.isChecked() for card in pair.identity.cards)


@pytest.mark.parametrize(
    "error",
    [
        SiteUnreachable("192.168.122.129 does not answer", why="connection refused"),
        NotAVaporSite("Something else answers at 192.168.122.129:7770"),
    ],
)
def test_a_site_that_does_not_answer(console, pair: PairWizard, error) -> None:  # type: ignore[no-untyped-def]
    console.backend.fail["probe_site"] = error
    fill(pair)
    pair.next()
    card = pair.identity.cards[0]
    console.until(lambda: error.what in card.state.text())
    assert error.fix.split("`")[0] in card.state.text()
    assert not card.confirm.isVisible()
    del console.backend.fail["probe_site"]
    card.retry.click()
    console.until(lambda: card.probe is not None)


@pytest.mark.parametrize(
    "error",
    [
        TokenInvalid("192.168.122.129 refuses the token"),
        TokenExpired("The token expired an hour ago"),
        TokenRevoked("The token was revoked"),
        ApiVersionMismatch("The site speaks version 2"),
        KeyringLocked("The keyring did not open within 10 s"),
        KeyringMissing("There is no keyring"),
    ],
)
def test_each_failure_has_its_sentence_and_retry(console, pair: PairWizard, error) -> None:  # type: ignore[no-untyped-def]
    console.backend.checks["add_site"] = [
        Check("tls", "TLS certificate", "ok"),
        Check("token", "Token", "running"),
    ]
    console.backend.fail["add_site"] = error
    fill(pair)
    identify(console, pair)
    for card in pair.identity.cards:
        card.confirm.setChecked(True)
    pair.next()
    console.until(lambda: error.what in pair.run.problem.text())
    assert not pair.run.isComplete()
    assert pair.run.checks.states() == {"TLS certificate": "ok", "Token": "failed"}
    assert (error.fix.split("`")[0].strip() in pair.run.problem.text()) == bool(error.fix)
    assert ("so nothing was stored" in pair.run.problem.text()) == isinstance(error, KeyringLocked | KeyringMissing)
    console.backend.checks.clear()
    del console.backend.fail["add_site"]
    pair.run.retry.click()
    console.until(lambda: pair.run.done)


def test_retry_does_not_spend_the_first_token_twice(console, pair: PairWizard) -> None:  # type: ignore[no-untyped-def]
    console.backend.fail["pair_sites"] = SiteUnreachable("site-a does not reach site-b")
    fill(pair)
    identify(console, pair)
    for card in pair.identity.cards:
        card.confirm.setChecked(True)
    pair.next()
    console.until(lambda: "does not reach" in pair.run.problem.text())
    del console.backend.fail["pair_sites"]
    pair.run.retry.click()
    console.until(lambda: pair.run.done)
    assert len(console.asked("add_site")) == 2


def test_only_the_target_is_known(console, pair: PairWizard) -> None:  # type: ignore[no-untyped-def]
    pair.address.known.setCurrentText(NOBODY)
    pair.address.urls[0].setText("192.168.122.130")
    pair.address.tokens[0].setText("vapor1.x")
    identify(console, pair)
    pair.identity.cards[0].confirm.setChecked(True)
    pair.next()
    console.until(lambda: pair.run.done)
    assert console.asked("pair_sites") == []


def test_pair_with_a_known_site(console, pair: PairWizard) -> None:  # type: ignore[no-untyped-def]
    pair.address.known.setCurrentText("site-a")
    pair.address.urls[0].setText("host-c")
    pair.address.tokens[0].setText("vapor1.x")
    identify(console, pair)
    pair.identity.cards[0].confirm.setChecked(True)
    pair.next()
    console.until(lambda: pair.run.done)
    assert console.asked("pair_sites") == [("id-site-host-c", "id-site-a")]


def test_closing_the_wizard_while_a_site_hangs(console, pair: PairWizard) -> None:  # type: ignore[no-untyped-def]
    console.backend.hang = threading.Event()
    fill(pair)
    pair.next()
    pair.reject()
    console.qtbot.wait(50)
    console.backend.hang.set()
    console.backend.hang = None
    seen = len(console.asked("snapshot"))
    console.until(lambda: len(console.asked("snapshot")) > seen)
    assert console.asked("add_site") == []


@pytest.fixture
def protect(console) -> ProtectWizard:  # type: ignore[no-untyped-def]
    window = console.shown()
    window.commands.protect()
    wizard: ProtectWizard = window.commands.dialog
    console.until(lambda: wizard.vms.table.rowCount() == 8)
    return wizard


def test_protect_from_end_to_end(console, protect: ProtectWizard) -> None:  # type: ignore[no-untyped-def]
    vms = protect.vms
    assert not vms.isComplete()
    rows = {vms.table.item(n, 0).text(): n for n in range(8)}
    assert rows["scratch"] == 0, "what can be protected comes first"
    for name, why in (("legacy", "shared LUN"), ("web01", "protected already")):
        assert not vms.table.item(rows[name], 0).flags() & Qt.ItemFlag.ItemIsEnabled
        assert why in vms.table.item(rows[name], 3).text()
    vms.table.item(0, 0).setCheckState(Qt.CheckState.Checked)
    assert vms.isComplete()
    protect.next()
    console.until(lambda: bool(protect.target.mapping()))
    assert protect.target.mapping() == {"default": "default"}
    protect.next()
    protect.policy.editor.rpo.set_seconds(45)
    protect.policy.editor.limit.box.setValue(10)
    protect.next()
    console.until(protect.check.isComplete)
    assert protect.check.checks.states() == {"Space at the target": "ok"}
    protect.next()
    command = protect.summary.command.toPlainText()
    expected = "vaporctl protect scratch --from site-a --to site-b --rpo 45s --map default=default --keep 6 6 3"
    assert command == f"{expected} --limit 10485760"
    protect.accept()
    console.until(lambda: bool(console.asked("protect")))
    request: ProtectRequest = console.asked("protect")[0][0]
    assert request.vm_uuids == ("uuid-scratch",)
    assert (request.source_site, request.target_site) == ("id-site-a", "id-site-b")
    assert (request.rpo_target_s, request.bandwidth_bytes_s) == (45, 10 << 20)
    console.until(lambda: not shiboken6.isValid(protect))  # the wizard is gone


def test_a_failed_check_stops_and_can_be_repeated(console, protect: ProtectWizard) -> None:  # type: ignore[no-untyped-def]
    failing = Check(
        "space", "Space at the target", "failed", "1 GiB free, 20 GiB needed", "Free space", "REPLICA-FULL"
    )
    console.backend.checks["preflight"] = [failing, Check("net", "Networks", "warning", "slow")]
    protect.vms.table.item(0, 0).setCheckState(Qt.CheckState.Checked)
    protect.next()
    console.until(protect.target.isComplete)
    protect.next()
    protect.next()
    console.until(lambda: "Mend what failed" in protect.check.problem.text())
    assert not protect.check.isComplete()
    console.backend.checks["preflight"] = [replace(failing, state="ok")]
    protect.check.retry.click()
    console.until(protect.check.isComplete)
    protect.reject()


def test_a_network_without_counterpart_stops(console, protect: ProtectWizard) -> None:  # type: ignore[no-untyped-def]
    console.backend.networks = ("lan0", "dmz")
    protect.vms.table.item(0, 0).setCheckState(Qt.CheckState.Checked)
    protect.next()
    console.until(lambda: protect.target.table.rowCount() == 1)
    assert not protect.target.isComplete()
    protect.target.networks.choices["default"].setCurrentText("dmz")
    assert protect.target.mapping() == {"default": "dmz"}
    assert protect.target.isComplete()
    protect.reject()


def test_a_chosen_network_survives_a_second_look(console, protect: ProtectWizard) -> None:  # type: ignore[no-untyped-def]
    """The networks are asked for once per entry of the page, and going back and forth undoes no choice."""
    console.backend.networks = ("lan0", "dmz")
    protect.vms.table.item(0, 0).setCheckState(Qt.CheckState.Checked)
    protect.next()
    console.until(lambda: protect.target.table.rowCount() == 1)
    protect.target.networks.choices["default"].setCurrentText("dmz")
    seen = len(console.asked("snapshot"))
    console.until(lambda: len(console.asked("snapshot")) > seen + 3)
    assert len(console.asked("site_networks")) == 1
    assert protect.target.mapping() == {"default": "dmz"}
    protect.back()
    protect.next()
    console.until(lambda: protect.target.table.rowCount() == 1)
    assert protect.target.mapping() == {"default": "dmz"}
    protect.reject()


def test_rpo_presets_and_limits(protect: ProtectWizard) -> None:
    rpo = protect.policy.editor.rpo
    for name, seconds in (("15 min", 900), ("1 h", 3600), ("12 h", 43200)):
        rpo.preset.setCurrentText(name)
        rpo.preset.activated.emit(rpo.preset.currentIndex())
        assert rpo.seconds() == seconds
    rpo.set_seconds(5)
    assert rpo.seconds() == 5
    rpo.value.setValue(1)
    assert rpo.seconds() == 5, "not below the least"
    rpo.set_seconds(86400)
    rpo.value.setValue(25)
    assert rpo.seconds() == 86400
    protect.reject()


def test_protecting_needs_two_sites(console) -> None:  # type: ignore[no-untyped-def]
    console.backend.shot = replace(console.backend.shot, sites=(), at=datetime.now(UTC))
    window = console.shown()
    console.until(lambda: not window.snapshot.sites)
    window.commands.protect()
    assert "needs two paired sites" in window.commands.dialog.text()
    window.commands.dialog.close()
