"""*Pair site…*: addresses and tokens, then who answers there, then trust step by step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QGroupBox,
    QLabel,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QToolButton,
    QVBoxLayout,
    QWidget,
    QWizard,
    QWizardPage,
)

from vapor_desktop.gui.check_list import CheckList
from vapor_desktop.gui.context import Context
from vapor_desktop.gui.error_box import sentence
from vapor_desktop.gui.forms import child, load_form
from vapor_desktop.gui.theme import Theme
from vapor_desktop.model.errors import InvalidRequest, KeyringLocked, KeyringMissing, VaporError
from vapor_desktop.model.sites import Site
from vapor_desktop.model.states import Severity
from vapor_desktop.model.view import Check, SiteProbe

NEW, NOBODY = "a new site", "nobody yet"


def fingerprint_text(sha256: str) -> str:
    """64 hex digits as ``vapor-site fingerprint`` prints them (``AB:CD:…``), on two lines."""
    pairs = [sha256[n : n + 2].upper() for n in range(0, len(sha256), 2)]
    return ":".join(pairs[:16]) + ":\n" + ":".join(pairs[16:])


class FormPage(QWizardPage):
    """A page that is a form."""

    def __init__(self, form: str, title: str) -> None:
        super().__init__()
        self.setTitle(title)
        self.form = load_form(form, self)
        box = QVBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        box.addWidget(self.form)


class AddressPage(FormPage):
    """URL and token per site; the second may be one that is known already."""

    def __init__(self, context: Context, known: Sequence[Site]) -> None:
        super().__init__("pair_address", "Which sites?")
        self._backend, self._theme = context.backend, context.theme
        self.sites = {site.name: site for site in known}
        self.known = child(self.form, QComboBox, "known")
        self.known.addItems([NEW, *self.sites, NOBODY])
        self._newsite = child(self.form, QWidget, "newsite")
        self.urls = [child(self.form, QLineEdit, f"url{n}") for n in (1, 2)]
        self.tokens = [child(self.form, QLineEdit, f"token{n}") for n in (1, 2)]
        self.hints = [child(self.form, QLabel, f"hint{n}") for n in (1, 2)]
        self._normal: list[str | None] = [None, None]
        for n in (0, 1):
            self.urls[n].textChanged.connect(partial(self._typed, n))
            self.tokens[n].textChanged.connect(partial(self._token_typed, n))
            reveal = child(self.form, QToolButton, f"reveal{n + 1}")
            reveal.toggled.connect(partial(self._reveal, n))
        self.known.currentTextChanged.connect(self._second_changed)
        if known:
            self.known.setCurrentText(known[0].name)

    def wanted(self) -> list[tuple[str, str]]:
        """(API URL, token) of each new site."""
        count = 2 if self.known.currentText() == NEW else 1
        return [(self._normal[n] or "", self.tokens[n].text()) for n in range(count)]

    def partner(self) -> Site | None:
        """The known site to pair the new one with."""
        return self.sites.get(self.known.currentText())

    def isComplete(self) -> bool:
        """All addresses make sense, all tokens are there, and the two differ."""
        wanted = self.wanted()
        return all(url and token for url, token in wanted) and len({url for url, _t in wanted}) == len(wanted)

    def _typed(self, n: int, text: str) -> None:
        self._normal[n] = None
        if not text.strip():
            self._hint(n, "", bad=False)
        else:
            try:
                self._normal[n] = self._backend.normalise_url(text)
                self._hint(n, f"→ {self._normal[n]}", bad=False)
            except InvalidRequest as error:
                self._hint(n, f"{error.what}. {error.fix}", bad=True)
        if self._normal[0] and self._normal[0] == self._normal[1] and self.known.currentText() == NEW:
            self._hint(1, "This is the first site again.", bad=True)
        self.completeChanged.emit()

    def _token_typed(self, n: int, text: str) -> None:
        blank_free = "".join(text.split())
        if blank_free != text:
            self.tokens[n].setText(blank_free)
        self.completeChanged.emit()

    def _hint(self, n: int, text: str, *, bad: bool) -> None:
        colours = self._theme.colours
        self.hints[n].setText(text)
        self.hints[n].setStyleSheet(f"color: {colours.severity[Severity.CRITICAL] if bad else colours.dim}")

    def _reveal(self, n: int, on: bool) -> None:
        mode = QLineEdit.EchoMode.Normal if on else QLineEdit.EchoMode.Password
        self.tokens[n].setEchoMode(mode)

    def _second_changed(self, text: str) -> None:
        self._newsite.setVisible(text == NEW)
        self.completeChanged.emit()


class IdentityCard(QWidget):
    """One site's certificate, and the tick without which no token leaves."""

    def __init__(self, context: Context, url: str, page: QWizardPage) -> None:
        super().__init__(page)
        self._context, self._url, self._page = context, url, page
        self.probe: SiteProbe | None = None
        form = load_form("pair_card", self)
        box = QVBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        box.addWidget(form)
        form_box = form if isinstance(form, QGroupBox) else child(form, QGroupBox, "PairCard")
        form_box.setTitle(url)
        self.state, self.fingerprint = child(form, QLabel, "state"), child(form, QLabel, "fingerprint")
        self.confirm, self.retry = child(form, QCheckBox, "confirm"), child(form, QPushButton, "retry")
        font = self.fingerprint.font()
        font.setFamilies(["DejaVu Sans Mono", "monospace"])
        self.fingerprint.setFont(font)
        self.confirm.toggled.connect(page.completeChanged)
        self.retry.clicked.connect(self.ask)
        self.ask()

    def ask(self) -> None:
        """Look who answers. No secret is sent."""
        self.probe = None
        self.confirm.setChecked(False)
        for widget in (self.confirm, self.retry, self.fingerprint):
            widget.hide()
        self.state.setText("Asking who answers there…")
        url, backend = self._url, self._context.backend
        self._context.bridge.ask(lambda: backend.probe_site(url), self, self._show, self._failed)

    def _show(self, probe: SiteProbe) -> None:
        self.probe = probe
        self.state.setText(f"{probe.host} answers with this certificate (SHA-256):")
        text = fingerprint_text(probe.cert_sha256)
        self.fingerprint.setText(text)
        # A label's accessible name takes the place of its text: without the digits nobody could compare them by ear.
        self.fingerprint.setAccessibleName(f"Certificate fingerprint {text}")
        self.fingerprint.show()
        self.confirm.show()
        self._page.completeChanged.emit()

    def _failed(self, error: VaporError) -> None:
        self.state.setText(sentence(error))
        self.retry.show()
        self._page.completeChanged.emit()


class IdentityPage(FormPage):
    """Fingerprints, to be compared by a person."""

    def __init__(self, context: Context, addresses: AddressPage) -> None:
        super().__init__("pair_identity", "Is it really them?")
        self.setCommitPage(True)
        self.setButtonText(QWizard.WizardButton.CommitButton, "&Pair")
        self._context, self._addresses = context, addresses
        self.cards: list[IdentityCard] = []

    def initializePage(self) -> None:
        """Ask each new site."""
        self.cleanupPage()
        place = child(self.form, QWidget, "cards").layout()
        for url, _token in self._addresses.wanted():
            card = IdentityCard(self._context, url, self)
            self.cards.append(card)
            if place is not None:
                place.addWidget(card)

    def cleanupPage(self) -> None:
        """Forget what was confirmed: going back means asking again."""
        for card in self.cards:
            card.hide()
            card.deleteLater()
        self.cards = []

    def isComplete(self) -> bool:
        """Every certificate was confirmed."""
        return bool(self.cards) and all(card.probe is not None and card.confirm.isChecked() for card in self.cards)


class RunPage(FormPage):
    """Adds the sites and pairs them, live."""

    def __init__(self, context: Context, addresses: AddressPage, identity: IdentityPage) -> None:
        super().__init__("pair_run", "Making trust")
        self._context, self._addresses, self._identity = context, addresses, identity
        self.checks = checks_of(self.form, context.theme)
        self.problem, self.retry = child(self.form, QLabel, "problem"), child(self.form, QPushButton, "retry")
        self.retry.clicked.connect(self._go_on)
        self.added: dict[str, Site] = {}
        self.done = False

    def initializePage(self) -> None:
        """Start at once: the button said so."""
        self._go_on()

    def isComplete(self) -> bool:
        """Everything was made."""
        return self.done

    def _go_on(self) -> None:
        self.problem.setText("")
        self.retry.hide()
        for card, (url, token) in zip(self._identity.cards, self._addresses.wanted(), strict=True):
            if url not in self.added and card.probe is not None:
                self._add(card.probe, token)
                return
        sites = list(self.added.values())
        partner = self._addresses.partner()
        if partner is not None:
            sites.append(partner)
        if len(sites) == 2:
            self._pair(*sites)
        else:
            self._finish(f"{sites[0].name} is known now. Pair it with another site when there is one.")

    def _add(self, probe: SiteProbe, token: str) -> None:
        backend = self._context.backend

        def done(site: Site) -> None:
            self.added[probe.api_url] = site
            self._go_on()

        self._context.bridge.ask_live(
            lambda on_check: backend.add_site(probe, token, on_check),
            self,
            lambda check: self._step(check, probe.host),
            done,
            partial(self._failed, probe.host),
        )

    def _pair(self, a: Site, b: Site) -> None:
        backend, group = self._context.backend, f"{a.name} and {b.name}"
        how = {
            "direct": "They reach each other directly.",
            "relay": "They do not reach each other: the data goes through this console, which must keep running.",
        }
        self._context.bridge.ask_live(
            lambda on_check: backend.pair_sites(a.site_id, b.site_id, on_check),
            self,
            lambda check: self._step(check, group),
            lambda route: self._finish(f"{a.name} and {b.name} are paired. {how.get(route, route)}"),
            partial(self._failed, group),
        )

    def _step(self, check: Check, group: str) -> None:
        self.checks.show_check(check, group)

    def _failed(self, group: str, error: VaporError) -> None:
        for key, check in list(self.checks.checks.items()):
            if key.startswith(f"{group}\0") and check.state == "running":
                stopped = Check(check.key, check.title, "failed", error.what, error.fix, error.code)
                self.checks.show_check(stopped, group)
        text = sentence(error)
        if isinstance(error, KeyringLocked | KeyringMissing):
            text = f"{text}<br>The token is kept nowhere else, so nothing was stored."
        self.problem.setText(text)
        self.retry.show()

    def _finish(self, text: str) -> None:
        self.done = True
        for token in self._addresses.tokens:
            token.clear()  # used up; no reason to keep it in memory
        self.problem.setText(
            f"<b>{escape(text)}</b><br>The console's own tokens are in your keyring; the ones you pasted are used up."
        )
        self._context.bridge.refresh()
        self.completeChanged.emit()


def checks_of(form: QWidget, theme: Theme) -> CheckList:
    """The live list in the scroll area of a form with a *retry* button."""
    area = child(form, QScrollArea, "scroll")
    checks = CheckList(theme, area)
    retry = child(form, QPushButton, "retry")
    retry.hide()
    return checks


class PairWizard(QWizard):
    """The three pages."""

    def __init__(self, context: Context, known: Sequence[Site], parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Pair site")
        self.setWizardStyle(QWizard.WizardStyle.ClassicStyle)
        self.setTitleFormat(Qt.TextFormat.RichText)
        self.setOption(QWizard.WizardOption.NoBackButtonOnLastPage)
        self.address = AddressPage(context, known)
        self.identity = IdentityPage(context, self.address)
        self.run = RunPage(context, self.address, self.identity)
        for page in (self.address, self.identity, self.run):
            page.setTitle(f"<h3>{page.title()}</h3>")
            self.addPage(page)
        self.resize(720, 600)
