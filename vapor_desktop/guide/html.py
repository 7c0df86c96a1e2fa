"""The guide as HTML: for the window's browser, and as a folder of pages for a web server or a stick."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from vapor_desktop.guide.pages import Page, folder, pages

IMAGES = "images"
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --dim: #888; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0; display: flex; }
nav { width: 15rem; padding: 1.5rem 1rem; border-right: 1px solid var(--line); min-height: 100vh; }
nav a { display: block; padding: .25rem .5rem; text-decoration: none; color: inherit; border-radius: .3rem; }
nav a[aria-current] { background: #0072b2; color: #fff; }
main { max-width: 48rem; padding: 1.5rem 2.5rem; }
table { border-collapse: collapse; }
td, th { border: 1px solid var(--line); padding: .35rem .6rem; text-align: left; }
code { font-family: ui-monospace, monospace; font-size: .92em; }
pre { padding: .8rem 1rem; border: 1px solid var(--line); border-radius: .4rem; overflow: auto; }
img { max-width: 100%; border: 1px solid var(--line); border-radius: .3rem; }
@media print { nav { display: none; } } @media (max-width: 50rem) { body { display: block; } nav { min-height: 0; } }
"""


def anchor(heading: str) -> str:
    """The part behind # that leads to a heading: ``LEASE-HELD`` -> ``lease-held``."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def body(page: Page, *, suffix: str = "") -> str:
    """The page as an HTML fragment. ``suffix`` takes the place of ``.md`` in links between pages."""
    html: str = _parser().render(page.text, {"suffix": suffix})
    return html


def write(target: Path) -> list[Path]:
    """All pages, an ``index.html`` and the pictures into the folder ``target``, which is made. What was written."""
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for page in pages():
        path = target / f"{page.name}.html"
        path.write_text(_whole(page), encoding="utf-8")
        written.append(path)
    index = target / "index.html"
    index.write_text(_whole(pages()[0]), encoding="utf-8")
    pictures = folder() / IMAGES
    if pictures.is_dir():
        shutil.copytree(pictures, target / IMAGES, dirs_exist_ok=True)
    return [*written, index]


def _whole(page: Page) -> str:
    links = "".join(
        f'<a href="{other.name}.html"{" aria-current=page" if other is page else ""}>{escape(other.title)}</a>'
        for other in pages()
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)} — Vapor Desktop</title><style>{_STYLE}</style></head>"
        f'<body><nav aria-label="Pages">{links}</nav><main>{body(page, suffix=".html")}</main></body></html>\n'
    )


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("heading_open", _heading)
    parser.add_render_rule("link_open", _link)
    return parser


def _heading(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """With a name to jump to, in both forms: browsers want an id, Qt's text browser an anchor."""
    name = anchor(tokens[index + 1].content)
    tag = tokens[index].tag
    return f'<{tag} id="{name}"><a name="{name}"></a>'


def _link(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    href = re.sub(r"\.md(?=#|$)", str(env.get("suffix", "")), str(tokens[index].attrGet("href") or ""))
    return f'<a href="{escape(href)}">'
