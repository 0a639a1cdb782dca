"""Diagrams as SVG: rings, means, times, histograms, curves, confusion. Colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, floor, log10, pi, sin

from voxring.report.markup import Html, join, tag

MOST_NAMES = 12
"""So many parties at most have their names in a diagram of a ring."""
_WIDTH = 640


def _svg(width: int, height: int, label: str, *inside: object, size: str = "small") -> Html:
    return tag("svg", *inside, viewBox=f"0 0 {width} {height}", role="img", aria_label=label, class_=size)


def _text(x: float, y: float, what: object, anchor: str = "start", kind: str | None = None) -> Html:
    return tag("text", what, x=x, y=y, text_anchor=anchor, class_=kind)


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def ring(members: Sequence[str], numbers: Sequence[int], label: str) -> Html:
    """Draw a ring, the master at the top, with arrows the way that shares go.

    A node has its number in the list of members; beside it stands its name.
    """
    size, height, radius, node = 320, 264, 96.0, 13.0
    middle, centre = size / 2, height / 2
    places = []
    for i in range(len(members)):
        angle = 2 * pi * i / len(members) - pi / 2
        places.append((middle + radius * cos(angle), centre + radius * sin(angle)))
    arrows, nodes = [], []
    step = 2 * pi / len(members)
    gap = min((node + 3) / radius, step / 3)
    for i in range(len(members)):
        start, end = i * step - pi / 2 + gap, (i + 1) * step - pi / 2 - gap
        (x1, y1), (x2, y2) = ((middle + radius * cos(a), centre + radius * sin(a)) for a in (start, end))
        arrows.append(tag("path", d=f"M{x1:.1f} {y1:.1f}A{radius} {radius} 0 0 1 {x2:.1f} {y2:.1f}", class_="line"))
        arrows.append(_arrow_head(x2, y2, end + pi / 2))
    for i, (name, (x, y)) in enumerate(zip(members, places, strict=True)):
        nodes.append(tag("circle", cx=x, cy=y, r=node, class_="node" if i else "fill"))
        nodes.append(_text(x, y + 4, "R" if i == 0 else numbers[i], "middle", None if i else "on"))
        if len(members) <= MOST_NAMES + 1:
            out = node + 7
            angle = 2 * pi * i / len(members) - pi / 2
            side = "middle" if abs(cos(angle)) < 0.2 else ("start" if cos(angle) > 0 else "end")
            # What is left to the edge, at 7 units a letter.
            most = 20 if side == "middle" else max(3, int((middle - radius * abs(cos(angle)) - out) / 7))
            tx, ty = x + out * cos(angle), y + out * sin(angle) + (4 + 5 * sin(angle))
            nodes.append(_text(tx, ty, _cut(name, most), side))
    return _svg(size, height, label, *arrows, *nodes)


def _arrow_head(x: float, y: float, angle: float) -> Html:
    points = [(x + 2 * cos(angle), y + 2 * sin(angle))]
    points += [(x + 8 * cos(angle + turn), y + 8 * sin(angle + turn)) for turn in (2.6, -2.6)]
    return tag("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points), class_="fill")


def deviations(rows: Sequence[tuple[str, float, float]], label: str) -> Html:
    """Draw for each (name, mean, sigma) a dot at the mean and a line of one sigma to both sides."""
    left, right, pitch, top = 190, 16, 24, 8
    low = min(mean - sigma for _, mean, sigma in rows)
    high = max(mean + sigma for _, mean, sigma in rows)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    scale = (_WIDTH - left - right) / ((high - low) or 1)
    bottom = top + pitch * len(rows)
    drawn = []
    for tick in ticks:
        x = left + (tick - low) * scale
        drawn += [
            tag("path", d=f"M{x:.1f} {top}V{bottom}", class_="rule"),
            _text(x, bottom + 16, _number(tick), "middle", "soft"),
        ]
    for i, (name, mean, sigma) in enumerate(rows):
        y, x = top + pitch * (i + 0.5), left + (mean - low) * scale
        drawn += [
            _text(left - 12, y + 4, _cut(name, 27), "end"),
            tag("path", d=f"M{x - sigma * scale:.1f} {y:.1f}H{x + sigma * scale:.1f}", class_="line"),
            tag("circle", cx=x, cy=y, r=4, class_="fill"),
        ]
    return _svg(_WIDTH, bottom + 24, label, *drawn, size="large")


def times(rows: Sequence[tuple[str, float]], label: str) -> Html:
    """Draw each (what, seconds) as a bar that begins where the one before ended."""
    left, right, pitch = 220, 64, 22
    total = sum(seconds for _, seconds in rows) or 1.0
    scale, drawn, start = (_WIDTH - left - right) / total, [], 0.0
    for i, (what, seconds) in enumerate(rows):
        y, x = pitch * i + 4, left + start * scale
        drawn += [
            _text(left - 12, y + 12, _cut(what, 32), "end"),
            tag("path", d=f"M{left} {y + 8}H{_WIDTH - right}", class_="rule"),
            tag("rect", x=x, y=y + 2, width=max(seconds * scale, 1.5), height=12, class_="fill"),
            _text(_WIDTH, y + 12, f"{seconds:.2f} s", "end"),
        ]
        start += seconds
    return _svg(_WIDTH, pitch * len(rows) + 8, label, *drawn, size="large")


def histogram(edges: Sequence[float], counts: Sequence[int], label: str) -> Html:
    """Draw counts over bins."""
    width, height, side, top, bottom = 360, 150, 20, 10, 20
    low, high = edges[0], edges[-1]
    scale, most = (width - 2 * side) / ((high - low) or 1), max(counts) or 1
    bars = [
        tag(
            "rect",
            x=side + (a - low) * scale,
            y=top + (height - top - bottom) * (1 - count / most),
            width=max((b - a) * scale - 0.5, 0.5),
            height=(height - top - bottom) * count / most,
            class_="fill",
        )
        for a, b, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]
    base = height - bottom
    marks = [tag("path", d=f"M{side} {base}H{width - side}", class_="rule")]
    for tick in _ticks(low, high, 5):
        if low <= tick <= high:
            marks.append(_text(side + (tick - low) * scale, height - 5, _number(tick), "middle", "soft"))
    return _svg(width, height, label, *bars, join(marks))


def curve(points: Sequence[tuple[float, float]], label: str, *, across: str, up: str, dots: bool = False) -> Html:
    """Draw a line through points of the unit square, beside its diagonal; ``across`` and ``up`` name the axes."""
    size, left, top, bottom = 220, 58, 10, 40
    width, height = left + size + 16, top + size + bottom

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x * size, top + (1 - y) * size

    drawn = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = at(tick, tick)
        drawn += [
            tag("path", d=f"M{x:.1f} {top}V{top + size}", class_="rule"),
            tag("path", d=f"M{left} {y:.1f}H{left + size}", class_="rule"),
            _text(x, top + size + 15, _number(tick), "middle", "soft"),
            _text(left - 6, y + 4, _number(tick), "end", "soft"),
        ]
    drawn.append(tag("path", d=f"M{left} {top + size}L{left + size} {top}", class_="rule"))
    places = [at(x, y) for x, y in points]
    if places:
        drawn.append(tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), class_="line"))
    drawn += [tag("circle", cx=x, cy=y, r=3.5, class_="fill") for x, y in places if dots]
    drawn.append(_text(left + size / 2, top + size + 33, across, "middle"))
    middle = top + size / 2
    drawn.append(tag("text", up, x=14, y=middle, text_anchor="middle", transform=f"rotate(-90 14 {middle:g})"))
    return _svg(width, height, label, *drawn)


def confusion(
    rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float | None]], label: str
) -> Html:
    """Draw a table of shares of a row as cells, the darker the larger; None where a row has nothing to share."""
    left, top, pitch, tall = 150, 46, 56, 34
    drawn = [_text(left + pitch * len(columns) / 2, 14, "given", "middle", "soft")]
    for j, name in enumerate(columns):
        drawn.append(_text(left + pitch * (j + 0.5), top - 10, _cut(name, 8), "middle"))
    for i, (name, row) in enumerate(zip(rows, shares, strict=True)):
        y = top + tall * i
        drawn.append(_text(left - 10, y + tall / 2 + 4, _cut(name, 20), "end"))
        for j, share in enumerate(row):
            x = left + pitch * j
            drawn.append(tag("rect", x=x, y=y, width=pitch, height=tall, class_="node cell"))
            if share is None:
                drawn.append(_text(x + pitch / 2, y + tall / 2 + 4, "–", "middle", "soft"))
                continue
            if share:
                # Ink stays readable on it: the deepest shade is far from ink.
                inner = {"x": x + 1, "y": y + 1, "width": pitch - 2, "height": tall - 2}
                drawn.append(tag("rect", class_="fill", fill_opacity=0.45 * share, **inner))
            drawn.append(_text(x + pitch / 2, y + tall / 2 + 4, _percent(share), "middle"))
    width, height = left + pitch * len(columns) + 4, top + tall * len(rows) + 4
    return tag(
        "svg",
        *drawn,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        class_="matrix",
    )


def _percent(share: float) -> str:
    """As a table shows it; neither 0 nor 100 where it is not."""
    if share in (0, 1):
        return f"{share:.0%}"
    return "<0.1%" if share < 0.0005 else f"{min(share, 0.9994):.1%}"


def _ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round numbers from low to high, ``most`` steps at most."""
    span = (high - low) or abs(low) or 1.0
    step = 10.0 ** floor(log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first = floor(low / step)
    count = floor(span / step) + 2
    return [(first + i) * step for i in range(count) if low - step / 2 <= (first + i) * step <= high + step / 2] or [
        low
    ]


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")
