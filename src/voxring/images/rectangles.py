"""A large 2D image in rectangles: what of it is in memory at a time."""

from collections.abc import Iterator

Span = tuple[int, int]
"""Start and stop along an axis."""

Rectangle = tuple[Span, Span]
"""Rows and columns."""

SIDE = 4096
"""Rows and columns of a rectangle; where the strips of a file are as wide as the image, as many voxels."""


def rectangles(shape: tuple[int, ...], *blocks: tuple[int, int], side: int | None = None) -> Iterator[Rectangle]:
    """Cover a 2D image, for files that are unpacked by these blocks of rows and columns.

    A rectangle has ``side`` rows and columns, `SIDE` when left out, or as many voxels.

    Examples
    --------
    >>> list(rectangles((100, 7000), (256, 256)))
    [((0, 100), (0, 4096)), ((0, 100), (4096, 7000))]
    """
    rows, columns = shape
    side = SIDE if side is None else side
    high, wide = (max(sizes) for sizes in zip(*blocks, strict=True))
    across = columns if 2 * wide > columns else -(-side // wide) * wide
    down = max(side * side // min(across, columns) // high, 1) * high
    for top in range(0, rows, down):
        for left in range(0, columns, across):
            yield (top, min(top + down, rows)), (left, min(left + across, columns))
