"""Carries a plan out on the CPU: allocates what it names, lays the image out, starts its launches, reads the numbers.

What nobody wrote holds garbage, so a kernel that counts on zeros is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cuda_tools import emulation
from voxring.kernels import Reduction
from voxring.kernels.cuda import plans
from voxring.kernels.cuda.plans import Plan

Runner = Callable[..., Any]

GARBAGE = 0xA5


def buffers_for(plan: Plan, image: np.ndarray, labels: np.ndarray | None, classes: Sequence[int]) -> dict[str, Any]:
    """The buffers of a plan, as they are before its first launch."""
    buffers = {}
    for name, buffer in plan.buffers.items():
        made = np.empty(buffer.size, buffer.dtype)
        made.view(np.uint8)[:] = 0 if buffer.clear else GARBAGE
        if buffer.given is not None:
            made[:] = buffer.given
        buffers[name] = made
    plans.stage_image(plan, image, buffers["image"])
    if labels is not None:
        plans.stage_numbers(plan, labels, classes, buffers["numbers"])
    return buffers


def launch_all(plan: Plan, buffers: dict[str, Any], run: Runner = emulation.run, **how: Any) -> list[Any]:
    """Start the launches of a plan one after another, each with the buffers that it names."""
    return [
        run(launch, {a: buffers[a] for a in launch.arguments if isinstance(a, str)}, **how) for launch in plan.launches
    ]


def window_map(plan: Plan, buffers: dict[str, Any]) -> np.ndarray:
    """The map that a plan made: window sums, or those of squares, of its box."""
    z0, z1, y0, y1 = plan.box
    columns = len(plan.staged.beside) - plan.window[2] + 1 if "map" in plan.buffers else len(plan.staged.beside)
    if "map" not in plan.buffers:
        return buffers["there"][: (z1 - z0) * (y1 - y0) * columns].reshape(z1 - z0, y1 - y0, columns)
    rows = buffers["map"].reshape(z1 - z0, y1 - y0, plan.label_pitch)
    return rows[:, :, :columns].astype(np.int64) - plan.bias


def reduced(
    plan: Plan, image: np.ndarray, labels: np.ndarray, classes: Sequence[int], run: Runner = emulation.run, **how: Any
) -> list[Reduction]:
    """What a plan of "reduce" answers."""
    buffers = buffers_for(plan, image, labels, classes)
    launch_all(plan, buffers, run, **how)
    return plans.reductions(plan, buffers["table"])


def mapped(plan: Plan, image: np.ndarray, run: Runner = emulation.run, **how: Any) -> np.ndarray:
    """What a plan of "sums" or "squares" answers."""
    buffers = buffers_for(plan, image, None, ())
    launch_all(plan, buffers, run, **how)
    return window_map(plan, buffers)
