"""The runbook in the window: asked of the target when somebody looks, and saved where a person wants."""

from __future__ import annotations

from pathlib import Path

from vapor_desktop.model.errors import SiteUnreachable


def opened(console):  # type: ignore[no-untyped-def]
    window = console.shown()
    window.open_vm("p-db01")
    page = window.detail
    assert console.asked("runbook") == [], "nobody looks yet"
    page.tabs.setCurrentWidget(page.runbook)
    return page.runbook


def test_it_is_read_when_it_is_looked_at_and_saved(console, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tab = opened(console)
    console.until(lambda: "virsh start p-db01" in tab.text.toPlainText())
    assert console.asked("runbook") == [("p-db01", None)]
    assert "/r/u/runbook/runbook.txt" in tab.state.text()
    target = tmp_path / "db01.txt"
    tab.save_to(target)
    console.until(lambda: target.exists() and target.read_text().endswith("virsh start p-db01\n"))
    assert "MainThread" not in console.backend.threads


def test_a_target_that_does_not_answer_is_said(console) -> None:  # type: ignore[no-untyped-def]
    console.backend.fail["runbook"] = SiteUnreachable("site-b does not answer")
    tab = opened(console)
    console.until(lambda: "site-b does not answer" in tab.state.text())
    assert not tab.save.isEnabled()
