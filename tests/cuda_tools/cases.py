"""Images and windows for the CUDA kernels, and what must come out: sums along one axis after the other, in numpy.

The places that a window reads are those of `naive.source_index`; a test holds the sums against `naive.window_values`.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

import naive
from cuda_tools import carry
from voxring.kernels import Reduction
from voxring.kernels.cuda import plans
from voxring.kernels.cuda.plans import Plan

FRAMED = ("clip", "constant")
UNFRAMED = ("reflect", "mirror", "nearest")


class Kind(NamedTuple):
    """What a kernel is compiled for, all but for the numbers of the launch."""

    window: tuple[int, int, int]
    dtype: str
    classes: int = 1
    framed: bool = True
    what: str = "reduce"
    shared: int = plans.SHARED

    def __str__(self) -> str:
        frame = "framed" if self.framed else "unframed"
        large = "-large" * (self.shared > plans.SHARED)
        return f"{'x'.join(map(str, self.window))}-{self.dtype}-{self.classes}-{frame}-{self.what}{large}"

    @property
    def borders(self) -> tuple[str, ...]:
        """The borders that this kind of kernel serves; maps know none."""
        return FRAMED + UNFRAMED if self.what != "reduce" else FRAMED if self.framed else UNFRAMED


class Case(NamedTuple):
    """One image, and how it is cut."""

    kind: Kind
    image: np.ndarray
    labels: np.ndarray
    border: str
    box: plans.Box | None = None
    segment: int | None = None

    @property
    def classes(self) -> list[int]:
        """Label values, in the order of the table: any but their own numbers."""
        return list(range(self.kind.classes, 0, -1))

    @property
    def plan(self) -> Plan:
        """The plan of the case's box."""
        kind = self.kind
        how: dict[str, Any] = {"classes": kind.classes, "box": self.box, "segment": self.segment}
        how["shared"] = kind.shared
        return plans.plan_for(self.image.shape, self.image.dtype, kind.window, self.border, kind.what, **how)

    def buffers(self, plan: Plan) -> dict[str, np.ndarray]:
        """Buffers for a plan of this case."""
        return carry.buffers_for(plan, self.image, self.labels if self.kind.what == "reduce" else None, self.classes)

    def answer(self, plan: Plan, buffers: dict[str, np.ndarray]) -> Any:
        """What buffers say after the launches: reductions, or a map as nested lists."""
        if self.kind.what == "reduce":
            return plans.reductions(plan, buffers["table"])
        return carry.window_map(plan, buffers).tolist()

    def run(self, **how: Any) -> Any:
        """The kernels' answer."""
        plan = self.plan
        buffers = self.buffers(plan)
        carry.launch_all(plan, buffers, **how)
        return self.answer(plan, buffers)

    @property
    def expected(self) -> Any:
        """The answer by the definition."""
        z0, z1, y0, y1 = self.box or (0, self.image.shape[0], 0, self.image.shape[1])
        part = np.s_[z0:z1, y0:y1]
        image = self.image.astype(np.int64)
        if self.kind.what != "reduce":
            return window_sums(self.terms, self.kind.window, self.border)[part].tolist()
        sums, inside = (
            window_sums(image, self.kind.window, self.border),
            window_counts(image.shape, self.kind.window, self.border),
        )
        return [reduction(image[part], self.labels[part] == value, sums[part], inside[part]) for value in self.classes]

    @property
    def terms(self) -> np.ndarray:
        """What a voxel adds to a map, modulo 2^64."""
        power = {"sums": 1, "squares": 2, "cubes": 3}[self.kind.what.removesuffix("_high")]
        if not self.kind.what.endswith("_high"):
            return self.image.astype(np.int64) ** power
        return (self.image.astype(object) ** power >> plans.floor_shift(prod(self.kind.window))).astype(np.int64)


def window_sums(image: np.ndarray, window: tuple[int, int, int], border: str) -> np.ndarray:
    """Σ over each voxel's window; nothing comes from outside."""
    sums = image
    for axis, size in enumerate(window):
        length = image.shape[axis]
        places = [naive.source_index(i - size // 2, length, border) for i in range(length + size - 1)]
        read = sums.take([place or 0 for place in places], axis)
        read[
            tuple(
                np.s_[[at for at, place in enumerate(places) if place is None]] if a == axis else np.s_[:]
                for a in range(3)
            )
        ] = 0
        running = np.cumsum(np.concatenate([np.zeros_like(read.take([0], axis)), read], axis), axis)
        sums = running.take(range(size, size + length), axis) - running.take(range(length), axis)
    return sums


def window_counts(shape: tuple[int, int, int], window: tuple[int, int, int], border: str) -> np.ndarray:
    """How many voxels of each window count."""
    if border in UNFRAMED:
        return np.full(shape, prod(window))
    return window_sums(np.ones(shape, np.int64), window, border)


def reduction(image: np.ndarray, chosen: np.ndarray, sums: np.ndarray, inside: np.ndarray) -> Reduction:
    """One class."""
    values, counts = image[chosen].tolist(), inside[chosen]
    of_group = {int(m): sums[chosen][counts == m].tolist() for m in np.unique(counts)}
    groups = {m: (len(found), sum(found)) for m, found in of_group.items()}
    return Reduction(sum(values), sum(v * v for v in values), groups)


STYLES = ("any", "low", "high", "ends", "smooth")


def picture(rng: np.random.Generator, shape: tuple[int, int, int], dtype: str, style: str) -> np.ndarray:
    """An image of a style: full range, one of the type's ends, both, or a slope."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if style in ("low", "high"):
        return np.full(shape, low if style == "low" else high, dtype)
    if style == "ends":
        return np.where(rng.random(shape) < 0.5, low, high).astype(dtype)
    if style == "smooth":
        return (np.arange(prod(shape)).reshape(shape) % 97 + int(low) // 2).astype(dtype)
    return rng.integers(low, high, shape, dtype, endpoint=True)


def ground_truth(rng: np.random.Generator, shape: tuple[int, int, int], classes: int, share: float) -> np.ndarray:
    """Labels 1 … classes in a share of the voxels, in runs and alone; some lie beyond the classes."""
    labels = rng.integers(1, classes + 1, shape)
    runs = np.repeat(labels[..., :: 1 + shape[2] // 5], 1 + shape[2] // 5, axis=2)[..., : shape[2]]
    labels = np.where(rng.random(shape[:2])[..., None] < 0.5, labels, runs)
    return np.where(rng.random(shape) < share, labels, 0).astype(np.uint8)


def example(kind: Kind, shape: tuple[int, int, int], style: str = "any", seed: int = 1, **how: Any) -> Case:
    """A case made from a seed."""
    rng = np.random.default_rng(seed)
    border = how.pop("border", kind.borders[0])
    share = how.pop("share", 0.7)
    image = picture(rng, shape, kind.dtype, style)
    return Case(kind, image, ground_truth(rng, shape, kind.classes, share), border, **how)
