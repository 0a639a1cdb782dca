"""Maps over all voxels: local means and local variances.

Their numerators are exact integers; only the last division is in floating point. No table is stored: memory beyond the
result is a tile for means, and a few planes for variances.
"""

from __future__ import annotations

import numpy as np

from voxring.kernels.axes import axis_inside, axis_map

from .jit import Array, Shape
from .streamed import Maps, maps_streamed

SLAB = 1 << 21
"""Voxels of the planes that a slab of variances has in hand at a time."""


def outputs(
    shape: Shape, window: Shape, border: str, sums: Array | None = None, means: Array | None = None, fill: int = 0
) -> Maps:
    """The maps that a call fills, as the kernel takes them."""
    z, y, x = (axis_inside(length, size) for length, size in zip(shape, window, strict=True))
    inside_only = border in {"clip", "constant"}
    whole = [np.full(length, size) for length, size in zip(shape, window, strict=True)]
    return Maps(
        sums.reshape(-1) if sums is not None else np.zeros(0, np.int64),
        means.reshape(-1) if means is not None else np.zeros(0, np.float32),
        (z, y, x) if inside_only else (whole[0], whole[1], whole[2]),
        window[0] * window[1] * window[2],
        fill if border == "constant" else 0,
        border == "clip",
    )


def means_into(out: Array, image: Array, window: Shape, border: str, fill: int, workers: int) -> None:
    """Local means, each the exact quotient rounded to float64 and then to the type of ``out``."""
    maps_streamed(image, window, border, outputs(image.shape, window, border, means=out, fill=fill), workers)


def variances_into(out: Array, image: Array, window: Shape, border: str, fill: int, workers: int) -> None:
    """Local variances (|W| Σv² − (Σv)²) / |W|², the numerator an exact integer that the caller has bounded.

    A slab of planes at a time: the planes that its windows read, widened to int64, and their squares.
    """
    planes, rows, columns = image.shape
    z_map = axis_map(planes, window[0], border)
    deep = max(1, SLAB // max(1, rows * columns))
    z, y, x = (axis_inside(length, size) for length, size in zip(image.shape, window, strict=True))
    size = window[0] * window[1] * window[2]
    for z0 in range(0, planes, deep):
        z1 = min(planes, z0 + deep)
        read = z_map[z0 : z1 + window[0] - 1]
        slab = np.where((read >= 0)[:, None, None], image[read], 0).astype(np.int64)
        # without the border of z, the window of plane z0 begins at the slab's plane 0
        middle = slice(window[0] // 2, window[0] // 2 + z1 - z0)
        both = []
        for values, outside in ((slab, fill), (slab * slab, fill * fill)):
            sums = np.empty(slab.shape, np.int64)
            maps_streamed(values, window, border, outputs(slab.shape, window, border, sums=sums), workers)
            both.append((sums[middle], outside))
        (total, outside), (squares, outside_squares) = both
        count = np.int64(size)
        if border in {"clip", "constant"}:
            inside = z[z0:z1, None, None] * (y[:, None] * x)
            if border == "clip":
                count = inside
            else:
                total += outside * (size - inside)
                squares += outside_squares * (size - inside)
        np.divide(count * squares - total * total, count * count, out=out[z0:z1], casting="same_kind")
