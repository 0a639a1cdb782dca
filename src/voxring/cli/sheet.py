"""The disclosure sheet as Markdown, JSON and HTML. The same study gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape

import msgspec

from voxring.ring.sheet import Section, Sheet

TITLE = "Disclosure sheet"


def markdown(sheet: Sheet) -> str:
    """Return the sheet as Markdown.

    Examples
    --------
    >>> print(markdown(Sheet("a|b", "00", ("x",), ("c",), 1, (Section("T", ("S.",), ("h",), (("r",),)),))))
    # Disclosure sheet: a\\|b
    <BLANKLINE>
    - digest of the study: `00`
    - parties: x
    - classes: c
    <BLANKLINE>
    ## T
    <BLANKLINE>
    S.
    <BLANKLINE>
    | h |
    | --- |
    | r |
    <BLANKLINE>
    """
    blocks = [
        f"# {TITLE}: {_plain(sheet.study)}",
        "\n".join(f"- {what}: {text}" for what, text in _facts(sheet, _plain)),
    ]
    blocks[1] = blocks[1].replace(sheet.digest, f"`{sheet.digest}`")
    for section in sheet.sections:
        blocks.append(f"## {_plain(section.title)}")
        blocks += [_plain(sentence) for sentence in section.sentences]
        if section.head:
            rows = [section.head, ("---",) * len(section.head), *section.rows]
            blocks.append("\n".join(f"| {' | '.join(map(_plain, row))} |" for row in rows))
    return "\n\n".join(blocks) + "\n"


def json(sheet: Sheet) -> str:
    """Return the sheet as JSON, with the names of `voxring.ring.sheet`."""
    return msgspec.json.format(msgspec.json.encode(sheet), indent=2).decode() + "\n"


def html(sheet: Sheet) -> str:
    """Return the sheet as one HTML page that needs nothing else: no script, no font, no picture, no link."""
    facts = "".join(f"<dt>{what}</dt><dd>{text}</dd>" for what, text in _facts(sheet, escape))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{TITLE}: {escape(sheet.study)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{TITLE}: {escape(sheet.study)}</h1>\n<dl>{facts}</dl>\n"
        + "".join(map(_html_section, sheet.sections))
        + "</body>\n</html>\n"
    )


FORMATS: dict[str, Callable[[Sheet], str]] = {"md": markdown, "json": json, "html": html}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; }
th, td { border: 1px solid #999; padding: .3em .6em; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
dt { font-weight: bold; } dd { margin: 0 0 .5em; overflow-wrap: anywhere; }
@media print { tr { break-inside: avoid; } }
"""


def _facts(sheet: Sheet, text: Callable[[str], str]) -> list[tuple[str, str]]:
    return [
        ("digest of the study", text(sheet.digest)),
        ("parties", text(", ".join(sheet.parties) or "none named yet")),
        ("classes", text(", ".join(sheet.classes))),
    ]


def _html_section(section: Section) -> str:
    text = f"<h2>{escape(section.title)}</h2>\n"
    text += "".join(f"<p>{escape(sentence)}</p>\n" for sentence in section.sentences)
    if section.head:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in section.head)
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in section.rows)
        text += f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"
    return text


def _plain(text: str) -> str:
    """One line of text in Markdown that means nothing but itself."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))
