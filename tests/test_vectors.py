"""Golden vectors of the engine, made from the definitions and kept: good ones to the bit, bad ones refused."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import voxring

VECTORS = json.loads((Path(__file__).parent / "vectors" / "engine.json").read_text(encoding="utf-8"))


def study_of(vector):
    return voxring.Study.of(name="vector", classes={"a": 1, "b": 2}, **vector.get("tables", {}))


@pytest.mark.parametrize("vector", VECTORS["good"], ids=lambda v: v["name"])
def test_good_vectors(vector):
    study = study_of(vector)
    image, ground_truth = np.array(vector["image"], vector["dtype"]), np.array(vector["ground_truth"], np.uint8)
    totals = voxring.local_totals(image, ground_truth, study, slope=vector["slope"], intercept=vector["intercept"])
    answer = voxring.pooled(totals, study)
    for name, expected in vector["expected"].items():
        assert answer[name].voxels == expected["voxels"]
        assert answer[name].sum == Fraction(*map(int, expected["sum"]))
        assert answer[name].sdsum == Fraction(*map(int, expected["sdsum"]))


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=lambda v: v["name"])
def test_bad_vectors_are_refused(vector):
    image, ground_truth = np.array(vector["image"], vector["dtype"]), np.array(vector["ground_truth"], np.uint8)
    with pytest.raises(getattr(voxring, vector["error"])) as caught:
        voxring.local_totals(image, ground_truth, study_of(vector))
    assert vector["message"] in str(caught.value)
