"""Maps of means and variances against loops over the window in fractions, and against scipy."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy import ndimage

from voxring import ImageError, StudyError, local_mean, local_sum, local_variance

BORDERS = ["reflect", "mirror", "nearest", "constant", "clip"]


def place(at, length, border):
    """The coordinate that a border reads at ``at``; None outside."""
    if 0 <= at < length:
        return at
    if border == "nearest":
        return min(max(at, 0), length - 1)
    if border == "reflect":
        at %= 2 * length
        return min(at, 2 * length - 1 - at)
    if border == "mirror":
        period = max(1, 2 * length - 2)
        at %= period
        return min(at, period - at)
    return None


def windows(image, size, border, fill):
    """For every voxel the values in its window, as fractions."""
    for centre in np.ndindex(image.shape):
        values = []
        for step in np.ndindex(*size):
            read = [
                place(q - c // 2 + s, n, border) for q, c, s, n in zip(centre, size, step, image.shape, strict=True)
            ]
            if None not in read:
                values.append(Fraction(float(image[tuple(read)])))
            elif border == "constant":
                values.append(Fraction(fill))
        yield values


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(
    ("shape", "size"), [((4, 5, 6), (3, 2, 4)), ((5, 7), (4, 3)), ((2, 3), (7, 1)), ((1, 1), (2, 2))]
)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_means_and_variances_are_the_exact_quotients_rounded(shape, size, border, dtype):
    image = np.random.default_rng(7).integers(0, 200, shape).astype(dtype)
    if dtype == "float32":
        image = image / np.float32(16)
    fill = 3.0 if border == "constant" else 0.0
    sums, means, variances = [], [], []
    for values in windows(image, size, border, fill):
        mean = sum(values) / len(values)
        sums.append(sum(values))
        means.append(mean)
        variances.append(sum(v * v for v in values) / len(values) - mean * mean)
    options = {"fill": fill, "fraction_bits": 8}
    for expected, function in ((sums, local_sum), (means, local_mean), (variances, local_variance)):
        exact = np.array([float(value) for value in expected]).reshape(shape)
        assert np.array_equal(function(image, size, border, dtype="float64", **options), exact)
        narrow = function(image, size, border, dtype="float32", **options)
        assert narrow.dtype == np.float32
        assert np.array_equal(narrow, exact.astype(np.float32))
        out = np.full(shape, np.nan, np.float32)
        assert function(image, size, border, out=out, threads=2, **options) is out
        assert np.array_equal(out, narrow)
    whole = np.array([int(value * (256 if dtype == "float32" else 1)) for value in sums]).reshape(shape)
    for kind in ("int64", "int32") if dtype != "uint8" else ("int64",):
        made = local_sum(image, size, border, dtype=kind, **options)
        assert made.dtype == kind
        assert np.array_equal(made, whole)


def test_sums_that_an_int32_may_not_hold_are_refused_by_what_the_image_holds():
    image = np.full((3, 1 << 9), 2**31 // (1 << 8) - 1, np.int32)
    held = local_sum(image, (1, 1 << 8), dtype="int32")
    assert np.array_equal(held, np.full(image.shape, 2**31 - (1 << 8)))
    image[1, 1] = -(2**31) // (1 << 8)
    with pytest.raises(ImageError, match="int32 holds: take int64"):
        local_sum(image, (1, 1 << 8), dtype="int32")
    assert local_sum(image, (1, 1 << 8))[0, 0] == 2**31 - (1 << 8)
    with pytest.raises(ImageError, match="int64 or int32 or float32"):
        local_sum(image, 3, out=np.empty(image.shape, np.uint32))


def test_float32_sums_are_the_nearest_floats():
    """Beyond 2^24 not all sums are: among them halfway cases, which go to the even one."""
    image = np.arange(2**24 - 6, 2**24 + 6, dtype=np.int32)[None].repeat(2, 0)
    for window in ((1, 1), (2, 1)):
        sums = local_sum(image, window, "nearest")
        nearest = np.array([[np.float32(int(value)) for value in row] for row in sums])
        assert (nearest != sums).any()
        assert np.array_equal(local_sum(image, window, "nearest", dtype="float32"), nearest)
        assert np.array_equal(local_sum(-image, window, "nearest", dtype="float32"), -nearest)


def test_even_windows_lie_as_in_scipy():
    rng = np.random.default_rng(2)
    image = rng.integers(-500, 500, (6, 7, 8), np.int32)
    for size in [(2, 4, 6), (1, 5, 5), (9, 3, 20)]:
        for border in ("reflect", "mirror", "nearest", "constant"):
            sums, counts = local_mean(image, size, border, exact=True)
            kernel = np.ones(size, np.int64)
            oracle = ndimage.correlate(image.astype(np.int64), kernel, mode=border)
            assert np.array_equal(sums, oracle)
            assert counts.ravel().tolist() == [kernel.size]
            mean = local_mean(image, size, border)
            filtered = ndimage.uniform_filter(image.astype(np.float64), size, mode=border)
            assert np.allclose(mean, filtered, rtol=0, atol=1e-9)


def test_local_mean_clip_counts_what_is_inside():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    sums, counts = local_mean(image, (3, 4), "clip", exact=True)
    for y, x in np.ndindex(3, 4):
        window = image[max(0, y - 1) : y + 2, max(0, x - 2) : x + 2]
        assert sums[y, x] == window.sum()
        assert counts[y, x] == window.size


def test_local_mean_of_floats_and_fill():
    image = np.array([[0.5, 1.5], [2.0, 4.0]])
    assert local_mean(image, 3, "constant", fill=1.0).tolist() == [[13 / 9] * 2] * 2
    sums, counts = local_mean(image, (1, 2), "nearest", exact=True, fraction_bits=4)
    assert sums.tolist() == [[16, 32], [64, 96]]
    assert counts.tolist() == [[2]]


def test_maps_of_an_image_on_disk_go_to_disk(tmp_path):
    image = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.uint8, (300, 200))
    image[:] = np.random.default_rng(5).integers(0, 255, image.shape)
    out = np.lib.format.open_memmap(tmp_path / "mean.npy", "w+", np.float32, image.shape)
    local_mean(image, 15, out=out)
    out.flush()
    assert np.array_equal(np.load(tmp_path / "mean.npy"), local_mean(np.array(image), 15, dtype="float32"))


BOUNDED = """
import resource, sys
import numpy as np
from voxring import local_mean, local_variance

options = {"out": np.empty((2, 3), np.float32), "threads": 1}
for function in (local_mean, local_variance):
    function(np.ones((2, 3), np.uint8), 15, **options)  # compile, before memory is bounded
with open("/proc/self/status") as status:
    now = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (now + (8 << 20), resource.RLIM_INFINITY))
image = np.load(sys.argv[1], mmap_mode="r+")
for function in (local_mean, local_variance):
    out = np.lib.format.open_memmap(function.__name__ + ".npy", "w+", np.float32, image.shape)
    function(image, 15, out=out, threads=1)
try:
    np.empty(16 << 20, np.uint8)
except MemoryError:
    print("bounded")
"""


def test_a_wide_image_on_disk_is_mapped_within_8_mebibytes(tmp_path):
    """32 MB in, 128 MB out, each of 40,000 columns."""
    image = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.uint8, (800, 40_000))
    image[:] = np.random.default_rng(5).integers(0, 255, image.shape, np.uint8)
    image.flush()
    command = [sys.executable, "-c", BOUNDED, tmp_path / "image.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("bounded\n", 0), done.stderr
    for function in (local_mean, local_variance):
        out = np.load(tmp_path / f"{function.__name__}.npy", mmap_mode="r")
        for columns in (slice(0, 300), slice(2_000, 2_300), slice(39_700, 40_000)):
            part = function(np.ascontiguousarray(image[:, columns]), 15, dtype="float32")
            assert np.array_equal(out[:, columns][:, 10:-10], part[:, 10:-10])


def test_variance_of_a_constant_is_zero_and_of_huge_windows_refused():
    assert not local_variance(np.full((9, 9), 65535, np.uint16), 7).any()
    with pytest.raises(ImageError, match="smaller window"):
        local_variance(np.full((9, 9, 9), 2**31 - 1, np.int32), 9)
    with pytest.raises(ImageError, match="smaller window"):
        local_mean(np.full((2, 2), 2.0**30), (400, 400))


@pytest.mark.parametrize(
    "out",
    [
        np.empty((3, 4), np.float16),
        np.empty((4, 3), np.float32),
        np.empty((4, 3), np.float32).T,
        np.empty((3, 4), int),
        np.broadcast_to(np.float32(0), (3, 4)),
        np.frombuffer(bytes(48), np.float32).reshape(3, 4),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out):
    image = np.ones((3, 4), np.uint8)
    for function in (local_mean, local_variance):
        with pytest.raises(ImageError, match="out: expected a C-contiguous"):
            function(image, 3, out=out)


def test_misuse_of_maps_is_named():
    image = np.ones((3, 4), np.uint8)
    with pytest.raises(ImageError, match="exact=True returns integers"):
        local_mean(image, 3, exact=True, out=np.empty((3, 4)))
    with pytest.raises(StudyError, match="border"):
        local_variance(image, 3, "wrap")
    with pytest.raises(ImageError, match="finite"):
        local_variance(np.array([[np.nan, 1.0]]), 3)
