"""The zero-loss statement of a planned migration, and the place of the steps that read all disks again."""

from __future__ import annotations

from typing import Any

import pytest

from vapor_desktop.engine.operations.migration import MIGRATION, zero_loss_statement
from vapor_desktop.engine.operations.steps import Ask

MIB = 1 << 20
DONE: dict[str, dict[str, Any]] = {
    "pre-sync": {"compared_bytes": 1536 * MIB, "compared": {"vdb": 512 * MIB, "vda": 1024 * MIB}, "compare_s": 12.4},
    "final-sync": {"seq": 7, "final_bytes": 3 * MIB},
    "resume": {"downtime_s": 2.71},
}


def test_the_statement_names_each_disk_the_method_and_what_was_not_read_again() -> None:
    said = zero_loss_statement(DONE)
    assert said.startswith("Nothing lost up to recovery point 7: vda 1.0 GiB, vdb 512 MiB were read at the source")
    assert "3.0 MiB) was read from its stopped disks and verified on arrival" in said
    assert "Blocks not written since the comparison were not read again" in said
    assert said.endswith("From off at the source to running at the target: 2.7 s")


def test_with_everything_read_again_nothing_is_left_out() -> None:
    said = zero_loss_statement({**DONE, "reread": {"reread": {"vda": 1024 * MIB, "vdb": 512 * MIB}, "reread_s": 9.0}})
    assert "Read again from the stopped disks, vda 1.0 GiB, vdb 512 MiB were equal on both sides" in said
    assert "not read again" not in said


def test_a_migration_that_an_older_program_began_ends_too() -> None:
    old = {"pre-sync": {"compared_bytes": 5 * MIB}, "final-sync": {"seq": 7, "final_bytes": 0}, "resume": {}}
    assert zero_loss_statement(old).startswith("Nothing lost up to recovery point 7: 5.0 MiB were read")


def test_the_price_is_asked_before_the_guest_is_off_and_the_reading_is_before_the_target_owns_it() -> None:
    names = [s.name for s in MIGRATION.steps_for({"reread": True})]
    assert [n for n in names if n not in {s.name for s in MIGRATION.steps}] == ["reread-price", "reread"]
    assert names.index("pre-sync") < names.index("reread-price") < names.index("shut-down")
    assert names.index("final-sync") < names.index("reread") < names.index("take-over")
    assert [s.name for s in MIGRATION.steps_for({"shutdown_s": 5})] == [s.name for s in MIGRATION.steps]


class Context:
    """What the price looks at."""

    def __init__(self, answers: dict[str, str], **args: object) -> None:
        self.done, self.answers, self.notes = DONE, answers, list[str]()
        self.operation = type("Asked", (), {"args": {"reread": True, **args}})
        self.protection = type("Protected", (), {"vm_name": "web"})

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(
    ("answers", "args", "go"),
    [
        ({}, {}, None),
        ({}, {"reread_within_s": 12.0}, None),
        ({}, {"reread_within_s": 13}, True),
        ({"reread-price": "read"}, {}, True),
        ({"reread-price": "skip"}, {"reread_within_s": 13}, False),
    ],
)
def test_who_decides_on_the_price(answers: dict[str, str], args: dict[str, object], go: bool | None) -> None:
    [price] = [s for s in MIGRATION.steps_for({"reread": True}) if s.name == "reread-price"]
    context = Context(answers, **args)
    if go is None:
        with pytest.raises(Ask, match=r"about 12 s longer: 1\.5 GiB") as asked:
            price.act(context)  # type: ignore[arg-type]
        assert [c.key for c in asked.value.choices] == ["read", "skip", "undo"]
    else:
        assert price.act(context)["go"] is go  # type: ignore[arg-type]
