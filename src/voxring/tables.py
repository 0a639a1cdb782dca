"""Tables as notebooks show them: HTML that is escaped, stands alone without scripts, and takes the page's colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_CELL = "border-bottom:1px solid currentColor;padding:0.2em 0.8em;text-align:"


def html_table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table. Under titles, what follows the first column stands to the right, as numbers do.

    Parameters
    ----------
    caption : str
        What it is about.
    titles : sequence of str
        Of the columns; none for a table of names and values.
    rows : iterable of sequences
        Cells, written as ``str`` has them.

    Examples
    --------
    >>> "&lt;b&gt;" in html_table("liver", ["class", "voxels"], [["<b>", 12]])
    True
    """
    head = "".join(_cell("th", title, place) for place, title in enumerate(titles))
    body = "".join(
        f"<tr>{''.join(_cell('td', cell, place if titles else 0) for place, cell in enumerate(row))}</tr>"
        for row in rows
    )
    return (
        '<table style="border-collapse:collapse;color:inherit;background:transparent">'
        f'<caption style="text-align:left;color:inherit">{escape(caption)}</caption>'
        f"{f'<thead><tr>{head}</tr></thead>' if titles else ''}<tbody>{body}</tbody></table>"
    )


def _cell(kind: str, content: object, place: int) -> str:
    return f'<{kind} style="{_CELL}{"right" if place else "left"}">{escape(str(content))}</{kind}>'
