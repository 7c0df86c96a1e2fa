"""The user's guide: every error code is explained, every link leads somewhere, every command in it exists."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import vapor_desktop
from vapor_desktop.cli.main import vaporctl
from vapor_desktop.guide import html
from vapor_desktop.guide.pages import NAMES, explanation, explanations, folder, page, pages
from vapor_desktop.model.errors import Fate, NotFound, VaporError
from vapor_desktop.site.cli import cli as vapor_site

# Verbs that `vapor-site` knows before click does: the service, and what sshd's forced commands run.
BARE = {"serve", "helper", "bubble", "mover"}
FATES = {Fate.RETRY: "*Tried again by itself.*", Fate.OPERATOR: "*A person is needed.*", Fate.BUG: "*Our bug.*"}


def tree(cls: type[VaporError]) -> list[type[VaporError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in tree(sub))]


def test_every_code_is_explained_and_nothing_else_is() -> None:
    known = {error.code: error for error in tree(VaporError) if error.__module__ == VaporError.__module__}
    assert set(explanations()) == set(known)
    for code, text in explanations().items():
        assert text.startswith(FATES[known[code].fate]), code
        assert len(text) > 60, code


def test_no_page_of_the_folder_is_left_out() -> None:
    assert {path.stem for path in folder().glob("*.md")} == set(NAMES)
    assert len({p.title for p in pages()}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_pages_and_headings(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page(name).text):
        path, _, heading = target.partition("#")
        assert path.removesuffix(".md") in NAMES or (folder() / path).is_file(), target
        if heading:
            assert f'id="{heading}"' in html.body(page(path.removesuffix(".md"))), target


def commands_in(text: str) -> list[list[str]]:
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    found = [*lines, *re.findall(r"`([^`\n]+)`", text)]
    return [words for words in map(shlex.split, found) if {"vaporctl", "vapor-site"} & set(words[:4])]


def missing(words: list[str]) -> str | None:
    """What of a command line the program does not know."""
    start = next(n for n, word in enumerate(words) if word in ("vaporctl", "vapor-site"))
    command: click.Command = vaporctl if words[start] == "vaporctl" else vapor_site
    rest = words[start + 1 :]
    if words[start] == "vapor-site" and rest and rest[0] in BARE:
        return None
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            return rest[0]
        command, rest = found, rest[1:]
    options = {"--help", *(name for param in command.params for name in param.opts)}
    return next((word for word in rest if word.startswith("--") and word not in options), None)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_in_it_exists_with_its_options(name: str) -> None:
    assert [words for words in commands_in(page(name).text) if missing(words)] == []


def words_in_the_program() -> list[tuple[str, list[str]]]:
    """Every command that a text of the program names in backticks, and where."""
    found = []
    for path in sorted(Path(vapor_desktop.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += [(path.name, words) for words in commands_in(node.value.replace("``", ""))]
    return found


def test_every_command_that_the_program_advises_exists() -> None:
    advised = words_in_the_program()
    assert len(advised) > 20
    assert [(where, words) for where, words in advised if missing(words)] == []


def test_that_proof_can_fail() -> None:
    assert missing(["vaporctl", "explode"]) == "explode"
    assert missing(["vaporctl", "failover", "VM", "--now"]) == "--now"
    assert len(commands_in(page("emergency").text)) >= 1


def test_the_shell_explains_a_code() -> None:
    run = CliRunner().invoke(vaporctl, ["explain", "lease-held"])
    assert run.exit_code == 0
    assert "LEASE-HELD" in run.output
    assert "Tried again by itself" in run.output
    listed = CliRunner().invoke(vaporctl, ["explain"]).output.split()
    assert listed == list(explanations())
    told = CliRunner().invoke(vaporctl, ["explain", "KEYRING-LOCKED", "--json"])
    assert json.loads(told.output) == {"KEYRING-LOCKED": explanation("KEYRING-LOCKED")}


def test_an_unknown_code_or_page_is_said_so() -> None:
    with pytest.raises(NotFound, match="NO-SUCH"):
        explanation("NO-SUCH")
    with pytest.raises(NotFound, match="nowhere"):
        page("nowhere")


def test_built_pages_link_to_each_other(tmp_path: Path) -> None:
    written = html.write(tmp_path / "guide")
    assert {path.name for path in written} == {*(f"{name}.html" for name in NAMES), "index.html"}
    for path in written:
        text = path.read_text()
        assert "```" not in text
        for target in re.findall(r'href="([^"]+)"', text):
            file, _, heading = target.partition("#")
            assert not file or (path.parent / file).is_file(), target
            if heading:
                assert f'id="{heading}"' in ((path.parent / file) if file else path).read_text(), target
