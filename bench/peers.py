"""The same work by others: filter the image with the window and add up what lies in the mask.

Each returns Σ over the mask of window sums, as that package's own arithmetic gives it. The masked sum is the fastest
that a user of the package would write. Borders are reflected, as voxring's are by default, where the package can
(`BORDERS` names the others). A peer whose package is missing is left out of the table by name.
"""

import cv2
import numpy as np
from scipy import ndimage


def masked_sum(filtered, mask):
    """Σ of filtered over mask, plane by plane, through OpenCV's masked mean: the fastest stock masked sum."""
    total = 0.0
    for plane, chosen in zip(filtered, mask, strict=True):
        count = cv2.countNonZero(chosen)
        if count:
            total += cv2.mean(plane, chosen)[0] * count
    return total


def scipy_filter(dtype):
    """scipy.ndimage.uniform_filter with output of a type."""

    def prepare(work):
        out = np.empty(work.image.shape, dtype)
        size = int(np.prod(work.window))

        def run():
            ndimage.uniform_filter(work.image, work.window, output=out, mode="reflect")
            return masked_sum(out, work.mask) * size

        return run

    return prepare


def opencv_box(work):
    """cv2.boxFilter with integer sums on each plane, after a running sum along z where the window has one."""
    planes, rows, columns = work.image.shape
    cz, cy, cx = work.window
    kind = cv2.CV_32S if planes > 1 else cv2.CV_32F
    border = cv2.BORDER_REFLECT | cv2.BORDER_ISOLATED
    out = np.empty((rows, columns), np.int32 if planes > 1 else np.float32)
    band = 32

    def slices():
        total = 0.0
        for plane, mask in zip(work.image, work.mask, strict=True):
            cv2.boxFilter(plane, kind, (cx, cy), dst=out, normalize=False, borderType=border)
            total += cv2.mean(out, mask)[0] * cv2.countNonZero(mask)
        return total

    def volume():
        total = 0.0
        for y in range(0, rows, band):
            end = min(y + band, rows)
            first, last = max(0, y - cy // 2), min(rows, end + cy - 1 - cy // 2)
            part = np.ascontiguousarray(work.image[:, first:last]).reshape(planes, -1)
            along_z = cv2.boxFilter(part, cv2.CV_32S, (1, cz), normalize=False, borderType=border)
            along_z = along_z.reshape(planes, last - first, columns)
            for z in range(planes):
                # Where the band ends inside the image, its halo rows keep the reflection away from what is used.
                box = cv2.boxFilter(along_z[z], cv2.CV_32S, (cx, cy), normalize=False, borderType=border)
                mask = work.mask[z, y:end]
                total += cv2.mean(box[y - first : end - first], mask)[0] * cv2.countNonZero(mask)
        return total

    return slices if cz == 1 else volume


def opencv_integral(work):
    """cv2.integral and four look-ups a voxel; planes only."""
    if work.window[0] != 1:
        return None
    _, rows, columns = work.image.shape
    _, cy, cx = work.window
    top, left = np.clip(np.arange(rows) - cy // 2, 0, rows), np.clip(np.arange(columns) - cx // 2, 0, columns)
    bottom = np.clip(np.arange(rows) - cy // 2 + cy, 0, rows)
    right = np.clip(np.arange(columns) - cx // 2 + cx, 0, columns)
    depth = cv2.CV_32S if work.image.dtype == np.uint8 else cv2.CV_64F

    def run():
        total = 0.0
        for plane, mask in zip(work.image, work.mask, strict=True):
            table = cv2.integral(plane, sdepth=depth)
            y, x = np.nonzero(mask)
            corners = table[bottom[y], right[x]] - table[top[y], right[x]]
            corners = corners - table[bottom[y], left[x]] + table[top[y], left[x]]
            total += float(corners.sum(dtype=np.float64))
        return total

    return run


def simpleitk_box(work):
    """SimpleITK.BoxMean on float32; odd windows only, and ITK repeats the border voxel."""
    import SimpleITK as sitk  # noqa: N813

    image = sitk.Cast(sitk.GetImageFromArray(work.image), sitk.sitkFloat32)
    radius = [c // 2 for c in reversed(work.window)]
    size = int(np.prod(work.window))

    def run():
        filtered = sitk.BoxMean(image, radius)
        return masked_sum(sitk.GetArrayViewFromImage(filtered), work.mask) * size

    return run


def window_sums_of(table, window):
    """Differences of a whole summed-area table: window sums of what lies inside, by slices of arrays."""
    for axis, c in enumerate(window):
        if c == 1:
            continue
        low, high, n = c // 2, c - 1 - c // 2, table.shape[axis]
        table = np.moveaxis(table, axis, 0)
        sums = np.empty_like(table)
        sums[: n - high] = table[high:]
        sums[n - high :] = table[-1]
        sums[low + 1 :] -= table[: n - low - 1]
        table = np.moveaxis(sums, 0, axis)
    return table


def skimage_integral(work):
    """skimage.transform.integral_image in 64 bits, and its differences (its own integrate takes microseconds each)."""
    from skimage.transform import integral_image

    def total(image, mask, window):
        return float(window_sums_of(integral_image(image, dtype=np.int64), window)[mask.view(bool)].sum())

    def slices():
        return sum(total(p, m, work.window[1:]) for p, m in zip(work.image, work.mask, strict=True))

    return slices if work.window[0] == 1 else lambda: total(work.image, work.mask, work.window)


def torch_pool(work):
    """torch avg_pool along one axis after the other, on float32."""
    import torch

    image = torch.from_numpy(work.image.astype(np.float32))[None, None]
    size = int(np.prod(work.window))
    passes = [
        ([c if a == axis else 1 for a in range(3)], [c // 2 if a == axis else 0 for a in range(3)])
        for axis, c in enumerate(work.window)
        if c > 1
    ]

    def run():
        with torch.no_grad():
            filtered = image
            for kernel, padding in passes:
                filtered = torch.nn.functional.avg_pool3d(filtered, kernel, 1, padding)
        return masked_sum(filtered[0, 0].numpy(), work.mask) * size

    return run


def numpy_cumsum(work):
    """A whole summed-area table in 64 bits by numpy.cumsum, and its differences."""

    def run():
        table = work.image
        for axis, c in enumerate(work.window):
            if c > 1:
                table = np.cumsum(table, axis=axis, dtype=np.int64)
        return float(window_sums_of(table, work.window)[work.mask.view(bool)].sum())

    return run


PEERS = {
    "scipy f32": scipy_filter(np.float32),
    "scipy f64": scipy_filter(np.float64),
    "scipy int": scipy_filter(np.int32),
    "OpenCV box": opencv_box,
    "OpenCV integral": opencv_integral,
    "SimpleITK BoxMean": simpleitk_box,
    "scikit-image integral": skimage_integral,
    "torch avg_pool": torch_pool,
    "numpy cumsum": numpy_cumsum,
}
BORDERS = {
    "OpenCV integral": "constant",
    "SimpleITK BoxMean": "nearest",
    "scikit-image integral": "constant",
    "torch avg_pool": "constant",
    "numpy cumsum": "constant",
}
SLOW = {"scikit-image integral", "numpy cumsum", "torch avg_pool", "SimpleITK BoxMean", "OpenCV integral", "scipy int"}


def set_threads(count):
    """Give every peer that has threads this many."""
    cv2.setNumThreads(count)
    for name in ("torch", "SimpleITK"):
        try:
            module = __import__(name)
        except ModuleNotFoundError:
            continue
        if name == "torch":
            module.set_num_threads(count)
        else:
            module.ProcessObject.SetGlobalDefaultNumberOfThreads(count)
