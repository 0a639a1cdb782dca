"""What the CUDA kernels cost, counted without a GPU: python bench/gpu_cost.py

For each window: bytes that warps ask global memory for and PTX instructions, a voxel, counted while the PTX runs on
the CPU; machine instructions a voxel, from the loops in the listing of the cubin for sm_90; registers, and the warps
that fit an SM. And from these a prediction for an H100, which is arithmetic and no measurement:

    time = max(bytes / 3.35 TB/s, instructions / (132 SMs · 128 lanes · 1.7 GHz · EFFICIENCY))

Machine instructions: those in a loop's body outside the loops within it, whichever way its branches go, times how often
a warp goes round. Written to bench/results/gpu_cost.json; bench/readme.py quotes it in kernels/cuda/PROOF.md.
"""

import json
import re
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cuda_tools import nvrtc, ptx  # noqa: E402 - of the tests
from cuda_tools.cases import Case, Kind, window_sums  # noqa: E402
from voxring.kernels.cuda import plans  # noqa: E402

STATE = (256, 512, 512)
"""The image that a row stands for: its plan says how long segments are."""
SIZES = (3, 7, 15, 21)
FLOOR = 3  # bytes a voxel: 16 bits of image, 8 of class number
BANDWIDTH, LANES_A_SECOND, EFFICIENCY = 3.35e12, 132 * 128 * 1.7e9, 0.8
REGISTERS, SHARED, WARPS = 65536, 228 << 10, 64  # of an SM of sm_90
A_BLOCK = 227 << 10  # of shared memory, at the most
BARS = {2: {"bytes": (3.6, 21), "sass": (30, 21), "of_floor": 0.6}, 3: {"bytes": (8, 7), "of_floor": 0.4}}


def classical(axes, lane=4, voxel=2):
    """Bytes a voxel of a summed-area table in memory: a scan along each axis, then the corners, each row read once."""
    return voxel + lane + (axes - 1) * 2 * lane + 2 ** (axes - 1) * lane + FLOOR


def launch_of(shape, window):
    return plans.plan_for(shape, np.dtype("uint16"), window, "reflect", "reduce", shared=A_BLOCK).launches[0]


def numbers_of(launch):
    """The launch's scalar arguments that say how work is cut."""
    numbers = [int(argument) for argument in launch.arguments if not isinstance(argument, str)]
    names = ("rows columns pitch row_pitch plane_rows strips segments segment", 8)
    if launch.kernel == "box3d":
        names = ("planes rows columns pitch row_pitch plane_rows tiles tile_rows segment", 9)
    return dict(zip(names[0].split(), numbers[: names[1]], strict=True))


def staged_share(window):
    """(columns, rows) that a strip or a tile of a block is good for."""
    macros = dict(launch_of(STATE, window).macros)
    tall = 2 * macros["WARPS"] * macros.get("ROWS", 0)
    return (256 if window[0] == 1 else 128) - sum(plans.beside(window)), (tall - (window[1] - 1)) // 2 * 2


def counted(window, columns):
    """Bytes and PTX instructions a voxel, in an image of so many columns and of the segments of the real one."""
    flat = window[0] == 1
    segment = numbers_of(launch_of(STATE, window))["segment"]
    shape = (1, 2 * segment, columns) if flat else (segment, staged_share(window)[1], columns)
    rng = np.random.default_rng(1)
    image = rng.integers(0, 65536, shape, dtype=np.uint16)
    labels = (window_sums(rng.integers(0, 2, shape), (1, 5, 5), "nearest") > 12).astype(np.uint8)  # half, in blobs
    case = Case(Kind(window, "uint16", 1, framed=False, shared=A_BLOCK), image, labels, "reflect", None, segment)
    plan = case.plan
    buffers = case.buffers(plan)
    launch = plan.launches[0]
    given = {name: buffers[name] for name in launch.arguments if isinstance(name, str)}
    counts = ptx.run(launch, given, races=False, uninitialised=False)
    assert case.answer(plan, buffers) == case.expected
    asked = counts.global_loaded + counts.global_stored
    return {
        "shape": list(shape),
        "bytes": (asked - together(counts.instructions, plan)) / prod(shape),
        "ptx": counts.total() / prod(shape),
    }


def together(instructions, plan):
    """Bytes that lanes of a warp ask for at one address, but for one lane: index maps.

    Those are the loads of one word that are not of class numbers, which are loaded once.
    """
    words = sum(n for name, n in instructions.items() if name.startswith("ld.global") and ".v" not in name)
    return (4 * words - plan.buffers["numbers"].size) * 31 // 32


def loops(cubin):
    """The instructions of the one kernel of a cubin, and (first, last + 1) of each loop, by branches that go back."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = nvrtc.wheel_file("nvidia-cuda-nvdisasm", r"nvdisasm(\.exe)?")
        text = subprocess.run([str(tool), "-c", file.name], capture_output=True, text=True, check=True).stdout
    labels, branches, code = {}, [], []
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            code.append(instruction[1])
            if target := re.search(r"\bBRA .*`\((\.L_x_\d+)\)", instruction[1]):
                branches.append((target[1], len(code)))
    found = {(labels[label], at) for label, at in branches if labels[label] < at - 4}
    widest = {}
    for first, last in found:  # of branches back to one place the last one ends the loop
        widest[first] = max(last, widest.get(first, 0))
    return code, sorted(widest.items(), key=lambda loop: loop[0] - loop[1])


def own(loop, others):
    """Instructions of a loop outside those within it."""
    inner = [one for one in others if loop[0] <= one[0] and one[1] <= loop[1] and one != loop]
    covered = {at for first, last in inner for at in range(first, last)}
    return loop[1] - loop[0] - len(covered)


def a_half_above(code, above):
    """Instructions for the totals of half a warp in box3d: of a loop that loads those of several, its share."""
    loaded = [sum("LDS.128" in one for one in code[first:last]) / 2 for first, last in above]
    return min(((last - first) / n for (first, last), n in zip(above, loaded, strict=True) if n), default=0)


def machine(window):
    """Machine instructions a voxel, registers, and warps an SM, of the plan for the real image."""
    launch = launch_of(STATE, window)
    compiled = nvrtc.compile(plans.source_of(launch.source), launch.macros, 90)
    needs = nvrtc.resources(compiled)[launch.kernel]
    code, found = loops(compiled.image)
    macros, cut = dict(launch.macros), numbers_of(launch)
    columns, rows = staged_share(window)
    if launch.kernel == "box2d":
        main = found[0]
        before = (window[1] - 1) / cut["segment"] / 4  # rows that are only read in: a quarter of a row's work
        sass = own(main, found) * 32 / columns * (1 + before)
    else:
        planes = found[0]
        inner = [one for one in found[1:] if planes[0] <= one[0] and one[1] <= planes[1]]
        row_loop, *above = inner
        trips = rows / (2 * macros["WARPS"])
        above_all = macros["WARPS"] * a_half_above(code, above)
        per_plane = own(planes, found) + trips * (row_loop[1] - row_loop[0]) + above_all
        before = (window[0] - 1) / cut["segment"] * 5 * 22  # reading the first planes in: 22 a row of 8
        sass = (per_plane + before) * 32 * macros["WARPS"] / (rows * columns)
    warps = launch.block[0] // 32
    blocks = min(
        REGISTERS // (plans.up(needs.registers, 8) * launch.block[0]),
        SHARED // (launch.shared + 1024),
        WARPS // warps,
    )
    return {"sass": sass, "registers": needs.registers, "warps": blocks * warps, "shared": launch.shared}


def predicted(row):
    """Share of the time that the floor's bytes alone would take."""
    seconds = max(row["bytes"] / BANDWIDTH, row["sass"] / (LANES_A_SECOND * EFFICIENCY))
    return FLOOR / BANDWIDTH / seconds


def cost(window):
    axes = 2 if window[0] == 1 else 3
    columns = staged_share(window)[0]
    well = counted(window, 4 * columns if axes == 2 else 3 * columns)
    usual = counted(window, 512)
    row = {"axes": axes, "size": window[1], **well, "bytes_512": usual["bytes"], "shape_512": usual["shape"]}
    row |= machine(window)
    row |= {"of_floor": predicted(row), "of_floor_512": predicted({**row, "bytes": usual["bytes"]})}
    return row | {"classical": classical(axes)}


def table(results):
    """The rows in markdown."""
    lines = [
        "| window | bytes a voxel | 512 columns | classical | PTX | sm_90 instructions | registers | warps an SM | "
        "predicted, of the floor |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        cells = [
            "×".join([str(row["size"])] * row["axes"]),
            f"{row['bytes']:.2f}",
            f"{row['bytes_512']:.2f}",
            f"{row['classical']}",
            f"{row['ptx']:.1f}",
            f"{row['sass']:.1f}",
            f"{row['registers']}",
            f"{row['warps']}",
            f"{row['of_floor']:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    model = results["model"]
    lines.append(
        f"\nuint16, one class in half of the voxels, reflected; the floor is {FLOOR} bytes a voxel. Bytes are those "
        f"that warps ask for: what caches save is not in them. Predicted for an H100, not measured: the longer of "
        f"bytes / {model['bandwidth'] / 1e12:.2f} TB/s and instructions at {model['efficiency']:.0%} of what 132 SMs "
        f"issue at 1.7 GHz. Classical: a table in memory of 32-bit sums, a scan an axis."
    )
    return "\n".join(lines) + "\n"


def verdicts(results):
    """Each bar, and whether it is met."""
    for row in results["rows"]:
        bars, name = BARS[row["axes"]], f"{row['axes']}D, {row['size']}"
        for what in ("bytes", "sass"):
            bar, up_to = bars.get(what, (None, 0))
            if bar and row["size"] <= up_to:
                yield f"{name}: {what} {row[what]:.2f}, bar {bar}: {'met' if row[what] <= bar else 'NOT MET'}"
        bar = bars["of_floor"]
        met = "met" if row["of_floor"] >= bar else "NOT MET"
        yield f"{name}: {row['of_floor']:.0%} of the floor, bar {bar:.0%}: {met}"


def main():
    windows = [(1, size, size) for size in SIZES] + [(size,) * 3 for size in SIZES]
    results = {
        "model": {"bandwidth": BANDWIDTH, "lanes_a_second": LANES_A_SECOND, "efficiency": EFFICIENCY},
        "rows": [cost(window) for window in windows],
    }
    (ROOT / "bench" / "results" / "gpu_cost.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    print("\n".join(verdicts(results)))


if __name__ == "__main__":
    main()
