"""Cost against window size and against voxels, with fitted exponents: python bench/scaling.py.

Prints both tables, and draws bench/results/scaling.png.
"""

import argparse
from pathlib import Path

import numpy as np

from timing import interleaved
from voxring.kernels import cpu
from workloads import ground_truth, intensities

OUT = Path(__file__).parent / "results" / "scaling.png"
WINDOWS = (3, 5, 7, 9, 11, 15, 21, 25, 31)


def ours(image, mask, window):
    return lambda: cpu.reduce(image, mask, [1], window, "reflect", threads=1)


def against_windows(image, mask, *, flat):
    functions = {c: ours(image, mask, (1 if flat else c, c, c)) for c in WINDOWS}
    return {c: seconds / image.size * 1e9 for c, seconds in interleaved(functions, budget=60).items()}


def against_voxels(powers):
    times = {}
    for power in powers:
        planes = 2 ** (power // 3)
        rows = 2 ** ((power - power // 3) // 2)
        image = intensities((planes, rows, 2**power // planes // rows), -1024, 3071, np.int16, 3)
        mask = ground_truth(image.shape, "dense")
        times[2**power] = interleaved({"run": ours(image, mask, (5, 5, 5))}, rounds=3, budget=20)["run"]
        print(
            f"  2^{power:<3} {times[2**power] * 1e3:10.2f} ms  {times[2**power] / image.size * 1e9:.3f} ns a voxel",
            flush=True,
        )
    return times


def exponent(costs):
    """Slope of log cost against log size."""
    sizes = np.log([*costs])
    return np.polyfit(sizes, np.log([*costs.values()]), 1)[0]


def ratios(costs, steps):
    """How much more the larger of each two sizes costs."""
    return "  ".join(f"{a} → {b}: {costs[b] / costs[a]:.2f}×" for a, b in steps)


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    image = intensities((256, 512, 512), -1024, 3071, np.int16, 1)
    mask = ground_truth(image.shape, "dense")
    flat, volume = (against_windows(image, mask, flat=flat) for flat in (True, False))
    for name, costs in (("a slice", flat), ("volume", volume)):
        shown = "  ".join(f"{c}: {ns:.3f}" for c, ns in costs.items())
        print(f"ns a voxel by window, {name}: {shown}; exponent {exponent(costs):.2f}")
        print(f"  {ratios(costs, ((7, 15), (15, 31), (5, 15)))}  (doubling: at most 1.2× wanted; 5³ to 15³: 1.35×)")
    print("window 5³ by voxels")
    voxels = against_voxels(range(16, 31, 2))
    doubled = {power: voxels[2**power] ** 0.5 / voxels[2 ** (power - 2)] ** 0.5 for power in range(18, 31, 2)}
    print("  doubling the voxels:", "  ".join(f"to 2^{power}: {ratio:.2f}×" for power, ratio in doubled.items()))
    print(f"exponent {exponent(voxels):.3f}; doubling takes {2 ** exponent(voxels):.2f}×, at most 2.05× wanted")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot([*flat], [*flat.values()], "o-", label=f"c × c a slice, exponent {exponent(flat):.2f}")
    left.plot([*volume], [*volume.values()], "s-", label=f"c³, exponent {exponent(volume):.2f}")
    left.set(xlabel="window size c", ylabel="ns a voxel", title="int16 512×512×256, dense, 1 thread", ylim=(0, None))
    left.legend()
    right.loglog([*voxels], [*voxels.values()], "o-", label=f"5³, exponent {exponent(voxels):.3f}")
    right.set(xlabel="voxels", ylabel="seconds", title="int16, dense, 1 thread")
    right.legend()
    figure.savefig(OUT, dpi=110)
    print(f"drawn: {OUT}")


if __name__ == "__main__":
    main()
