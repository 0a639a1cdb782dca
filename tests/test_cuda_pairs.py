"""The kernels of pairs.cu against loops over voxels and the processor's kernel, on machines without a GPU."""

import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
import naive_features
from cuda_tools import carry, emulation, launches, nvrtc, ptx
from cuda_tools.emulation import EmulationError
from voxring.kernels.cpu import additive
from voxring.kernels.cuda import pairing, plans
from voxring.kernels.cuda.pairing import Pairs, pairs_plan
from voxring.study import Bins

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fibers and NVRTC's wheel are for Linux")

UNIT = 4


def whole(numbers):
    return [(0, len(numbers), 0, numbers.shape[1])]


def table(of, image, numbers, others=None, boxes=None, run=emulation.run, **how):
    """Counts of pairs, each both ways, of boxes one after the other."""
    others = numbers if others is None else others
    counts = np.zeros((of.classes, of.levels, of.levels), np.int64)
    for box in boxes or whole(numbers):
        plan = pairs_plan(of, image.dtype, numbers, others, box)
        buffers = carry.buffers_for(plan, image, None, ())
        carry.launch_all(plan, buffers, run, **how)
        counts += buffers["table"].astype(np.int64).reshape(counts.shape)
    return (counts + counts.transpose(0, 2, 1)).tolist()


def processors(of, bins, image, numbers, others):
    """The same by cpu/additive.py."""
    flat, starts = (numbers.reshape(-1), others.reshape(-1)), bins.starts(UNIT)
    return additive.pairs(image, *flat, of.classes, of.a, of.b, starts, of.steps, 1).tolist()


def naively(of, bins, image, numbers, distance, planar):
    """The same by the definition."""
    x = {q: of.a * int(image[q]) + of.b for q in naive.indices(image.shape)}
    counts = []
    for number in range(1, of.classes + 1):
        how = numbers, number, image.shape, UNIT, bins.bins, *map(int, bins.range), distance
        flat = naive_features.cooccurrences(x, *how, planar=planar)
        counts.append([flat[at : at + bins.bins] for at in range(0, len(flat), bins.bins)])
    return counts


def asked(classes, levels, low, high, distance, planar, a=1, b=0):
    """What is asked for, and the bins that it comes from."""
    bins = Bins(bins=levels, range=(low, high))
    steps = additive.directions(distance, planar=planar)
    return Pairs(classes, a, b, bins.starts(UNIT)[1:-1], steps), bins


@st.composite
def cases(draw):
    """An image with classes in blocks and alone, what is asked of it, and how it is cut."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.sampled_from([2, 3, 8, 34])))
    low = draw(st.sampled_from([-900, -3, 0]))
    span = draw(st.sampled_from([1, 7, 1000]))
    image = rng.integers(low * 2, (low + span) * 2, shape).astype(np.int16)
    image.flat[:2] = -(2**15), 2**15 - 1
    classes = draw(st.integers(1, 3))
    others = rng.integers(0, classes + 1, shape).astype(np.uint8)
    if draw(st.booleans()):
        others = np.repeat(others[..., ::4], 4, axis=2)[..., : shape[2]]
    numbers = np.where(rng.random(shape) < 0.6, others, 0).astype(np.uint8)
    a, b = draw(st.sampled_from([(1, 0), (3, -5), (-2, 7), (0, 2)]))
    distance, planar = draw(st.sampled_from([(1, False), (1, True), (2, False), (5, False)]))
    of, bins = asked(classes, draw(st.sampled_from([2, 3, 9])), low, low + span, distance, planar, a, b)
    z, y = draw(st.integers(1, max(1, shape[0] - 1))), draw(st.integers(0, shape[1]))
    boxes = [(0, z, 0, shape[1]), (z, shape[0], 0, y), (z, shape[0], y, shape[1])]
    boxes = [box for box in boxes if box[0] < box[1] and box[2] < box[3]]
    return of, bins, image, numbers, others, boxes, distance, planar


@settings(max_examples=25)
@given(cases(), st.sampled_from([0, 1, 5]), st.sampled_from([0, 20, plans.SHARED]))
def test_pairs_equal_the_definition_and_the_processor(case, schedule, shared):
    of, bins, image, numbers, others, boxes, distance, planar = case
    expected = naively(of, bins, image, others, distance, planar)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairing, "SHARED", shared)
        assert table(of, image, others, schedule=schedule) == expected
        assert table(of, image, others, boxes=boxes, schedule=schedule) == expected
        parts = processors(of, bins, image, numbers, others)
        assert table(of, image, numbers, others, boxes, schedule=schedule) == parts
    assert processors(of, bins, image, others, others) == expected


def example(dtype="int16"):
    """An image from end to end of its type, where not all voxels come first, and more rows than a block has warps."""
    rng = np.random.default_rng(2)
    shape = 3, 11, 37
    info = np.iinfo(dtype)
    image = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    others = np.repeat(rng.integers(0, 3, (3, 11, 10)), 4, axis=2)[..., :37].astype(np.uint8)
    numbers = np.where(rng.random(shape) < 0.7, others, 0).astype(np.uint8)
    of, bins = asked(2, 5, float(info.min / UNIT), float(info.max / UNIT), 1, False, 3, 7)
    image.flat[::5] = ((np.array(of.edges) - of.b) // of.a).astype(dtype)  # again and again: on the edges, or next to
    return of, bins, image, numbers, others


BOXES = [(0, 1, 0, 11), (1, 3, 0, 4), (1, 3, 4, 11)]


@pytest.mark.parametrize(
    "dtype",
    ["uint16", *(pytest.param(one, marks=pytest.mark.soak) for one in ("uint8", "int8", "uint32", "int32"))],
)
def test_types_of_voxels(dtype):
    of, bins, image, numbers, others = example(dtype)
    assert table(of, image, numbers, others) == processors(of, bins, image.astype(np.int64), numbers, others)


def test_a_block_that_could_overflow_a_cell_counts_in_the_table(monkeypatch):
    of, _, image, numbers, others = example()
    plan = pairs_plan(of, image.dtype, numbers, others, (0, 3, 0, 11))
    pairs = 8 * 37 * 13
    assert [one.grid for one in plan.launches] == [(5, 1, 1), (2, 3, 1)]
    for most, cells in ((pairs + 1, 2 * 5 * 5), (pairs, 0)):
        monkeypatch.setattr(pairing, "MOST_PAIRS", most)
        launch = pairs_plan(of, image.dtype, numbers, others, (0, 3, 0, 11)).launches[1]
        assert (launch.shared, launch.arguments[-1]) == (4 * cells, cells)
    many = Pairs(200, 1, 0, range(200), of.steps)
    monkeypatch.undo()
    assert pairs_plan(many, image.dtype, numbers, others, (0, 3, 0, 11)).launches[1].shared == 64 << 10


def test_ptx_equals_the_processor_without_a_race():
    of, bins, image, numbers, others = example()
    expected = processors(of, bins, image, numbers, others)
    assert table(of, image, numbers, others, BOXES, ptx.run, schedule=2) == expected


@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_machine_code_keeps_its_budget_and_takes_the_arguments(arch):
    of, _, image, numbers, others = example()
    text = plans.source_of("pairs.cu")
    for launch in pairs_plan(of, image.dtype, numbers, others, BOXES[0]).launches:
        compiled = nvrtc.compile(text, launch.macros, arch)
        needs = nvrtc.resources(compiled)[launch.kernel]
        assert (needs.spill_stores, needs.spill_loads, needs.stack) == (0, 0, 0)
        assert needs.registers <= 48
        assert launches.packed(launch) == nvrtc.parameter_table(compiled.image, launch.kernel)
    assert not re.search(r"\.f(16|32|64)\b", nvrtc.compile(text, launch.macros, arch, False).image.decode())


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["asan", "ubsan", "tsan"])
def test_sanitizers_find_nothing(mode):
    of, bins, image, numbers, others = example()
    expected = processors(of, bins, image, numbers, others)
    assert table(of, image, numbers, others, BOXES, mode=mode) == expected


ZEROS = "here[at] = 0;\n  __syncthreads();"
COUNTED = "    }\n  }\n  __syncthreads();\n"
ADDED = "atomicAdd(here + cell, 1u)"
FLUSHED = "atomicAdd(table + at, (u64)here[at])"


@pytest.mark.soak
@pytest.mark.parametrize(
    ("layer", "old", "new"),
    [
        ("value", "SIGNED ? 1ull << (8 * VOXEL - 1) : 0", "0"),
        ("value", "(s64)sign) + b;", "(s64)sign);"),
        ("value", "edges[middle] <= x", "edges[middle] < x"),
        ("value", "number ? edge_count : 0", "edge_count - 1"),
        ("value", "other >> 8 != number", "other == 0"),
        ("value", "const u32 number = numbers[row + x];", "const u32 number = coded[row + x] >> 8;"),
        ("value", " || (u32)x + dx >= (u32)columns", ""),
        ("value", "(u32)y + dy >= (u32)rows || ", ""),
        ("value", "first_row + own;", "own;"),
        ("value", "((s64)dz * rows + dy)", "((s64)dz * own_rows + dy)"),
        ("value", "& 0xffu)) * levels", "& 0xffu)) + levels"),
        ("value", "x < columns; x += 32", "x < columns - columns % 32; x += 32"),
        ("value", "at < cells_here; at += blockDim.x)\n    if", "at < cells_here - 1; at += blockDim.x)\n    if"),
        ("value", "here[at] = 0;", ";"),
        ("value", COUNTED, COUNTED.replace("__syncthreads();", "")),
        ("asan", "(u32)z + dz >= (u32)planes", "(u32)z + dz > (u32)planes"),
        ("asan", "(number - 1) * levels", "number * levels"),
        ("tsan", ZEROS, "here[at] = 0;"),
        ("ptx", ADDED, "here[cell]++"),
        ("ptx", FLUSHED, "table[at] += here[at]"),
        ("ptx", "cell < (u32)cells_here", "true"),
    ],
)
def test_a_planted_fault_is_found_by_its_layer(layer, old, new, monkeypatch):
    text = plans.source_of("pairs.cu")
    assert text.count(old) == 1
    if new == "true":
        monkeypatch.setattr(pairing, "SHARED", 40)
    of, bins, image, numbers, others = example()
    expected = processors(of, bins, image, numbers, others)
    how = {"boxes": BOXES, "source_text": text.replace(old, new)}
    if layer == "value":
        assert any(table(of, image, numbers, others, schedule=schedule, **how) != expected for schedule in (0, 1, 5))
        return
    how |= {"run": ptx.run} if layer == "ptx" else {"mode": layer}
    said = {"asan": "heap-buffer-overflow|SEGV", "tsan": "data race", "ptx": "race|out of bounds"}[layer]
    with pytest.raises(EmulationError, match=said):
        table(of, image, numbers, others, **how)
