"""Which of many titles somebody means by a few letters. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
_FIRST, _WORD, _NEXT, _ANY = 12, 8, 5, 1  # points for a letter: first of the text, of a word, after a hit, anywhere
_DIVIDERS = frozenset(" -_./:→(")


def score(query: str, text: str) -> int | None:
    """How well ``text`` answers ``query``; None when it does not. More is better.

    Each word of the query must be found, in any order, its letters in order. Letters that begin words and letters
    that stand together count more; of two texts that are as good, the shorter is the better one.
    """
    words = query.casefold().split()
    low = text.casefold()
    total = 0
    for word in words:
        found = _best(word, low)
        if found is None:
            return None
        total += found
    return total * 100 - min(len(text), 99) if words else 0


def rank(query: str, things: Iterable[T], text: Callable[[T], str]) -> list[T]:
    """Those that answer, best first; in their own order where they are as good, and all of them for no query."""
    judged = [(found, thing) for thing in things if (found := score(query, text(thing))) is not None]
    judged.sort(key=lambda pair: -pair[0])
    return [thing for _found, thing in judged]


def _best(word: str, text: str) -> int | None:
    """The best of: the word as it stands at its best place, and its letters scattered."""
    whole = _whole(word, text)
    return whole if whole is not None else _scattered(word, text)


def _whole(word: str, text: str) -> int | None:
    best: int | None = None
    at = text.find(word)
    while at >= 0:
        points = _place(text, at) + _NEXT * (len(word) - 1) + len(word)
        best = points if best is None else max(best, points)
        at = text.find(word, at + 1)
    return best


def _scattered(word: str, text: str) -> int | None:
    """Letters in order; the first must begin a word, or everything would be found everywhere."""
    starts = [n for n in range(len(text)) if text[n] == word[0] and _place(text, n) > _ANY]
    found = [points for start in starts if (points := _follow(word, text, start)) is not None]
    return max(found, default=None)


def _follow(word: str, text: str, start: int) -> int | None:
    points, at = _place(text, start), start
    for letter in word[1:]:
        if text[at + 1 : at + 2] == letter:
            at += 1
            points += _NEXT
            continue
        jump = next((n for n in range(at + 1, len(text)) if text[n] == letter and _place(text, n) > _ANY), -1)
        at = jump if jump >= 0 else text.find(letter, at + 1)
        if at < 0:
            return None
        points += _place(text, at)
    return points


def _place(text: str, at: int) -> int:
    if at == 0:
        return _FIRST
    return _WORD if text[at - 1] in _DIVIDERS else _ANY
