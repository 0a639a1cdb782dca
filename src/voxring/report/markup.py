"""Elements of a page. What is not made here is text, and is escaped: no value can become markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

# Control characters, which HTML forbids, and those that turn the direction of what follows, which could hide a name.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]"
)
_VOID = {"br", "col", "hr", "img", "meta"}

Attribute = str | int | float | bool | None


class Html(str):
    """A string that is HTML already."""

    __slots__ = ()


def text(value: object) -> Html:
    """Return a value as HTML that shows it.

    Examples
    --------
    >>> text("a < b & c")
    'a &lt; b &amp; c'
    """
    return value if isinstance(value, Html) else Html(escape(_FORBIDDEN.sub("\ufffd", str(value))))


def tag(name: str, *inside: object, **attributes: Attribute) -> Html:
    """Return an element; ``class_`` is class, ``aria_label`` aria-label, and what is None or False is left out.

    Examples
    --------
    >>> tag("p", "n < ", tag("b", 3), class_="note", hidden=True)
    '<p class="note" hidden>n &lt; <b>3</b></p>'
    """
    said = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(_short(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{said}>" + ("" if name in _VOID else f"{join(inside)}</{name}>"))


def join(parts: Iterable[object]) -> Html:
    """Return parts one after the other."""
    return Html("".join(map(text, parts)))


def _short(value: Attribute) -> Attribute:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], *, label: str, numbers: bool = True, wide: bool = False
) -> Html:
    """Return a table whose rows begin with their heads.

    Parameters
    ----------
    label : str
        What the table holds, for those who do not see where it stands.
    numbers : bool
        All columns but the first hold numbers, and are set flush right.
    wide : bool
        The table keeps its width on a narrow screen, and scrolls in a box of its own, which the keyboard reaches.
    """
    kind = "number" if numbers else None
    first, *others = head
    made = tag(
        "table",
        tag(
            "thead", tag("tr", tag("th", first, scope="col"), *(tag("th", o, scope="col", class_=kind) for o in others))
        ),
        tag("tbody", *(_row(row, kind) for row in rows)),
        class_="wide" if wide else "numbers" if numbers else "short" if len(head) < 3 else None,
        aria_label=label,
    )
    return tag("div", made, class_="scroll", tabindex=0, role="region", aria_label=f"{label}, table")


def _row(row: Sequence[object], kind: str | None) -> Html:
    first, *others = row
    return tag("tr", tag("th", first, scope="row"), *(tag("td", cell, class_=kind) for cell in others))


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Return a list of names and what they are."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def folded(summary: object, *inside: object) -> Html:
    """Return what is shown when asked for; it needs no script."""
    return tag("details", tag("summary", summary), *inside)
