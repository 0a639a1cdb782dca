"""The images and ground truths that are timed: shapes, types and statistics of real ones, from fixed seeds."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Workload:
    """An image (planes, rows, columns), a mask of the same shape, and the window (planes, rows, columns)."""

    name: str
    image: np.ndarray
    mask: np.ndarray
    window: tuple
    apart: bool = False  # each plane is an image of its own

    @property
    def voxels(self):
        return self.image.size


def smooth(shape, spacing, seed):
    """A smooth random field: coarse noise, interpolated along each axis."""
    rng = np.random.default_rng(seed)
    field = rng.standard_normal([-(-n // s) + 2 for n, s in zip(shape, spacing, strict=True)], np.float32)
    for axis, (n, s) in enumerate(zip(shape, spacing, strict=True)):
        place = np.arange(n, dtype=np.float32) / s
        left = place.astype(int)
        part = (place - left).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        field = np.take(field, left, axis) * (1 - part) + np.take(field, left + 1, axis) * part
    return field


def intensities(shape, low, high, dtype, seed):
    """Smooth tissue plus noise, filling low … high."""
    image = np.empty(shape, dtype)
    field = smooth(shape, [12] + [24] * 2, seed)
    rng = np.random.default_rng(seed + 1)
    for plane in range(shape[0]):
        noisy = 0.5 + 0.18 * field[plane] + 0.03 * rng.standard_normal(shape[1:], np.float32)
        image[plane] = np.rint(np.clip(noisy, 0, 1) * (high - low) + low)
    return image


def blobs(shape, share, spacing, seed):
    """A mask of smooth blobs that covers a share of the voxels."""
    field = smooth(shape, spacing, seed)
    threshold = np.quantile(field.ravel()[:: max(1, field.size // 1_000_000)], 1 - share)
    return (field > threshold).view(np.uint8)


def ground_truth(shape, kind, seed=5):
    """A share of the voxels in blobs: dense 40%; full 100%; lesions 1%, dozens of about 25 voxels across; lesion 1% in
    one; specks 0.1%, many of about 8 across.
    """
    thin = shape[0] == 1
    if kind == "lesion":
        radius = (0.01 * 6 / math.pi) ** (1 / 3)  # in sides, for a ball; a disc of the same size in one plane
        axes = [
            np.linspace(-1, 1, n, dtype=np.float32) - shift for n, shift in zip(shape, (0, -0.15, 0.25), strict=True)
        ]
        z, y, x = np.ix_(*axes)
        return (z * z + y * y + x * x < radius * radius).view(np.uint8)
    if kind == "full":
        return np.ones(shape, np.uint8)
    share, spacing = {"dense": (0.4, 60), "lesions": (0.01, 60), "specks": (0.001, 20)}[kind]
    return blobs(shape, share, [1 if thin else spacing // 2, spacing, spacing], seed)


def slices_2d(kind):
    shape = (200, 512, 512)
    return Workload(
        f"2D 7×7 a slice, uint16 512×512×200, {kind}",
        intensities(shape, 0, 4095, np.uint16, 0),
        ground_truth(shape, kind),
        (1, 7, 7),
    )


def slices_apart():
    """5,000 images; 200 different ones, which repeat."""
    work = slices_2d("dense")
    image, mask = (np.tile(array, (25, 1, 1)) for array in (work.image, work.mask))
    return Workload("2D 7×7, uint16, 5,000 slices of 512×512, one call each", image, mask, work.window, apart=True)


def ct(kind, c):
    shape = (256, 512, 512)
    image = intensities(shape, -1024, 3071, np.int16, 10)
    return Workload(f"3D {c}³, int16 512×512×256, {kind}", image, ground_truth(shape, kind), (c, c, c))


def mri(kind, c):
    """The MNI152 T1 average brain that nilearn ships."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1).get_fdata()
    image = np.ascontiguousarray(np.rint(image / image.max() * 255).astype(np.uint8).T)
    return Workload(f"3D {c}³, uint8 MNI152 T1, {kind}", image, ground_truth(image.shape, kind), (c, c, c))


def slide(kind):
    shape = (1, 20_000, 20_000)
    image = np.tile(intensities((1, 2_000, 2_000), 0, 255, np.uint8, 20), (1, 10, 10))
    return Workload(f"2D 15×15, uint8 20000×20000, {kind}", image, ground_truth(shape, kind), (1, 15, 15))
