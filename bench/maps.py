"""Maps of local means and variances against every peer, in one run: python bench/maps.py [--quick] [--only TEXT].

For each workload: nanoseconds a voxel of voxring, of one pass that reads the image and writes float32, and of each
peer, on one thread and on two; and each peer's largest error, as a share of the largest exact answer. Before anything
is timed, all voxels of voxring's maps are checked against exact sums of numpy's. Results are float32 and borders
reflected, where a peer can; errors are those where windows lie inside. Writes bench/results/maps.json.
Takes about half an hour on two cores, a third of it with --quick.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numba
import numpy as np
from scipy import ndimage

from peers import set_threads, window_sums_of
from timing import interleaved, measure_all, once
from voxring.kernels import cpu
from workloads import intensities

RESULTS = Path(__file__).parent / "results" / "maps.json"
BORDER = cv2.BORDER_REFLECT
SLOW = {"SimpleITK BoxMean", "scikit-image integral", "torch avg_pool"}


@dataclass(frozen=True)
class Map:
    """An image (planes, rows, columns), the window, and whether variances are wanted."""

    name: str
    image: np.ndarray
    window: tuple
    variances: bool


@numba.njit(nogil=True)
def read_and_write(image, out):
    """The streaming limit."""
    for i in range(image.size):
        out[i] = image[i]


def reflected_sums(values, window):
    """Window sums by numpy.pad and numpy.cumsum."""
    for axis, c in enumerate(window):
        if c > 1:
            pad = [(c // 2 + 1, c - 1 - c // 2) if a == axis else (0, 0) for a in range(3)]
            values = np.cumsum(np.pad(values, pad, mode="symmetric"), axis=axis)
            n = values.shape[axis] - c
            values = values.take(range(c, c + n), axis) - values.take(range(n), axis)
    return values


def check(work, made):
    """Every voxel against the exact numerator, divided in float64 and rounded; flat windows slice by slice."""
    size = int(np.prod(work.window))
    parts = zip(work.image[:, None], made[:, None], strict=True) if work.window[0] == 1 else [(work.image, made)]
    for image, answer in parts:
        wide = image.astype(np.int64)
        sums = reflected_sums(wide, work.window)
        if work.variances:
            exact = (size * reflected_sums(wide * wide, work.window) - sums * sums) / np.float64(size**2)
        else:
            exact = sums / np.float64(size)
        assert np.array_equal(answer, exact.astype(np.float32)), "not exact: nothing is timed"


def ours(work, threads):
    out = np.empty(work.image.shape, np.float32)
    function = cpu.variance_map if work.variances else cpu.mean_map

    def run():
        return function(work.image, work.window, "reflect", out=out, threads=threads)

    return run


def opencv(work):
    """boxFilter and sqrBoxFilter of each plane; then, for windows of several planes, running sums along z."""
    planes, rows, columns = work.image.shape
    cz, cy, cx = work.window
    size = cz * cy * cx
    out = np.empty(work.image.shape, np.float32)

    def flat():
        square = np.empty((rows, columns), np.float32)
        for plane, to in zip(work.image, out, strict=True):
            cv2.boxFilter(plane, cv2.CV_32F, (cx, cy), dst=to, borderType=BORDER)
            if work.variances:
                cv2.sqrBoxFilter(plane, cv2.CV_32F, (cx, cy), dst=square, borderType=BORDER)
                cv2.subtract(square, cv2.multiply(to, to), dst=to)
        return out

    def place(z):
        return -1 - z if z < 0 else 2 * planes - 1 - z if z >= planes else z

    def boxes(kind, function):
        """For each plane, the sums over its window: a running sum of the planes' own."""
        kept = {}

        def box(z):
            if place(z) not in kept:
                kept[place(z)] = function(work.image[place(z)], kind, (cx, cy), normalize=False, borderType=BORDER)
            return kept[place(z)]

        total = sum(box(z) for z in range(-(cz // 2), cz - cz // 2))
        for z in range(planes):
            yield total
            cv2.add(total, box(z + cz - cz // 2), dst=total)
            cv2.subtract(total, box(z - cz // 2), dst=total)
            kept.pop(z - cz - 1, None)

    def deep():
        if not work.variances:
            for total, to in zip(boxes(cv2.CV_32S, cv2.boxFilter), out, strict=True):
                np.multiply(total, np.float32(1 / size), out=to, dtype=np.float32, casting="unsafe")
            return out
        pairs = zip(boxes(cv2.CV_64F, cv2.boxFilter), boxes(cv2.CV_64F, cv2.sqrBoxFilter), strict=True)
        for (total, squares), to in zip(pairs, out, strict=True):
            mean = total / size
            to[:] = squares / size - mean * mean
        return out

    return flat if cz == 1 else deep


def scipy_uniform(work):
    """uniform_filter in float32; variances as E[v²] − E[v]², as its users write them."""
    image = work.image.astype(np.float32) if work.variances else work.image
    out, square = np.empty(image.shape, np.float32), np.empty(image.shape if work.variances else 0, np.float32)

    def run():
        ndimage.uniform_filter(image, work.window, output=out, mode="reflect")
        if work.variances:
            ndimage.uniform_filter(image * image, work.window, output=square, mode="reflect")
            np.subtract(square, out * out, out=out)
        return out

    return run


def simpleitk(work):
    """BoxMean of float32; variances are those that BoxSigma squares, and divides by |W| − 1."""
    import SimpleITK as sitk  # noqa: N813

    image = sitk.Cast(sitk.GetImageFromArray(work.image), sitk.sitkFloat32)
    radius = [c // 2 for c in reversed(work.window)]
    if work.variances:
        return lambda: sitk.Square(sitk.BoxSigma(image, radius))
    return lambda: sitk.BoxMean(image, radius)


def skimage_integral(work):
    """integral_image in 64 bits and its differences, of what is inside."""
    from skimage.transform import integral_image

    def sums(image, window):
        return window_sums_of(integral_image(image, dtype=np.int64), window)

    def one(image, window):
        size = int(np.prod(window))
        mean = sums(image, window) / size
        if work.variances:
            return (sums(image.astype(np.int64) ** 2, window) / size - mean * mean).astype(np.float32)
        return mean.astype(np.float32)

    def run():
        if work.window[0] == 1:
            return [one(plane, work.window[1:]) for plane in work.image]
        return one(work.image, work.window)

    return run


def torch_pool(work):
    """avg_pool along one axis after the other, on float32, zeros outside."""
    import torch

    image = torch.from_numpy(work.image.astype(np.float32))[None, None]
    passes = [
        ([c if a == axis else 1 for a in range(3)], [c // 2 if a == axis else 0 for a in range(3)])
        for axis, c in enumerate(work.window)
        if c > 1
    ]

    def pooled(values):
        for kernel, padding in passes:
            values = torch.nn.functional.avg_pool3d(values, kernel, 1, padding)
        return values

    def run():
        with torch.no_grad():
            mean = pooled(image)
            return pooled(image * image) - mean * mean if work.variances else mean

    return run


PEERS = {
    "OpenCV box": opencv,
    "scipy f32": scipy_uniform,
    "SimpleITK BoxMean": simpleitk,
    "scikit-image integral": skimage_integral,
    "torch avg_pool": torch_pool,
}


def error(name, answer, work, exact):
    """The largest error of a peer's answer, as a share of the largest exact one, where windows lie inside."""
    size = int(np.prod(work.window))
    inside = tuple(slice(c // 2, n - (c - 1) // 2) for c, n in zip(work.window, work.image.shape, strict=True))
    if name == "SimpleITK BoxMean":
        import SimpleITK as sitk  # noqa: N813

        answer = sitk.GetArrayViewFromImage(answer) * ((size - 1) / size if work.variances else 1)
    elif name == "torch avg_pool":
        answer = answer[0, 0]
    answer = np.asarray(answer)[inside]
    largest = np.float64(0)
    for one, other in zip(answer, exact[inside], strict=True):  # a plane at a time: these are large
        largest = max(largest, np.abs(one.astype(np.float64) - other).max())
    return float(largest / exact.max())


def measure(work, *, quick):
    """One workload, on one thread and on two."""
    exact = ours(work, 1)()
    check(work, exact)
    row = {"workload": work.name, "voxels": work.image.size, "ns": {}, "error": {}, "missing": []}
    flat, flat_out = work.image.reshape(-1), np.empty(work.image.size, np.float32)
    for threads in (1, 2):
        set_threads(threads)
        print(f"  {work.name}: {threads} thread{'s' * (threads > 1)} …", file=sys.stderr, flush=True)
        functions = {"voxring": ours(work, threads), "read and write": lambda: read_and_write(flat, flat_out)}
        slow = {}
        for name, prepare in PEERS.items():
            if name in SLOW and quick:
                continue
            try:
                function = prepare(work)
            except ModuleNotFoundError as missing:
                row["missing"] = sorted({*row["missing"], f"{name} ({missing.name})"})
                continue
            if threads == 1:
                row["error"][name] = error(name, function(), work, exact)
            (slow if name in SLOW else functions)[name] = function
        times = interleaved(functions, budget=15) | once(slow)
        row["ns"][str(threads)] = {name: seconds / work.image.size * 1e9 for name, seconds in times.items()}
    return row


def show(row):
    one = row["ns"]["1"]
    us, limit = one["voxring"], one["read and write"]
    print(f"\n{row['workload']}  ({row['voxels']:,} voxels)")
    print(f"  voxring {us:.3f} ns a voxel; two threads {us / row['ns']['2']['voxring']:.2f}× as fast")
    print(f"  read and write {limit:.3f} ({us / limit:.2f}×)")
    for name, ns in sorted(one.items(), key=lambda item: item[1]):
        if name in PEERS:
            print(f"    {name:<22} {ns:8.3f} ns   {ns / us:7.1f}×   error {row['error'][name]:.1e}", flush=True)
    if row["missing"]:
        print(f"    not installed: {', '.join(row['missing'])}")


def workloads():
    """Makers, since images are large; each gives means and variances."""

    def both(name, image, window):
        yield Map(f"mean, {name}", image, window, False)
        yield Map(f"variance, {name}", image, window, True)

    image = intensities((200, 512, 512), 0, 4095, np.uint16, 0)
    yield from both("2D 7×7 a slice, uint16 512×512×200", image, (1, 7, 7))
    image = intensities((256, 512, 512), -1024, 3071, np.int16, 10)
    for c in (5, 15):
        yield from both(f"3D {c}³, int16 512×512×256", image, (c, c, c))
    image = np.tile(intensities((1, 2_000, 2_000), 0, 255, np.uint8, 20), (1, 4, 4))
    yield from both("2D 15×15, uint8 8000×8000", image, (1, 15, 15))


if __name__ == "__main__":
    measure_all(__doc__, RESULTS, ((work.name, lambda work=work: work) for work in workloads()), measure, show)
