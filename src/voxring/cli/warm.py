"""``voxring warm``: compile ahead, so that no batch job and no container waits for it."""

from __future__ import annotations

import time

import click

from voxring.cli.progress import Progress

_TYPES = ("uint8", "int8", "int16", "uint16", "int32")
_SHAPE = (9, 256, 256)  # large enough for every road of the kernels, small enough to take no time
# One window for each width of lanes that counts of ground truth can need; the last is too large for any.
_WINDOWS = ((3, 3, 3), (1, 7, 7), (7, 7, 7), (5, 21, 21), (9, 61, 61))


@click.command()
@click.option(
    "--type",
    "types",
    multiple=True,
    type=click.Choice(_TYPES),
    default=("uint8", "int16", "uint16"),
    show_default=True,
    help="Stored types to compile for; may be given several times.",
)
@click.option("--features", is_flag=True, help="Also the kernels of feature maps, additive statistics and classifiers.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def warm(types: tuple[str, ...], features: bool, quiet: bool) -> None:
    """Compile the kernels for images of the given types, and keep the machine code.

    It is kept beside the package, in the user's cache folder where that cannot be written, or where NUMBA_CACHE_DIR
    says; processes may share the folder. A new version of voxring, numba or the processor compiles anew.
    """
    import numpy as np

    from voxring.kernels import cpu
    from voxring.kernels.cpu.histogram import histogram

    start = time.monotonic()
    sparse, dense = np.zeros(_SHAPE, np.uint8), np.ones(_SHAPE, np.uint8)
    sparse[4, 100:104, 100:104] = 1
    dense[:, ::2] = 2
    with Progress(quiet=quiet) as progress:
        for name in types:
            progress(name, "compiling")
            image = np.zeros(_SHAPE, name)
            for window in _WINDOWS:
                for labels in (sparse, dense):
                    for border in ("reflect", "clip"):
                        cpu.reduce(image, labels, [1], window, border)
            cpu.reduce(image, dense, [1, 2], _WINDOWS[0], "reflect")
            if image.dtype.itemsize <= 2:
                histogram((image,), image.dtype)
            cpu.window_sums(image, _WINDOWS[0], "reflect")
            progress(name, "ready")
        if features:
            progress("features", "compiling")
            _features()
            _classifier()
            progress("features", "ready")
    click.echo(f"ready for {', '.join(types)}: {time.monotonic() - start:.1f} s")


def _features() -> None:
    """One image for each of the two types that these kernels take, with everything that a study can ask for."""
    import numpy as np

    from voxring.features import class_statistics
    from voxring.study import Study

    kinds = ("mean", "variance", "std", "skewness", "contrast")
    study = Study.of(
        name="warm",
        classes={"all": 1},
        feature=[{"kind": "intensity"}, {"kind": "gradient"}, *({"kind": kind, "window": 3} for kind in kinds)],
        statistics={
            "gram": True,
            "moments": 4,
            "histogram": {"bins": 2, "range": [0, 1]},
            "glcm": {"levels": 2, "range": [0, 1]},
        },
        standardise={"fraction_bits": 0},
    )
    for largest in (1, 1 << 20):
        class_statistics(np.full((3, 4, 5), largest, np.int32), np.ones((3, 4, 5), np.uint8), study)


def _classifier() -> None:
    """Two classes and one feature: the numbers of a classifier have the same types whatever it is."""
    import numpy as np

    from voxring.kernels.cpu.classify import Weights, classify

    ones = np.ones((2, 1))
    weights = Weights(ones, ones, np.ones(2), np.ones((2, 1, 1)), ones)
    maps = [np.zeros((1, 1, 1), np.int64)]
    classify(maps, 1, weights, np.array([1, 2], np.uint8), labels=True, probabilities=True)
