"""Maps of a 2D image that is larger than the memory they take: python bench/huge.py [--side N].

Writes a tiled TIFF of SIDE × SIDE bytes to a temporary folder, and maps its local means, sums and variances over
15×15, float32, from the file to a file. For each it prints seconds, nanoseconds a voxel and the peak of the memory
that Python and numpy asked for (tracemalloc), all beyond the result, which is mapped into memory. The corner and the
middle of each map are checked against the map of a cut.
"""

import argparse
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import tifffile

import voxring

WINDOW = 15
TILE = 512


def tiles(side):
    """Noise, tile by tile; as a whole it may not fit."""
    rng = np.random.default_rng(0)
    for _ in range((-(-side // TILE)) ** 2):
        yield rng.integers(0, 256, (TILE, TILE), np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000)
    side = parser.parse_args().side
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.tif")
        tifffile.imwrite(
            path, tiles(side), shape=(side, side), dtype=np.uint8, tile=(TILE, TILE), photometric="minisblack"
        )
        image = voxring.open_image(path)
        parts = [(slice(0, 300), slice(0, 300)), (slice(side // 2, side // 2 + 300),) * 2]
        for function in (voxring.local_mean, voxring.local_sum, voxring.local_variance):
            function(np.zeros((64, 64), np.uint8), WINDOW, dtype="float32")  # compiled
            out = np.memmap(Path(folder, "map"), np.float32, "w+", shape=(side, side))
            tracemalloc.start()
            start = time.perf_counter()
            function(image, WINDOW, out=out)
            seconds = time.perf_counter() - start
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            for rows, columns in parts:
                y, x = max(rows.start - WINDOW, 0), max(columns.start - WINDOW, 0)
                cut = image.read_block((y, rows.stop + WINDOW), (x, columns.stop + WINDOW)).voxels
                made = function(cut, WINDOW, dtype="float32")[rows.start - y :, columns.start - x :][:300, :300]
                assert np.array_equal(out[rows, columns], made), "the map is not that of the cut"
            print(
                f"{function.__name__:<14} {side}×{side}: {seconds:.1f} s, {seconds / side**2 * 1e9:.2f} ns a voxel, "
                f"peak {peak / 2**20:.0f} MiB; the image has {side**2 / 2**20:.0f}, the map {4 * side**2 / 2**20:.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
