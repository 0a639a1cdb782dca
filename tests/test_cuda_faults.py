"""Faults planted in the CUDA kernels, one at a time, each found by the layer meant for it; and none in the rest.

A fault replaces a text that the source holds exactly once. What finds it: ``value``, a wrong number in some schedule;
``emulator``, what CUDA forbids threads that meet; ``asan`` and ``tsan``; ``ptx``, checks of each access of the compiled
code; ``arguments``, the launch against the declaration; ``budget``, the compiler's word; ``floats``.
"""

import re
import sys
from typing import NamedTuple

import numpy as np
import pytest

from cuda_tools import carry, emulation, launches, nvrtc, ptx
from cuda_tools.cases import Case, Kind, example
from cuda_tools.emulation import EmulationError
from cuda_tools.feature_cases import FeatureCase
from cuda_tools.launches import LaunchError
from voxring.kernels.cuda import plans
from voxring.kernels.cuda.features import Scale

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fibers and NVRTC's wheel are for Linux")

FLAT = example(Kind((1, 3, 5), "uint16", classes=3), (2, 40, 400), segment=16)
NARROW = example(Kind((1, 4, 31), "int8", framed=False), (1, 20, 250), border="mirror")
SUMS = example(Kind((1, 3, 5), "uint16", what="sums"), (1, 9, 400))
SQUARES = example(Kind((1, 5, 4), "int16", what="squares"), (2, 12, 60))
LONG = example(Kind((1, 3, 5), "int32", classes=3), (1, 30, 300), "high", share=1.0)
ONE = example(Kind((1, 3, 5), "uint32"), (2, 30, 60), share=1.0)
RINGED = example(Kind((4, 4, 3), "int16"), (8, 91, 140), segment=3)
DEEP = example(Kind((3, 3, 3), "int16", classes=3), (7, 91, 140), segment=4)
LARGE = example(Kind((18, 31, 31), "uint16", framed=False), (3, 12, 40), "high", share=1.0)
ANY = example(Kind((1, 33, 3), "uint16", classes=3), (2, 20, 70))
CUBES = example(Kind((1, 2, 3), "int32", what="cubes_high"), (2, 5, 9))
SMALL = np.random.default_rng(1).integers(0, 4, (2, 6, 9)).astype(np.int16)
HALVES = FeatureCase(SMALL, (1, 2, 2), "constant", Scale(-3, 0, 0, 3, 2**15))
LARGEST = (SMALL % 2 * 2 - 1) * np.int32(1_480_000_000) + SMALL
BROAD = FeatureCase(LARGEST, (2, 2, 3), "clip", Scale(2, 1, 12, 0, 2**31 - 1))
GRADIENT = FeatureCase(SMALL, (1, 1, 1), "clip", Scale(3, 1, 0, 0, 2**15), ("gradient",))
CLEAN = {name: case for name, case in globals().items() if isinstance(case, (Case, FeatureCase))}


class Fault(NamedTuple):
    """One fault, the case that shows it, and the layer that finds it with the words it says."""

    name: str
    case: str
    old: str
    new: str
    layer: str = "value"
    says: str = ""
    soak: bool = False


SYNC = "  __syncwarp();\n#pragma unroll"
AGAIN = "__syncwarp();  // before the next row's prefixes take their place"
TOTALS = "__syncthreads();  // totals are there; the rows of the plane before were read"
ROWS = "__syncthreads();  // rows are there; totals were read"
RING = 'static_assert(!RING || (RING == AHEAD + 2 && !MANY), "a ring for one class");'
SHUFFLE = "const lane_t other = __shfl_up_sync(ALL, before, step);"

FAULTS = [
    # Where threads meet
    Fault("prefixes read before they are written", "FLAT", SYNC, "#pragma unroll"),
    Fault("the same, as a race", "FLAT", SYNC, "#pragma unroll", "ptx", "race|uninitialised", soak=True),
    Fault("the same, to TSan", "FLAT", SYNC, "#pragma unroll", "tsan", "data race", soak=True),
    Fault("prefixes replaced while they are read", "FLAT", AGAIN, "", "tsan", "data race"),
    Fault("the same in three dimensions", "DEEP", AGAIN, "", "ptx", "race", soak=True),
    Fault("prefixes of a tile read too early", "DEEP", SYNC, "#pragma unroll", soak=True),
    Fault("totals read before they are written", "DEEP", TOTALS, ""),
    Fault("the same, as a race between warps", "DEEP", TOTALS, "", "tsan", "data race", soak=True),
    Fault("rows read before they are written", "DEEP", ROWS, ""),
    Fault(
        "a shuffle in a branch",
        "FLAT",
        SHUFFLE,
        "lane_t other = 0;\n    if (part >= step) other = __shfl_up_sync(ALL, before, step);",
        "emulator",
        "left the kernel|divergent|deadlock|mask",
    ),
    Fault("a barrier in a branch", "DEEP", ROWS, "if (warp) __syncthreads();", "emulator", "divergent"),
    Fault("an add that is not atomic", "FLAT", "atomicAdd(to, low);", "*(to) += low;", "ptx", "race"),
    # Memory
    Fault(
        "a row beyond the last",
        "FLAT",
        "row_at[min(y + CY, rows + CY - 2)]",
        "row_at[y + CY]",
        "asan",
        "heap-buffer-overflow|SEGV",
    ),
    Fault(
        "columns beyond the pitch", "FLAT", "there = staged < pitch", "there = true", "ptx", "out of bounds", soak=True
    ),
    Fault(
        "a map's columns before the first",
        "SUMS",
        "if (owned[0]) put_four(sums_at, window);",
        "if (x < columns) put_four(sums_at, window);",
        "asan",
        "heap-buffer-overflow|SEGV",
    ),
    Fault(
        "shared memory of one warp too many",
        "FLAT",
        "memory + warp * (ring_bytes",
        "memory + (warp + WARPS) * (ring_bytes",
        "ptx",
        "out of bounds",
        soak=True,
    ),
    Fault(
        "the same, to ASan",
        "NARROW",
        "memory + warp * (ring_bytes",
        "memory + (warp + WARPS) * (ring_bytes",
        "asan",
        "overflow|poison|SEGV|unknown",
        soak=True,
    ),
    Fault(
        "the table of one class too many",
        "FLAT",
        "(u64)(number - 1) *",
        "(u64)number *",
        "ptx",
        "out of bounds",
        soak=True,
    ),
    Fault("one place too many", "ANY", "at < places; at +=", "at <= places; at +=", "ptx", "out of bounds"),
    Fault(
        "a misaligned vector",
        "FLAT",
        "plane_rows * pitch + staged;",
        "plane_rows * pitch + (staged ^ 1);",
        "ptx",
        "misaligned",
        soak=True,
    ),
    Fault(
        "the same, to UBSan",
        "SUMS",
        "plane_rows * pitch + staged;",
        "plane_rows * pitch + (staged ^ 1);",
        "ubsan",
        "misaligned",
        soak=True,
    ),
    Fault(
        "pads that nobody wrote",
        "NARROW",
        "prefix[lane - PAD] = prefix[STRIP + lane] = 0",
        "(void)0",
        "ptx",
        "uninitialised",
    ),
    Fault("a row of zeros that nobody wrote", "DEEP", "if (half == 0) put_row(down, zeros);", "", soak=True),
    # Where voxels are
    Fault(
        "a ring of one row too many",
        "FLAT",
        "newest = newest == (CY - 1) * STRIP",
        "newest = newest == CY * STRIP",
        soak=True,
    ),
    Fault(
        "the centre is another row",
        "FLAT",
        "centre = CY / 2 * STRIP",
        "centre = (CY - 1) / 2 * STRIP + STRIP",
        soak=True,
    ),
    Fault(
        "nothing on the left of a strip",
        "FLAT",
        "#define LEFT ((BEFORE + 4) / 4 * 4)",
        "#define LEFT (BEFORE / 4 * 4)",
    ),
    Fault(
        "nothing on the right of a strip",
        "NARROW",
        "#define RIGHT ((LEFT + AFTER + PER - 1)",
        "#define RIGHT ((LEFT + PER - 1)",
        soak=True,
    ),
    Fault(
        "rows of a tile without their halo",
        "DEEP",
        "#define OUT_ROWS ((TALL - (CY - 1)) & ~1)",
        "#define OUT_ROWS TALL",
        soak=True,
    ),
    Fault("another row at the border", "FLAT", "row_at[y0 + k]", "row_at[y0 + k + 1]", soak=True),
    Fault("a prefix too late", "FLAT", "striped(j - BEFORE - 1)", "striped(j - BEFORE)", soak=True),
    Fault("the plane that leaves is another", "DEEP", "plane_at[last - CZ]", "plane_at[last - CZ + 1]", soak=True),
    Fault("half a warp counts its own rows twice", "DEEP", "h < half; h++", "h <= half; h++", soak=True),
    Fault("strips that overlap count twice", "NARROW", "(lane * PER < STRIP - RIGHT)", "(lane * PER < STRIP)"),
    Fault(
        "segments that overlap count twice", "FLAT", "min(rows, y0 + segment)", "min(rows, y0 + segment + 1)", soak=True
    ),
    Fault("one scan of two rows", "DEEP", "((part + LANES - step) / LANES)", "(lane >= step)"),
    Fault(
        "a row beyond the tile's last",
        "DEEP",
        "if (owned[1] && y < stop) number",
        "if (owned[1]) number",
        "asan",
        "heap-buffer-overflow|SEGV",
        soak=True,
    ),
    Fault("what leaves a running sum is another", "ANY", "place[q - 1]", "place[q]", soak=True),
    # Bits that wait for their windows
    Fault("a ring of one plane too few", "RINGED", RING, "#undef RING\n#define RING (AHEAD + 1)", "tsan", "data race"),
    Fault("bits of another plane", "RINGED", "last - CZ / 2;", "last - (CZ - 1) / 2;", soak=True),
    Fault("bits of another row", "RINGED", "half + CY / 2) * 16", "half + (CY - 1) / 2) * 16", soak=True),
    Fault("moments of planes that others take", "RINGED", "wait >= z0 && wait < z1", "wait < z1", soak=True),
    Fault("moments of rows that others take", "RINGED", "? stop - top : 0", "? rows - top : 0", soak=True),
    Fault("moments of what is in no class", "RINGED", "* 255u;", "| 255u;"),
    Fault("bits in another order", "RINGED", "last * 0x10204080u", "first * 0x10204080u", soak=True),
    # Numbers
    Fault("high halves of a warp dropped", "ONE", "warp_sum((value) >> 32)", "0"),
    Fault("high halves of a thread dropped", "LONG", "atomicAdd(at + 1, value >> 32);", "", soak=True),
    Fault("eight sums in 32 bits that do not fit", "LARGE", "#if ROW_FITS\n", "#if 1\n"),
    Fault(
        "lanes of 32 bits where 64 are needed",
        "LONG",
        "#if WIDE\ntypedef u64 lane_t;",
        "#if 0\ntypedef u64 lane_t;",
        "arguments",
        "map",
    ),
    Fault("a product of halves forgotten", "ONE", "sums.mixed += (u64)low * high;", "", soak=True),
    Fault("the bias is not put on", "NARROW", "some.word[i] ^= BIAS_BITS", "some.word[i] ^= 0u"),
    Fault("squares of what is outside", "SQUARES", "#define NOTHING BIAS_BITS", "#define NOTHING 0u"),
    Fault("the group of another row", "FLAT", "row_part[y]", "row_part[y0]"),
    Fault(
        "the group of another column",
        "FLAT",
        "middle : row_group + column_part[j]",
        "middle : row_group + column_part[j ^ 1]",
        soak=True,
    ),
    Fault(
        "sums of the class before are lost",
        "FLAT",
        "    flush_thread(sums, table);\n    clear(sums, number);",
        "    clear(sums, number);",
    ),
    Fault("a strip's sums are lost", "FLAT", "  flush_warp(sums, into);", "", soak=True),
    Fault("voxels counted in two groups", "ANY", "moments.voxels = 0;", "", soak=True),
    # What the compiler is told
    Fault(
        "more blocks an SM than registers for them",
        "DEEP",
        "WIDE || WARPS > 8 ? 1 : 2)",
        "WIDE || WARPS > 8 ? 1 : 3)",
        "budget",
    ),
    Fault("a parameter of another type", "FLAT", "int middle_x)", "u64 middle_x)", "arguments", "middle_x"),
    Fault(
        "a parameter too many",
        "DEEP",
        "int middle_x)",
        "int middle_x, int more)",
        "arguments",
        "takes 21 arguments, got 20",
    ),
    Fault("a parameter of another width, to the machine code", "FLAT", "int middle_x)", "u64 middle_x)", "table"),
    Fault("a sum through a float", "FLAT", "sums.total += total;", "sums.total += (u64)(float)total;", "floats"),
    # Features
    Fault("a half goes up", "HALVES", "(twice & 1) && (!exact || (below & 1))", "twice & 1"),
    Fault("a root's remainder is forgotten", "HALVES", "zero(rest) && zero(root)", "zero(root)", soak=True),
    Fault("a quotient's remainder is forgotten", "HALVES", "whole && zero(over)", "whole", soak=True),
    Fault("what lies outside is 0", "HALVES", " + w.scale[FILL] * w.outside", "", soak=True),
    Fault("squares of what lies outside are 0", "HALVES", "(u64)w.scale[fill] * (u64)w.outside", "0", soak=True),
    Fault("the sign of a falling scale is lost", "HALVES", "(w.scale[A] < 0) ?", "false ?", soak=True),
    Fault("a root without its last bit", "HALVES", "!zero(bit); bit", "bit.word[0] > 1; bit", soak=True),
    Fault("the mean over places that lie outside", "BROAD", "w.scale[CLIP] ? w.outside : 0", "0", soak=True),
    Fault("a carry between residues and floors is lost", "BROAD", " + (low < (u64)all << bits)", ""),
    Fault("a borrow between words is lost", "BROAD", "borrow = (some > a.word[i]) +", "borrow = 0 *", soak=True),
    Fault("a product without its high words", "BROAD", "carry = high +", "carry =", soak=True),
    Fault("a quotient without its first bit", "BROAD", "more < 0 ? 0 : more);", "--more < 0 ? 0 : more);", soak=True),
    Fault("floors of cubes without their low part", "CUBES", "(square & 0x7fffffffll)", "0", soak=True),
    Fault("half a difference at the edge", "GRADIENT", "2 * (high - low)", "high - low", soak=True),
    Fault("the neighbour is another", "GRADIENT", "plane + row + x_at[x + 2]", "plane + row + x_at[x + 1]", soak=True),
    Fault(
        "a column beyond the last",
        "GRADIENT",
        "x_at[x + 2] < 0",
        "x_at[x + 3] < 0",
        "asan",
        "heap-buffer-overflow|SEGV",
        soak=True,
    ),
    Fault("a half through a float", "HALVES", "below = twice >> 1", "below = (u64)((double)twice / 2)", "floats"),
    Fault(
        "a pitch of another type",
        "HALVES",
        "int pitch) {",
        "u64 pitch) {",
        "arguments",
        "pitch",
    ),
]

SCHEDULES = (0, 1, 7)


def planted(fault):
    """The text of the source with the fault in it."""
    text = plans.source_of(CLEAN[fault.case].plan.launches[0].source)
    assert text.count(fault.old) == 1, f"{fault.name}: the source holds its text {text.count(fault.old)} times"
    return text.replace(fault.old, fault.new)


def outcome(case, layer, text=None):
    """What a layer says of a case: "clean", "a wrong number", or its finding."""
    plan = case.plan
    text = plans.source_of(plan.launches[0].source) if text is None else text
    try:
        for schedule in SCHEDULES if layer == "value" else (0,):
            buffers = case.buffers(plan)
            if layer in ("asan", "ubsan", "tsan"):
                if found := sanitized(plan, buffers, layer, text):
                    return found
            else:
                run = ptx.run if layer == "ptx" else emulation.run
                carry.launch_all(plan, buffers, run, schedule=schedule, source_text=text)
            if case.answer(plan, buffers) != case.expected:
                return "a wrong number"
    except (EmulationError, LaunchError) as error:
        return str(error)
    return "clean"


def sanitized(plan, buffers, mode, text):
    """The finding of a sanitizer in the launches of a plan, which run in one process."""
    cases = [
        emulation.Case(launch, {a: buffers[a] for a in launch.arguments if isinstance(a, str)}, 0, text)
        for launch in plan.launches
    ]
    return emulation.run_sanitized(mode, cases)


def compiled(case, text, cubin=True):
    launch = case.plan.launches[-1]
    return launch, nvrtc.compile(text, launch.macros, 90, cubin)


def found_by_the_compiler(fault, text):
    """Whether what NVRTC makes of a source is refused."""
    launch, made = compiled(CLEAN[fault.case], text, cubin=fault.layer != "floats")
    if fault.layer == "floats":
        return bool(re.search(r"\.f(16|32|64)\b", made.image.decode()))
    if fault.layer == "table":
        return nvrtc.parameter_table(made.image, launch.kernel) != launches.packed(launch)
    return nvrtc.resources(made)[launch.kernel].spill_stores > 0


@pytest.mark.parametrize(
    "fault", [pytest.param(f, id=f"{f.layer}: {f.name}", marks=pytest.mark.soak if f.soak else ()) for f in FAULTS]
)
def test_a_planted_fault_is_found_by_its_layer(fault):
    text = planted(fault)
    if fault.layer in ("budget", "table", "floats"):
        assert found_by_the_compiler(fault, text)
        assert not found_by_the_compiler(fault, plans.source_of(CLEAN[fault.case].plan.launches[0].source))
        return
    said = outcome(CLEAN[fault.case], fault.layer, text)
    if fault.layer == "value":
        assert said == "a wrong number"
    else:
        assert re.search(fault.says, said), said
        assert said not in ("clean", "a wrong number")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("FLAT", "DEEP", "ANY") else pytest.mark.soak) for name in CLEAN]
)
def test_nothing_is_found_where_nothing_was_planted(name):
    assert outcome(CLEAN[name], "value") == "clean"


SANITIZED = [(mode, name) for mode in ("asan", "tsan", "ptx") for name in CLEAN]
ORDINARY = {("asan", "DEEP"), ("asan", "ANY"), ("tsan", "FLAT"), ("tsan", "DEEP"), ("ptx", "SUMS")}


@pytest.mark.parametrize(
    ("mode", "name"),
    [pytest.param(*one, marks=() if one in ORDINARY else pytest.mark.soak) for one in SANITIZED],
)
def test_no_checker_finds_a_thing_in_the_kernels(mode, name):
    assert outcome(CLEAN[name], mode) == "clean"


def test_every_fault_has_its_own_name():
    assert len({(fault.name, fault.layer) for fault in FAULTS}) == len(FAULTS) >= 20


def test_cases_have_what_the_faults_need():
    flat, deep = FLAT.plan.launches[0], DEEP.plan.launches[0]
    assert flat.grid[0] > 2
    assert deep.grid[0] > 2
    assert all(case.labels.any() for case in CLEAN.values() if isinstance(case, Case))
