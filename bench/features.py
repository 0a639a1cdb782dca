"""A stack of feature maps against the same features in floats by scipy.ndimage and numpy: python bench/features.py.

Intensity, gradient, and mean and standard deviation at three windows, of 64 × 256 × 256 voxels of 16 bits, on one
thread. Before anything is timed, every voxel of ours is held against theirs. Nanoseconds a voxel, the median of some
runs in turn. Writes bench/results/features.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from timing import interleaved, machine
from voxring import Study
from voxring.features import feature_maps
from workloads import intensities

RESULTS = Path(__file__).parent / "results" / "features.json"
WINDOWS = (3, 7, 11)


def ours(image):
    windowed = [{"kind": kind, "window": window} for window in WINDOWS for kind in ("mean", "std")]
    study = Study.of(
        name="bench",
        classes={"all": 1},
        feature=[{"kind": "intensity"}, {"kind": "gradient"}, *windowed],
        window={"border": "mirror"},
        bounds={"intensity": 2**16},
    )
    return feature_maps(image, study, threads=1)


def theirs(image):
    """Floats of 64 bits; the variance as the difference of means, which loses digits."""
    x = image.astype(np.float64)
    squares = np.square(x)
    made = [
        x,
        np.sqrt(sum(np.square(ndimage.correlate1d(x, [-0.5, 0, 0.5], axis, mode="mirror")) for axis in range(3))),
    ]
    for window in WINDOWS:
        mean = ndimage.uniform_filter(x, window, mode="mirror")
        spread = ndimage.uniform_filter(squares, window, mode="mirror") - np.square(mean)
        made += [mean, np.sqrt(np.maximum(spread, 0, out=spread), out=spread)]
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs, nothing written")
    quick = parser.parse_args().quick
    image = intensities((64, 256, 256), -1000, 3000, np.int16, 1)
    for mine, other in zip(ours(image), theirs(image), strict=True):
        assert np.allclose(mine / 2**16, other, rtol=1e-6, atol=1e-3), "not the same features: nothing is timed"
    times = interleaved({"voxring": lambda: ours(image), "scipy": lambda: theirs(image)}, rounds=3 if quick else 7)
    found = {name: 1e9 * seconds / image.size for name, seconds in times.items()}
    for name, nanoseconds in found.items():
        print(f"{name:10} {nanoseconds:7.1f} ns a voxel")
    print(f"{found['scipy'] / found['voxring']:.1f} times as fast")
    if not quick:
        RESULTS.write_text(json.dumps({"machine": machine(), "nanoseconds a voxel": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
