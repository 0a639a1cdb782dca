"""A whole page: one file, with no script, that fetches nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from voxring.report.markup import Html, join, tag, text
from voxring.report.style import style


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page, which its navigation names."""

    id: str
    title: str
    inside: Html


def page(
    *,
    kind: str,
    title: str,
    head: Html,
    sections: Sequence[Section],
    foot: str,
    alarm: Iterable[str] = (),
    images: bool = False,
) -> str:
    """Return a page.

    The policy forbids all that a page could fetch or run; the one style sheet is let through by its hash, and pictures
    that stand in the page where ``images`` says that there are some.
    """
    sheet = style()
    allowed = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{allowed}'; {'img-src data:; ' if images else ''}"
        "base-uri 'none'; form-action 'none'"
    )
    warning = [tag("p", line, class_="more" if number else None) for number, line in enumerate(alarm)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        + tag("meta", http_equiv="Content-Security-Policy", content=policy)
        + '\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        + '<meta name="referrer" content="no-referrer">\n'
        + f"<title>{text(f'{title} · {kind}')}</title>\n<style>{sheet}</style>\n</head>\n<body>\n"
        + tag("a", "To the content", href="#content", class_="skip")
        + (tag("div", *warning, class_="alarm", role="note") if warning else "")
        + tag("header", tag("p", kind, class_="kind"), tag("h1", title), head, _navigation(sections))
        + "\n"
        + tag("main", *map(_section, sections), id="content", tabindex=-1)
        + "\n"
        + tag("footer", tag("p", foot))
        + "\n</body>\n</html>\n"
    )


def _navigation(sections: Iterable[Section]) -> Html:
    links = [tag("li", tag("a", section.title, href=f"#{section.id}")) for section in sections]
    return tag("nav", tag("ul", *links), aria_label="Parts of this page")


def _section(section: Section) -> Html:
    name = f"{section.id}-title"
    heading = tag("h2", section.title, id=name)
    return join(["\n", tag("section", heading, section.inside, id=section.id, aria_labelledby=name)])
