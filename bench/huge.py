"""Images that are larger than memory: python bench/huge.py [--side N], or --bands for a whole slide.

Without --bands: writes a tiled TIFF of SIDE × SIDE bytes to a temporary folder, and maps its local means, sums and
variances over 15×15, float32, from the file to a file of 4 · SIDE² bytes. For each it prints seconds, nanoseconds a
voxel and the peak of the memory that Python and numpy asked for (tracemalloc), all beyond the result, which is mapped
into memory. The corner and the middle of each map are checked against the map of a cut.

With --bands: a slide and its ground truth, both of compressed tiles, of which a pattern of 2 × 2 comes again and again.
A study of stored intensities and one of z-scores are reduced, and the map of local means is made band by band, none of
which is kept. Their integers are held against sums that numpy makes of slides of a few periods: every total of a slide
of k periods is a polynomial of degree 2 in k, which three of them determine, and a fourth must meet. Each band is held
against the map of such a small slide. Prints seconds, processor seconds, and how far the process grew.
"""

import argparse
import ctypes
import tempfile
import time
import tracemalloc
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import tifffile

import voxring
from batch import resident
from voxring.batch import image_totals
from voxring.batch.manifest import Row
from voxring.fixedpoint import zscore

WINDOW = 15
TILE = 512
PERIOD = 2 * TILE
BAND = 512


def tiles(side):
    """Noise, tile by tile; as a whole it may not fit."""
    rng = np.random.default_rng(0)
    for _ in range((-(-side // TILE)) ** 2):
        yield rng.integers(0, 256, (TILE, TILE), np.uint8)


def maps(side, folder):
    """Maps from file to file."""
    path = Path(folder, "image.tif")
    tifffile.imwrite(path, tiles(side), shape=(side, side), dtype=np.uint8, tile=(TILE, TILE), photometric="minisblack")
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


def pattern():
    """A period of a slide, noise of 4 bits on a ramp, and of its ground truth: a lesion across one corner of tiles."""
    rng = np.random.default_rng(1)
    y, x = np.ogrid[:PERIOD, :PERIOD]
    image = (rng.integers(0, 16, (PERIOD, PERIOD)) + (x + 3 * y) // 32).astype(np.uint8)
    truth = ((x - 500) ** 2 + (y - 530) ** 2 < 150**2).astype(np.uint8)
    return image, truth


def repeated(period, side):
    """The pattern, as often as it fits, and its start."""
    times = -(-side // PERIOD)
    return np.tile(period, (times, times))[:side, :side]


def write_periodic(path, period, side):
    """Each tile is packed once and written wherever it stands."""
    ready = {
        (y, x): zlib.compress(period[y * TILE :, x * TILE :][:TILE, :TILE].tobytes()) for y in (0, 1) for x in (0, 1)
    }
    across = -(-side // TILE)
    tifffile.imwrite(
        path,
        (ready[y % 2, x % 2] for y in range(across) for x in range(across)),
        shape=(side, side),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="minisblack",
        compression="zlib",
        bigtiff=True,
    )


def by_numpy(image, truth):
    """Of the class: n, Σ of window sums, Σv, Σv²; of the whole image: n, Σv, Σv². By a table of sums."""
    before = WINDOW // 2
    padded = np.pad(image, (before, WINDOW - 1 - before), mode="symmetric").astype(np.int64)
    table = np.pad(padded.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    sums = table[WINDOW:, WINDOW:] - table[:-WINDOW, WINDOW:] - table[WINDOW:, :-WINDOW] + table[:-WINDOW, :-WINDOW]
    wide, inside = image.astype(np.int64), truth == 1
    mine = wide[inside]
    totals = int(inside.sum()), int(sums[inside].sum()), int(mine.sum()), int((mine**2).sum())
    return *totals, image.size, int(wide.sum()), int((wide**2).sum())


def at_periods(k, known):
    """The polynomial of degree 2 through the values at 1, 2 and 3 periods, at k."""
    one, two, three = known
    second = three - 2 * two + one
    return one + (two - one) * (k - 1) + second * ((k - 1) * (k - 2) // 2)


def expected(side):
    """What a slide of this size sums to, and the map of one that has all of its rows and columns but whole periods."""
    image, truth = pattern()
    rest, k = side % PERIOD, side // PERIOD
    found = [by_numpy(*(repeated(of, rest + times * PERIOD) for of in (image, truth))) for times in (1, 2, 3, 4)]
    for column in zip(*found, strict=True):
        assert at_periods(4, column[:3]) == column[3], "sums are no polynomial in the number of periods"
    totals = [at_periods(k, column) for column in zip(*found[:3], strict=True)]
    small = repeated(image, rest + 3 * PERIOD)
    return totals, voxring.local_mean(small, WINDOW, dtype="float32")


def band_of(small, side, rows):
    """A band of the map of the large slide, from that of the small one: its ends, and its middle period repeated."""
    at = np.array([_place(y, side, len(small)) for y in range(*rows)])
    middle = small[at, PERIOD : 2 * PERIOD]
    times = side // PERIOD - 2
    return np.concatenate((small[at, :PERIOD], np.tile(middle, (1, times)), small[at, 2 * PERIOD :]), axis=1)


def _place(y, side, length):
    if y < PERIOD:
        return y
    if y >= side - (length - 2 * PERIOD):
        return y - side + length
    return PERIOD + y % PERIOD


class Watch:
    """Seconds, processor seconds, and how far the process grew."""

    def __enter__(self):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak anew
        self._base, self._start, self._cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error):
        self.seconds, self.cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        self.grown = resident("VmHWM") - self._base

    def say(self, what, side):
        """One line."""
        print(
            f"{what:<22} {side}×{side}: {self.seconds:.1f} s, processor {self.cpu:.1f} s, "
            f"{self.cpu / side**2 * 1e9:.2f} ns a pixel, grew by {self.grown / 2**20:.0f} MiB of {side**2 / 2**20:.0f}",
            flush=True,
        )


def bands(side, folder):
    """Totals and the map of a slide that is never whole in memory, nor its map on disk."""
    if side < 4 * PERIOD:
        raise SystemExit(f"--bands takes a --side of at least {4 * PERIOD}")
    (n, window_sums, total, squares, *of_all), small = expected(side)
    image, truth = pattern()
    slide, segmentation = Path(folder, "slide.tif"), Path(folder, "truth.tif")
    write_periodic(slide, image, side)
    write_periodic(segmentation, truth, side)
    row = Row(1, slide, segmentation, "")
    common = {"name": "huge", "classes": {"a": 1}, "window": {"size": WINDOW}}
    for standardise in ({"method": "none"}, {"method": "zscore", "foreground": "all"}):
        study = voxring.Study.of(**common, standardise=standardise)
        voxring.local_totals(image[:600, :600], truth[:600, :600], study)  # compiled
        a, b = study.unit, 0
        if standardise["method"] == "zscore":
            made = zscore(*of_all, study.standardise.fraction_bits)
            (a,), (b,) = made.a, made.b
        with Watch() as watch:
            found = image_totals(row, study)["a"]
        watch.say(f"totals, {standardise['method']}", side)
        mean = Fraction(a * window_sums, WINDOW**2) + b * n
        assert (found.voxels, Fraction(found.sum, study.denominator)) == (n, mean / study.unit)
        assert found.total == a * total + b * n
        assert found.squares == a * a * squares + 2 * a * b * total + b * b * n
    opened, reach = voxring.open_image(slide), WINDOW // 2
    with Watch() as watch:
        for top in range(0, side, BAND):
            rows = top, min(top + BAND, side)
            first, stop = max(rows[0] - reach, 0), min(rows[1] + reach, side)
            part = opened.read_block((first, stop), (0, side)).voxels
            made = voxring.local_mean(part, WINDOW, dtype="float32")[rows[0] - first :][: rows[1] - rows[0]]
            assert np.array_equal(made, band_of(small, side, rows)), f"rows {rows} of the map"
    watch.say("map, in bands, checked", side)


def main():
    """Write, time, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--bands", action="store_true")
    parser.add_argument("--folder", help="where the temporary folder is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        (bands if options.bands else maps)(options.side, folder)


if __name__ == "__main__":
    main()
