"""Write engine.json from the definitions in naive.py: python tests/vectors/make_engine.py.

The file is kept: a change of any number in it is a change of what voxring computes.
"""

import json
import random
import sys
from fractions import Fraction
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import naive

GOOD = [
    ("2d reflect", (4, 5), "int16", {"size": 3}, {}, 1, 0),
    ("2d even mirror", (5, 4), "uint8", {"size": [2, 4], "border": "mirror"}, {}, 1, 0),
    ("3d per slice", (2, 4, 4), "int16", {"size": [1, 3, 3], "border": "nearest"}, {}, 1, 0),
    ("3d clip", (3, 3, 4), "uint16", {"size": [2, 3, 4], "border": "clip"}, {}, 1, 0),
    ("window larger than the image", (2, 3), "int8", {"size": 7, "border": "reflect"}, {}, 1, 0),
    ("mirror on one voxel", (1, 4), "int16", {"size": 5, "border": "mirror"}, {}, 1, 0),
    ("constant with fill", (3, 3), "int32", {"size": 3, "border": "constant", "fill": -1.5}, {}, 1, 0),
    ("slope and intercept", (3, 4), "int16", {"size": 3}, {}, 0.1, -1024.0),
    ("rescale clips", (4, 4), "int16", {"size": 3}, {"method": "rescale", "range": [-300.5, 400.0]}, 1, 0),
    ("rescale, negative slope", (4, 4), "int16", {"size": 3}, {"method": "rescale", "range": [-300, 400]}, -1.0, 0),
    ("zscore", (4, 4), "int16", {"size": 3}, {"method": "zscore", "fraction_bits": 24}, 2.0, 5.0),
    ("percentile", (4, 5), "uint16", {"size": 3}, {"method": "percentile", "percentiles": [2.5, 90]}, 1, 0),
    (
        "nyul",
        (4, 5),
        "uint16",
        {"size": [3, 2]},
        {"method": "nyul", "percentiles": [0, 50, 100], "landmarks": [0, 30, 100], "foreground": "all"},
        1,
        0,
    ),
]
RANGES = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-500, 500),
    "uint16": (0, 900),
    "int32": (-(2**31), 2**31 - 1),
}

BAD = [
    {
        "name": "shapes differ",
        "image": [[1, 2]],
        "dtype": "int16",
        "ground_truth": [[1]],
        "error": "ImageError",
        "message": "they must cover the same voxels",
    },
    {
        "name": "beyond the bound",
        "image": [[1, 101]],
        "dtype": "int16",
        "ground_truth": [[1, 1]],
        "tables": {"bounds": {"intensity": 100}},
        "error": "ImageError",
        "message": "run from 1 to 101, the study allows 100 either way",
    },
    {
        "name": "flat under zscore",
        "image": [[4, 4]],
        "dtype": "uint8",
        "ground_truth": [[1, 1]],
        "tables": {"standardise": {"method": "zscore"}},
        "error": "ImageError",
        "message": "two different values",
    },
    {
        "name": "window of three axes",
        "image": [[4, 4]],
        "dtype": "uint8",
        "ground_truth": [[1, 1]],
        "tables": {"window": {"size": [3, 3, 3]}},
        "error": "StudyError",
        "message": "window.size has 3 numbers, the image has 2 axes",
    },
]


class Nested(list):
    """Nested lists that take a tuple as an index, as arrays do."""

    def __getitem__(self, index):
        if isinstance(index, tuple):
            head, *rest = index
            inner = list.__getitem__(self, head)
            return inner[tuple(rest)] if rest else inner
        return list.__getitem__(self, index)


def nested(shape, draw):
    return Nested(nested(shape[1:], draw) if len(shape) > 1 else draw() for _ in range(shape[0]))


def main():
    rng = random.Random(20260)  # noqa: S311 - test images, not secrets
    good = []
    for name, shape, dtype, window, standardise, slope, intercept in GOOD:
        image = nested(shape, lambda dtype=dtype: rng.randint(*RANGES[dtype]))
        voxels = prod(shape)
        labels = [1, 1, 2, 2, *(rng.randint(0, 2) for _ in range(voxels - 4))]
        rng.shuffle(labels)
        ground_truth = nested(shape, iter(labels).__next__)
        size = window["size"] if isinstance(window["size"], int) else tuple(window["size"])
        answer = naive.algorithm_1(
            [[(image, ground_truth, Fraction(slope), Fraction(intercept))]],
            {"a": 1, "b": 2},
            size,
            window.get("border", "reflect"),
            fill=window.get("fill", 0),
            options=standardise,
        )
        expected = {
            of: {"voxels": n}
            | {k: [str(v.numerator), str(v.denominator)] for k, v in zip(("sum", "sdsum"), (total, sdsum), strict=True)}
            for of, (n, total, _, sdsum, _) in answer.items()
        }
        good.append(
            {
                "name": name,
                "image": image,
                "dtype": dtype,
                "slope": slope,
                "intercept": intercept,
                "ground_truth": ground_truth,
                "tables": {"window": window, "standardise": standardise},
                "expected": expected,
            }
        )
    path = Path(__file__).with_name("engine.json")
    path.write_text(json.dumps({"good": good, "bad": BAD}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
