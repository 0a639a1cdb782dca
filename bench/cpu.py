"""CPU reductions against every peer, on the same work in the same run: python bench/cpu.py [--quick] [--only TEXT].

For each workload: nanoseconds a voxel of voxring (moments included), of one masked pass over image and ground truth
(the streaming limit), of one plain read, and of each peer; ratios; and each peer's error against the exact answer,
which voxring is checked to give before anything is timed. Writes bench/results/cpu.json, which bench/readme.py reads.
Takes about an hour on two cores, a third of it with --quick.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np

from peers import BORDERS, PEERS, SLOW, set_threads
from timing import interleaved, measure_all, once
from voxring.kernels import Reduction, cpu
from workloads import ct, mri, slices_2d, slices_apart, slide

RESULTS = Path(__file__).parent / "results" / "cpu.json"


@numba.njit(nogil=True)
def masked_pass(image, mask):
    """The streaming limit: read both arrays once, multiply and add, in 64-bit partial sums of short 32-bit ones."""
    total = np.int64(0)
    for start in range(0, image.size, 4096):
        partial = np.int32(0)
        one, chosen = image[start : start + 4096], mask[start : start + 4096]
        for i in range(one.size):
            partial = np.int32(partial + np.int32(one[i]) * np.int32(chosen[i]))
        total += partial
    return total


@numba.njit(nogil=True)
def plain_read(array):
    """Read an array once."""
    total = np.int64(0)
    for start in range(0, array.size, 4096):
        partial = np.int32(0)
        some = array[start : start + 4096]
        for i in range(some.size):
            partial = np.int32(partial + np.int32(some[i]))
        total += partial
    return total


NUMPY_PAD = {"reflect": "symmetric", "nearest": "edge", "constant": "constant"}


def exact_total(work, border):
    """Σ of window sums over the mask, from a table of numpy's; slice by slice where the window is flat."""
    if work.window[0] == 1 and work.image.shape[0] > 1:
        parts = zip(work.image[:, None], work.mask[:, None], strict=True)
        return sum(exact_total(replace(work, image=image, mask=mask), border) for image, mask in parts)
    table = work.image.astype(np.int64)
    for axis, c in enumerate(work.window):
        if c > 1:
            pad = [(c // 2, c - 1 - c // 2) if a == axis else (0, 0) for a in range(3)]
            table = np.cumsum(np.pad(table, pad, mode=NUMPY_PAD[border]), axis=axis)
            table = np.pad(table, [(1, 0) if a == axis else (0, 0) for a in range(3)])
            after = np.take(table, range(c, table.shape[axis]), axis)
            table = after - np.take(table, range(table.shape[axis] - c), axis)
    return int(table[work.mask.view(bool)].sum())


def exact_moments(work):
    """Σ v and Σ v² over the mask."""
    values = work.image[work.mask.view(bool)].astype(np.int64)
    return int(values.sum()), int((values * values).sum())


def ours(work, threads):
    """One call for the image; or one for each of its planes, dealt out to so many threads, if they are images."""

    def one(image, mask, threads):
        (answer,) = cpu.reduce(image, mask, [1], work.window, "reflect", threads=threads)
        return answer

    def some(first):
        planes = zip(work.image[first::threads, None], work.mask[first::threads, None], strict=True)
        return sum((one(*plane, 1) for plane in planes), Reduction())

    def many():
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(some, range(threads)), Reduction())

    return many if work.apart else lambda: one(work.image, work.mask, threads)


def measure(work, *, quick):
    """One workload, on one thread and on two."""
    answer = ours(work, 1)()
    slow = not quick and work.name.endswith("dense")
    peers = {name: prepare for name, prepare in PEERS.items() if slow or name not in SLOW}
    borders = {"reflect", *(BORDERS[name] for name in peers if name in BORDERS)}
    totals = {border: exact_total(work, border) for border in borders}
    assert sum(part for _, part in answer.groups.values()) == totals["reflect"], "not exact: nothing is timed"
    assert (answer.total, answer.squares) == exact_moments(work), "not exact: nothing is timed"
    row = {"workload": work.name, "voxels": work.voxels, "ns": {}, "error": {}, "missing": []}
    flat_image, flat_mask = work.image.reshape(-1), work.mask.reshape(-1)
    for threads in (1, 2):
        set_threads(threads)
        print(f"  {work.name}: {threads} thread{'s' * (threads > 1)} …", file=sys.stderr, flush=True)
        functions = {
            "voxring": ours(work, threads),
            "masked pass": lambda: masked_pass(flat_image, flat_mask),
            "plain read": lambda: plain_read(flat_image),
            "mask alone": lambda: plain_read(flat_mask),
        }
        long = {}
        for name, prepare in peers.items():
            try:
                function = prepare(work)
            except ModuleNotFoundError as error:
                row["missing"] = sorted({*row["missing"], f"{name} ({error.name})"})
                continue
            if function is None:
                continue
            if threads == 1:
                total = totals[BORDERS.get(name, "reflect")]
                row["error"][name] = abs(function() - total) / max(1, abs(total))
            (long if name in SLOW else functions)[name] = function
        times = interleaved(functions, budget=15)
        times |= once(long)
        row["ns"][str(threads)] = {name: seconds / work.voxels * 1e9 for name, seconds in times.items()}
    return row


def workloads():
    """Name and maker of each; made one at a time, since they are large."""
    kinds = ("dense", "full", "lesions", "lesion", "specks")
    yield from ((f"2D 7×7 {kind}", lambda kind=kind: slices_2d(kind)) for kind in kinds)
    for c in (5, 15):
        yield from ((f"3D {c}³ int16 {kind}", lambda kind=kind, c=c: ct(kind, c)) for kind in kinds)
    for c in (5, 15):
        yield f"3D {c}³ uint8 MNI152 dense", lambda c=c: mri("dense", c)
    yield "2D 15×15 slide dense", lambda: slide("dense")
    yield "2D 15×15 slide lesions", lambda: slide("lesions")
    yield "2D 7×7 5,000 slices", slices_apart


def show(row):
    one = row["ns"]["1"]
    us = one["voxring"]
    peers = {name: ns for name, ns in one.items() if name in PEERS}
    best = min(peers, key=peers.get)
    print(f"\n{row['workload']}  ({row['voxels']:,} voxels)")
    print(f"  voxring {us:.3f} ns a voxel; two threads {us / row['ns']['2']['voxring']:.2f}× as fast")
    print(
        f"  masked pass {one['masked pass']:.3f} ({us / one['masked pass']:.2f}×), plain read {one['plain read']:.3f}"
    )
    print(f"  best peer {best}: {peers[best] / us:.1f}× slower")
    for name, ns in sorted(peers.items(), key=lambda item: item[1]):
        print(f"    {name:<22} {ns:8.3f} ns   {ns / us:7.1f}×   error {row['error'][name]:.1e}", flush=True)
    if row["missing"]:
        print(f"    not installed: {', '.join(row['missing'])}")


if __name__ == "__main__":
    measure_all(__doc__, RESULTS, workloads(), measure, show)
