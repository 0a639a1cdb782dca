"""Images and windows for the kernels of features.cu, which are given exact sums, and what must come out."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

import naive
import naive_features
from cuda_tools import carry
from cuda_tools.cases import window_sums
from voxring.kernels.cuda import features
from voxring.kernels.cuda.features import Scale
from voxring.kernels.cuda.plans import Box, Plan, floor_shift

KINDS = ("mean", "variance", "std", "contrast", "skewness")


class FeatureCase(NamedTuple):
    """One image, and features of it."""

    image: np.ndarray
    window: tuple[int, int, int]  # None of the gradient and the intensity
    border: str
    scale: Scale
    kinds: tuple[str, ...] = KINDS
    box: Box | None = None

    @property
    def whole_plan(self) -> Plan:
        """The plan, with the launches that make the sums."""
        box = self.box or (0, self.image.shape[0], 0, self.image.shape[1])
        asked = [features.Asked(kind, self.window) for kind in self.kinds]
        (made,) = features.plans_of(self.image.shape, self.image.dtype, asked, self.border, self.scale, box)
        return made

    @property
    def plan(self) -> Plan:
        """The plan, with the kernels of features.cu alone."""
        whole = self.whole_plan
        return whole._replace(launches=tuple(one for one in whole.launches if one.source == "features.cu"))

    def buffers(self, plan: Plan) -> dict[str, np.ndarray]:
        """Buffers with exact sums in them, and garbage where maps go."""
        made = carry.buffers_for(plan, self.image, None, ())
        shift = floor_shift(prod(self.window))
        z0, z1, y0, y1 = plan.box
        lines, columns = (z1 - z0) * (y1 - y0), self.image.shape[2]
        x = self.image.astype(object)
        powers = {"sums": x, "squares": x**2, "cubes": x**3, "squares_high": x**2 >> shift, "cubes_high": x**3 >> shift}
        for what in powers.keys() & made.keys():
            bias = int(made["scale"][5]) if what == "sums" else 0
            sums = window_sums(powers[what], self.window, self.border)[z0:z1, y0:y1].reshape(lines, columns) + bias
            words = (sums % (1 << 64)).astype(np.uint64)
            dense = made[what].dtype == np.int64
            rows = made[what][: lines * columns].reshape(words.shape) if dense else made[what].reshape(lines, -1)
            rows[:, :columns] = words.view(np.int64) if dense else words
        return made

    def answer(self, plan: Plan, buffers: dict[str, np.ndarray]) -> Any:
        """The maps, by their kind."""
        z0, z1, y0, y1 = plan.box
        maps = buffers["stack"].reshape(len(self.kinds), z1 - z0, y1 - y0, -1)
        return dict(zip(self.kinds, maps.tolist(), strict=True))

    def run(self, plan: Plan, **how: Any) -> Any:
        """The kernels' answer: of `plan` from exact sums, of `whole_plan` from theirs."""
        buffers = self.buffers(plan)
        carry.launch_all(plan, buffers, **how)
        return self.answer(plan, buffers)

    @property
    def expected(self) -> Any:
        """The maps by the definition."""
        shape, scale = self.image.shape, self.scale
        z0, z1, y0, y1 = self.box or (0, shape[0], 0, shape[1])
        x = {q: scale.a * int(self.image[q]) + scale.b for q in naive.indices(shape)}
        fill = scale.a * scale.fill + scale.b
        answer = {}
        for kind in self.kinds:
            made = naive_features.feature_map(kind, x, shape, self.window, self.border, fill, 1 << scale.fraction_bits)
            every = np.array([made[q] for q in naive.indices(shape)], object).reshape(shape)
            answer[kind] = every[z0:z1, y0:y1].tolist()
        return answer
