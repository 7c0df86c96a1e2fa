"""A report as one HTML page that needs nothing else, as CSV, or as JSON. Everything is escaped."""

from __future__ import annotations

import csv
import io
import json
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from html import escape
from typing import Any

from vapor_desktop.engine.reporting.document import Cell, Is, Report, Section, cell_text, local_text, utc_text

_STYLE = """
body{font:14px/1.5 system-ui,"DejaVu Sans",sans-serif;color:#1d2329;background:#fff;max-width:72rem;margin:2rem auto;
padding:0 1.5rem}
h1{font-size:1.6rem;margin:0 0 .8rem}h2{font-size:1.15rem;margin-top:28px;margin-bottom:6px}
table{border-collapse:collapse;font-size:.92em}table.facts{color:#4a545d}
th,td{text-align:left;vertical-align:top;padding-top:4px;padding-bottom:4px;padding-left:0;padding-right:16px;
border-bottom:1px solid #e6e9ec}
th{color:#4a545d}td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
th.n{text-align:right}.facts th,.facts td{border:none;padding-top:1px;padding-bottom:1px}
figure{margin:1rem 0}img{max-width:100%;border:1px solid #d5dade}figcaption{color:#4a545d}
@media (prefers-color-scheme:dark){@media screen{body{background:#171b1f;color:#e3e7ea}
table.facts,th,figcaption{color:#a9b3bb}img{border-color:#3a434b}th,td{border-color:#2b3238}}}
@media print{h2{break-after:avoid}tr,figure{break-inside:avoid}body{margin:0;max-width:none}}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_NUMBERS = {Is.DURATION, Is.SECONDS, Is.SHARE, Is.COUNT}
# What a spreadsheet would take for a formula; a VM's name is anybody's.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def html(report: Report, zone: tzinfo | None = None) -> str:
    """One page without scripts and without anything fetched. ``zone`` None: the machine's."""
    facts = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in report.facts(zone))
    sections = "".join(_section(s, zone) for s in report.sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(report.title)}</h1>\n<table class='facts'>{facts}</table>\n{sections}</body></html>\n"
    )


def _section(section: Section, zone: tzinfo | None) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>\n"]
    parts += [f"<p>{escape(t)}</p>\n" for t in section.text]
    if section.columns and not section.rows:
        parts.append(f"<p>{escape(section.empty)}</p>\n")
    elif section.columns:
        marks = [' class="n"' if c.kind in _NUMBERS else "" for c in section.columns]
        heads = "".join(
            f'<th scope="col"{m}>{escape(c.title)}</th>' for c, m in zip(section.columns, marks, strict=True)
        )
        parts.append(f"<table><thead><tr>{heads}</tr></thead><tbody>\n")
        for row in section.rows:
            cells = zip(section.columns, marks, row, strict=True)
            told = "".join(f"<td{m}>{escape(cell_text(v, c.kind, zone))}</td>" for c, m, v in cells)
            parts.append(f"<tr>{told}</tr>\n")
        parts.append("</tbody></table>\n")
    for p in section.pictures:
        source = b64encode(p.png).decode()
        caption = escape(p.caption)
        parts.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{source}"><figcaption>{caption}</figcaption>'
            "</figure>\n"
        )
    return "".join([*parts, "</section>\n"])


def as_csv(report: Report, zone: tzinfo | None = None) -> str:
    """Its head, then each section: title, sentences, head of the table, rows; an empty line between. A time has two
    columns (local, UTC); durations are seconds and shares 0…1; unknown is —."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")

    def write(*cells: str) -> None:
        writer.writerow([_safe(c) for c in cells])

    write("Report", report.title)
    for fact in report.facts(zone):
        write(*fact)
    for section in report.sections:
        writer.writerow([])
        write(section.title)
        for text in section.text:
            write(text)
        if section.columns and not section.rows:
            write(section.empty)
        elif section.columns:
            write(*(h for c in section.columns for h in _heads(c.title, c.kind)))
            for row in section.rows:
                cells = zip(section.columns, row, strict=True)
                writer.writerow([t for c, v in cells for t in _csv_cells(v, c.kind, zone)])
    return out.getvalue()


def _heads(title: str, kind: Is) -> tuple[str, ...]:
    if kind is Is.TIME:
        return (f"{title} (local)", f"{title} (UTC)")
    return (f"{title} (s)" if kind in {Is.DURATION, Is.SECONDS} else title,)


def _csv_cells(value: Cell, kind: Is, zone: tzinfo | None) -> tuple[str, ...]:
    if kind is Is.TEXT:
        return (_safe(cell_text(value, kind, zone)),)
    if isinstance(value, datetime):
        return local_text(value, zone), utc_text(value)
    if value is None:
        return (cell_text(None, kind, zone),) * (2 if kind is Is.TIME else 1)
    return (str(value.total_seconds() if isinstance(value, timedelta) else value),)


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def as_json(report: Report, zone: tzinfo | None = None) -> str:
    """One document; times are ISO 8601 in UTC, durations seconds, unknown is null. Pictures: their captions."""
    told: dict[str, Any] = {
        "kind": report.kind,
        "title": report.title,
        "from": _plain(report.start),
        "to": _plain(report.end),
        "made_at": _plain(report.made_at),
        "made_by": report.made_by,
        "versions": dict(report.versions),
        "sections": [
            {
                "title": s.title,
                "text": list(s.text),
                "rows": [
                    {c.key: _plain(v) for c, v in zip(s.columns, row, strict=True)} for row in s.rows if s.columns
                ],
                "empty": s.empty if s.columns and not s.rows else None,
                "pictures": [p.caption for p in s.pictures],
            }
            for s in report.sections
        ],
    }
    return json.dumps(told, ensure_ascii=False, indent=1) + "\n"


def _plain(value: Cell) -> str | float | int | None:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else value


FORMATS: dict[str, Callable[[Report, tzinfo | None], str]] = {"html": html, "csv": as_csv, "json": as_json}
