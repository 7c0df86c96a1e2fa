"""Taking secrets out of text and values that leave the machine. Pure; rather too much than too little."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from enum import Enum
from typing import Any

from pydantic import BaseModel

OUT = "[removed]"
_WORDS = (
    r"(?:tokens?|secrets?|passwords?|passwd|passphrase|credentials?|private[_-]?key|api[_-]?key"
    r"|authori[sz]ation|cookie)"
)
_KEY = re.compile(rf"(?:^|[_\-. ]){_WORDS}$", re.IGNORECASE)
# A value after its name: quoted, quoted inside a quoted text, or a word (with what precedes it in a header).
_VALUE = r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|\\\"[^\"\\]*\\\"|(?:bearer\s+|basic\s+)?[^\s,;&\"'}\]]+)"
_NAMED = re.compile(rf"({_WORDS}\\?['\"]?\s*[=:]\s*){_VALUE}", re.IGNORECASE)
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    # PEM and OpenSSH's private keys, to the end of the text where the end is cut off.
    (re.compile(r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL), OUT),
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {OUT}"),
    # scheme://user:password@host
    (re.compile(r"\b([a-z][a-z0-9+.-]{1,20}://[^\s:/@]*):[^\s\"']+@", re.IGNORECASE), rf"\1:{OUT}@"),
    (re.compile(rf"(--[a-z0-9-]{{0,30}}?{_WORDS}\s+)(?!-)\S+", re.IGNORECASE), rf"\1{OUT}"),
    # A site's token as it is written, and whatever else looks as random: long, with small, large, and digits.
    (re.compile(r"\bvapor\d\.[A-Za-z0-9_=-]{8,}"), OUT),
    (re.compile(r"(?<![\w/.-])(?=[\w-]{0,60}\d)(?=[\w-]{0,60}[A-Z])(?=[\w-]{0,60}[a-z])[\w-]{40,}(?![\w/.-])"), OUT),
)


def text(found: str) -> str:
    """The text without what looks like a secret."""
    for rule, instead in _RULES:
        found = rule.sub(instead, found)
    return _NAMED.sub(_keep_quotes, found)


def _keep_quotes(found: re.Match[str]) -> str:
    quote = '\\"' if found[2].startswith('\\"') else found[2][:1] if found[2][:1] in "\"'" else ""
    return f"{found[1]}{quote}{OUT}{quote}"


def is_secret(key: str) -> bool:
    """Whether what is called so must not leave."""
    return bool(_KEY.search(key))


def plain(value: Any) -> Any:
    """Our values as JSON values, without what a secret is called by, and with every text cleaned."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(k): OUT if is_secret(str(k)) and v not in (None, "") else plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if value is None or isinstance(value, bool | int | float):
        return value
    return text(value if isinstance(value, str) else repr(value))
