"""The hot arithmetic, and the one contract that every backend meets.

A backend reduces one image to integers (`Reduction`), over the *stored* integers v; standardisation is applied to the
sums afterwards. For each class it answers three things about the voxels q whose label is that class:

- ``groups[m] = (voxels, total)``: over the q whose window holds m voxels inside the image, how many q there are and
  the sum of their window sums S_q. Voxels outside the image count nothing under ``clip`` and ``constant`` (the fill
  is added later from m), and are read back from inside under ``reflect``, ``mirror`` and ``nearest``; there, m is
  |W| for every q.
- ``total`` = Σ v_q and ``squares`` = Σ v_q².

All are Python integers, exact whatever the size of the image. The window at q covers q − c//2 … q − c//2 + c − 1
along each axis.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BORDERS = ("reflect", "mirror", "nearest", "constant", "clip")


@dataclass(slots=True)
class Reduction:
    """What one image holds for one class, in stored integers."""

    total: int = 0
    squares: int = 0
    groups: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def voxels(self) -> int:
        """Number of voxels of the class."""
        return sum(voxels for voxels, _ in self.groups.values())

    def __add__(self, other: Reduction) -> Reduction:
        groups = dict(self.groups)
        for inside, (voxels, total) in other.groups.items():
            mine = groups.get(inside, (0, 0))
            groups[inside] = (mine[0] + voxels, mine[1] + total)
        return Reduction(self.total + other.total, self.squares + other.squares, groups)
