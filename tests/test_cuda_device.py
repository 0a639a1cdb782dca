"""What carries the CUDA kernels out, through a strict stand-in for CuPy: against the definitions, and the processor."""

import functools
import gc
import inspect
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import naive
import naive_features
from cuda_tools import standin
from test_cuda_classify import naive as scored
from test_images import nifti_bytes
from voxring import DeviceError, ImageError, Study, local_mean, local_totals, local_variance
from voxring.classify import slabs
from voxring.cli.classify import classify
from voxring.devices import device_name, in_words, promise, taken
from voxring.evaluate import Counts
from voxring.features import class_statistics, feature_maps
from voxring.images import open_image
from voxring.kernels import BORDERS, Reduction, cpu, cuda
from voxring.kernels.cuda import classifying, device, plans
from voxring.kernels.cuda.plans import FEW, plan_for, stage_numbers, up
from voxring.learn import Model, Moments
from voxring.learn.evaluation import class_evaluation

FLAT, DEEP, WIDE = (1, 3, 4), (3, 2, 3), (2, 1, 33)
KINDS = [("uint8", FLAT), ("int16", FLAT), ("uint16", DEEP), ("int32", DEEP), ("int8", WIDE), ("uint32", WIDE)]
"""Each is a build of its kernels, or two: they take seconds. That all kernels take all types is tested elsewhere."""


@pytest.fixture
def machine():
    with standin.install() as here:
        yield here


def image_of(shape, dtype, seed=0):
    info = np.iinfo(dtype)
    image = np.random.default_rng(seed).integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    image.flat[:2] = info.min, info.max
    return image


def labels_of(shape, dtype="uint8", seed=1, most=4):
    return np.random.default_rng(seed).integers(0, most, shape).astype(dtype)


def naive_reduce(image, labels, value, window, border):
    values = {q: int(image[q]) for q in naive.indices(image.shape)}
    answer = Reduction()
    for q, v in values.items():
        if int(labels[q]) == value:
            seen = naive.window_values(values, image.shape, q, window, "clip" if border == "constant" else border, 0)
            answer += Reduction(v, v * v, {len(seen): (1, sum(seen))})
    return answer


@pytest.mark.parametrize(("dtype", "window"), KINDS)
@pytest.mark.parametrize("border", BORDERS)
def test_reductions_equal_the_definition_and_the_processor(machine, dtype, window, border):
    classes = [3, 1, 7, 3, 300, -1]  # one is there twice, one of no voxel, two that bytes cannot hold
    for shape in ((2, 5, 7), (1, 1, 1)):
        image, labels = image_of(shape, dtype), labels_of(shape)
        got = cuda.reduce(image, labels, classes, window, border)
        assert got == [naive_reduce(image, labels, value, window, border) for value in classes]
    image, labels = image_of((3, 50, 150), dtype), labels_of((3, 50, 150))
    assert cuda.reduce(image, labels, classes, window, border) == cpu.reduce(image, labels, classes, window, border)


MAP_KINDS = [("int16", FLAT), ("uint8", DEEP), ("int8", WIDE)]


@pytest.mark.parametrize(("dtype", "window"), MAP_KINDS)
@pytest.mark.parametrize("border", BORDERS)
def test_maps_equal_the_definition_and_the_processor(machine, dtype, window, border):
    shape = (2, 5, 7)
    image = image_of(shape, dtype)
    values = {q: int(image[q]) for q in naive.indices(shape)}
    sums = cuda.window_sums(image, window, border, fill=-9)
    means = cuda.mean_map(image, window, border, fill=-9, dtype="float64")
    variances = cuda.variance_map(image, window, border, fill=-9, dtype="float64")
    for q in values:
        seen = naive.window_values(values, shape, q, window, border, -9)
        assert sums[q] == sum(seen)
        assert means[q] == np.float64(sum(seen)) / len(seen)
        numerator = len(seen) * sum(v * v for v in seen) - sum(seen) ** 2
        assert variances[q] == np.float64(numerator) / np.float64(len(seen) ** 2)
    large = image_of((3, 40, 150), dtype)
    for mine, processor in ((cuda.mean_map, cpu.mean_map), (cuda.variance_map, cpu.variance_map)):
        out = np.empty(large.shape, np.float32)
        assert mine(large, window, border, fill=5, out=out) is out
        assert np.array_equal(out, processor(large, window, border, fill=5))
    sums = cpu.window_sums(large, window, border, fill=5)
    for kind in ("int64", "int32", "float64", "float32"):
        made = cuda.window_sums(large, window, border, fill=5, dtype=kind)
        assert made.dtype == kind
        assert np.array_equal(made, sums.astype(np.float64).astype(kind))


def test_labels_of_any_kind_and_arrays_of_any_layout(machine):
    image, labels = image_of((2, 6, 9), "int16"), labels_of((2, 6, 9))
    expected = cpu.reduce(image, labels, [1, 2], FLAT, "clip")
    foreign, backward = image.astype(">i2"), image[::-1, ::-1][::-1, ::-1]
    for one in (foreign, backward, np.asfortranarray(image)):
        for dtype in ("uint8", ">u2", "int64", "uint64"):
            assert cuda.reduce(one, np.asfortranarray(labels.astype(dtype)), [1, 2], FLAT, "clip") == expected
    mask = cuda.reduce(image, labels == 2, [1, 0], FLAT, "clip")
    assert mask == cpu.reduce(image, labels == 2, [1, 0], FLAT, "clip")
    sums = cpu.window_sums(image, FLAT, "clip")
    assert all(np.array_equal(cuda.window_sums(one, FLAT, "clip"), sums) for one in (foreign, backward))


def test_more_classes_than_a_byte_numbers(machine):
    labels = np.arange(600, dtype=np.int32).reshape(1, 20, 30)
    image = image_of(labels.shape, "int16")
    assert cuda.reduce(image, labels, range(600), FLAT, "clip") == cpu.reduce(image, labels, range(600), FLAT, "clip")
    ran = [event.what for event in machine.log if event.when == "ran"]
    assert ran.count("box2d") == 3
    assert ran.count("copy in") == 1 + 3 * 3  # the image once; numbers and two index maps for each pass


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32"])
def test_labels_are_numbered_as_their_classes_stand(dtype, monkeypatch):
    """Few classes and many, of both ends of a type; more rows than are numbered at once."""
    monkeypatch.setattr(plans, "STAGED_AT_ONCE", 30)
    info = np.iinfo(dtype)
    ends = [info.max, info.min, *range(3, 12)]
    for shape in ((2, 3, 13), (1, 40, 71)):
        labels = np.random.default_rng(1).choice(np.array([*ends, 0, 1, 2], dtype), shape)
        plan = plan_for(shape, np.dtype("int16"), FLAT, "clip", "reduce", classes=len(ends), box=(0, shape[0], 1, 3))
        for classes in (ends, ends[:1], ends[1::-1], ends[:FEW], ends[: FEW + 1]):
            out = np.full(plan.buffers["numbers"].size, standin.GARBAGE, np.uint8)
            stage_numbers(plan, labels, classes, out)
            got = out.reshape(shape[0], 2, plan.label_pitch)
            number = {value: at for at, value in enumerate(classes, 1)}
            expected = [
                [number.get(value, 0) for value in row] for row in labels[:, 1:3].reshape(-1, shape[2]).tolist()
            ]
            assert got[:, :, : shape[2]].reshape(-1, shape[2]).tolist() == expected
            assert not got[:, :, shape[2] :].any()


def test_nothing_to_do(machine):
    nothing = np.zeros((0, 3, 4), np.int16)
    assert cuda.reduce(nothing, nothing, [1], FLAT, "reflect") == [Reduction()]
    assert cuda.reduce(image_of((1, 2, 2), "int16"), np.zeros((1, 2, 2), bool), [], FLAT, "clip") == []
    for made in (cuda.window_sums, cuda.mean_map, cuda.variance_map):
        assert made(nothing, FLAT, "clip").shape == (0, 3, 4)
    assert not any(event.what.startswith("box") for event in machine.log)


@pytest.mark.parametrize(("dtype", "window"), [("int16", FLAT), ("uint16", DEEP), ("int8", WIDE)])
@pytest.mark.parametrize("border", ["reflect", "clip"])
def test_parts_with_their_halos_make_the_whole(dtype, window, border):
    """Little memory: images are cut between planes, and then between rows."""
    shape = (7, 60, 120)
    image, labels = image_of(shape, dtype), labels_of(shape)
    for memory, least in ((256 << 10, 2), (64 << 10, 7)):
        with standin.install(memory=memory) as machine:
            assert cuda.reduce(image, labels, [1, 2, 3], window, border) == cpu.reduce(
                image, labels, [1, 2, 3], window, border
            )
            assert parts_fetched(machine) >= least


@pytest.mark.parametrize(("dtype", "window"), MAP_KINDS)
def test_parts_of_maps_make_the_whole(dtype, window):
    image = image_of((6, 19, 40), dtype)
    with standin.install(memory=600 << 10) as machine:
        assert np.array_equal(cuda.mean_map(image, window, "clip"), cpu.mean_map(image, window, "clip"))
        assert parts_fetched(machine) > 1
        assert np.array_equal(cuda.variance_map(image, window, "clip"), cpu.variance_map(image, window, "clip"))


def parts_fetched(machine):
    return sum((event.when, event.what) == ("ran", "copy out") for event in machine.log)


def test_a_row_beyond_the_device_is_refused_with_its_size():
    image = image_of((2, 3, 4000), "int16")
    with standin.install(memory=20 << 10):
        for call in (
            lambda: cuda.reduce(image, image, [1], FLAT, "clip"),
            lambda: cuda.window_sums(image, FLAT, "clip"),
        ):
            with pytest.raises(DeviceError, match=r'a row of 4000 voxels needs \d+ bytes.*are free.*device="cpu"'):
                call()


def test_memory_that_others_took_meanwhile_is_named(monkeypatch):
    image = image_of((2, 30, 400), "int16")
    with standin.install(memory=40 << 10):
        monkeypatch.setattr(device, "memory", lambda: 1 << 30)
        with pytest.raises(DeviceError, match=r"the GPU is out of memory: Out of memory allocating .*device=\"cpu\""):
            cuda.reduce(image, image, [1], FLAT, "clip")


def test_what_the_pool_keeps_counts_as_free(machine):
    image = image_of((4, 50, 60), "int16")
    cuda.reduce(image, image, [1], FLAT, "clip")
    gc.collect()
    assert machine.kept[0] > 0
    assert device.memory() == int(machine.memory * device.SHARE)


def test_parts_fit_the_least_of_devices_that_differ(machine, monkeypatch):
    free, shared = {0: 1 << 20, 1: 1 << 14}, {0: 227 << 10, 1: 160 << 10}
    monkeypatch.setattr(standin.runtime, "memGetInfo", lambda: (free[machine.here.device], 1 << 30))
    monkeypatch.setattr(
        standin.runtime, "getDeviceProperties", lambda number: {"sharedMemPerBlockOptin": shared[number]}
    )
    assert device.memory() == int((1 << 14) * device.SHARE)
    assert device.shared_memory() == 160 << 10
    (plan,) = next(device.parts(image_of((9, 40, 50), "int16"), (5, 17, 3), "clip", 1 << 30, ("reduce",)))
    assert plans.SHARED < plan.launches[0].shared <= 160 << 10  # a large tile


PATIENCE = 10.0  # seconds until what others should have done counts as not done


def images_of(count):
    """Arguments of a reduction, each of another image."""
    for seed in range(count):
        image = image_of((1, 20 + seed, 30), "int16", seed)
        yield image, labels_of(image.shape, seed=seed), (1, 2), FLAT, "clip"


def each_in_a_thread(many, threads):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda given: cuda.reduce(*given), many))


def one_computes_while_the_next_is_copied(machine, work):
    """Run ``work``, whose first kernel waits until another lane has queued its copies, and its last does not."""
    waited, copied = [], threading.Event()

    def before(what, stream):
        if what == "box2d" and not waited:
            waited.append(stream.number)
            while not any(event.what == "box2d" and event.stream != stream.number for event in machine.log):
                if copied.wait(0.001) or time.monotonic() > until:
                    return
            copied.set()

    until = time.monotonic() + PATIENCE
    machine.before = before
    work()
    return copied.is_set()


def test_images_of_several_threads_are_copied_while_others_compute(machine):
    expected = [cpu.reduce(*given) for given in images_of(11)]
    got = []
    assert one_computes_while_the_next_is_copied(machine, lambda: got.extend(each_in_a_thread(images_of(11), 3)))
    assert got == expected
    assert used(machine) == {(event.device, event.stream) for event in machine.log if event.what == "copy in"}
    assert len(used(machine)) == 2 * device.LANES  # taken in turn, also by fewer threads


def used(machine):
    """Devices and streams on which kernels ran; and no lane had a part before it had given back the last one."""
    under_way = Counter()
    for event in machine.log:
        if event.what == "box2d":
            under_way[event.stream] += {"queued": 1, "ran": -1}[event.when]
            assert under_way[event.stream] in (0, 1)
    return {(event.device, event.stream) for event in machine.log if event.what == "box2d"}


def test_images_of_one_thread_take_the_devices_in_turn(machine):
    for given in images_of(7):
        cuda.reduce(*given)
    ran = [event for event in machine.log if (event.when, event.what) == ("ran", "box2d")]
    assert [event.device for event in ran] == [0, 1, 0, 1, 0, 1, 0]
    assert [event.stream for event in ran[:3]] == [event.stream for event in ran[4:]]


@pytest.mark.parametrize("made", ["reduction", "map"])
def test_parts_of_one_image_are_copied_while_others_compute(machine, monkeypatch, made):
    image, labels = image_of((12, 20, 40), "int16"), labels_of((12, 20, 40))
    got = []
    if made == "map":
        monkeypatch.setattr(device, "memory", lambda: device.MAP_SHARE * 8000)
        expected = cpu.mean_map(image, FLAT, "clip")
        work = functools.partial(cuda.mean_map, image, FLAT, "clip")
    else:
        monkeypatch.setattr(device, "memory", lambda: 16000)
        expected = cpu.reduce(image, labels, (1, 2), FLAT, "clip")
        work = functools.partial(cuda.reduce, image, labels, (1, 2), FLAT, "clip")
    assert one_computes_while_the_next_is_copied(machine, lambda: got.append(work()))
    assert np.array_equal(got[0], expected)
    assert len(used(machine)) == 2 * device.LANES


def test_a_caller_who_is_interrupted_leaves_no_part_under_way(machine, monkeypatch):
    image, labels = image_of((12, 20, 40), "int16"), labels_of((12, 20, 40))
    monkeypatch.setattr(device, "memory", lambda: 16000)
    result = Future.result

    def interrupted(future, timeout=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cuda.reduce(image, labels, (1, 2), FLAT, "clip")
    done = len(machine.log)
    time.sleep(0.05)
    assert len(machine.log) == done
    assert device.crew().free.qsize() == 2 * device.LANES
    assert Future.result is result
    assert cuda.reduce(image, labels, (1, 2), FLAT, "clip") == cpu.reduce(image, labels, (1, 2), FLAT, "clip")


@pytest.mark.parametrize("backend", [cpu, cuda])
def test_both_backends_refuse_the_same(machine, backend):
    image = np.zeros((2, 3, 4), np.int32)
    refused = [
        (TypeError, "float32", lambda: backend.window_sums(image.astype(np.float32), (1, 1, 1), "reflect")),
        (ValueError, "wrap", lambda: backend.mean_map(image, (1, 1, 1), "wrap")),
        (ValueError, "at least 1", lambda: backend.variance_map(image, (1, 0, 1), "reflect")),
        (ValueError, "axes", lambda: backend.reduce(image[0], image[0], [1], (1, 1, 1), "reflect")),
        (ValueError, "labels", lambda: backend.reduce(image, image[:1], [1], (1, 1, 1), "reflect")),
        (TypeError, "labels", lambda: backend.reduce(image, image.astype(float), [1], (1, 1, 1), "reflect")),
        (ValueError, "out", lambda: backend.mean_map(image, (1, 1, 1), "clip", out=np.empty((2, 3, 5)))),
        (ValueError, "out", lambda: backend.variance_map(image, (1, 1, 1), "clip", out=np.empty((2, 3, 8))[:, :, ::2])),
        (TypeError, "int64", lambda: backend.mean_map(image, (1, 1, 1), "clip", dtype="int64")),
        (OverflowError, "window", lambda: backend.window_sums(image, (1, 1, 2), "constant", fill=2**62)),
        (OverflowError, "window", lambda: backend.reduce(image - 2**30, image, [1], (1, 2**17, 2**17), "clip")),
        (OverflowError, "variances", lambda: backend.variance_map(image + 2**30, (1, 3, 3), "clip")),
    ]
    for error, match, call in refused:
        with pytest.raises(error, match=match):
            call()
    with pytest.raises(DeviceError, match="8 to 32 bits"):
        cuda.reduce(image.astype(np.int64), image, [1], (1, 1, 1), "clip")


FEATURES = [
    {"kind": "intensity"},
    *({"kind": kind, "window": [1, 3, 4]} for kind in ("skewness", "mean", "std")),
    {"kind": "gradient"},
]


def feature_study(border, features=FEATURES, classes=("a",), statistics=None, **standardise):
    return Study.of(
        name="test",
        classes={name: value for value, name in enumerate(classes, 1)},
        feature=features,
        window={"size": 3, "border": border, "fill": 2.0 if border == "constant" else 0.0},
        standardise={"fraction_bits": 4} | standardise,
        **({"statistics": statistics} if statistics else {}),
    )


@pytest.mark.parametrize("border", ["constant", "mirror"])
def test_features_equal_the_definition_and_the_processor(machine, border):
    study, shape = feature_study(border), (3, 4, 7)
    image = image_of(shape, "int16")
    x = {q: int(image[q]) << 4 for q in naive.indices(shape)}
    made = feature_maps(image, study, device="cuda")
    for feature, one in zip(study.feature, made, strict=True):
        expected = naive_features.feature_map(feature.kind, x, shape, feature.along(3), border, 32, 16)
        assert {q: int(one[q]) for q in expected} == expected, feature.label
    for planes in ((0, 1), (1, 3)):
        some = feature_maps(image, study, device="auto", planes=planes)
        assert all(np.array_equal(one, all_of[slice(*planes)]) for one, all_of in zip(some, made, strict=True))
    assert any(event.what == "feature_skewness" for event in machine.log)


def test_parts_of_features_make_the_whole():
    study, image = feature_study("clip"), image_of((6, 17, 30), "int16")
    with standin.install() as machine:
        whole = feature_maps(image, study, device="cuda")
        assert parts_fetched(machine) == 1
    with standin.install(memory=150 << 10) as machine:
        parts = feature_maps(image, study, device="cuda")
        assert parts_fetched(machine) >= 3
    assert all(map(np.array_equal, parts, whole))
    wide = image_of((2, 3, 4000), "int16")
    with standin.install(memory=200 << 10), pytest.raises(DeviceError, match=r"a row of 4000 voxels.*fewer features"):
        feature_maps(wide, study, device="cuda")


def test_features_beyond_32_bits_are_the_processors(machine):
    study = feature_study("reflect", FEATURES[:1], fraction_bits=29)
    image = np.full((2, 3), 5.0)
    with taken() as devices:
        assert feature_maps(image, study, device="auto")[0].tolist() == [[5 << 29] * 3] * 2
    assert devices == {"CPU"}
    with pytest.raises(DeviceError, match="8 to 32 bits, got int64"):
        feature_maps(image, study, device="cuda")
    assert not any(event.what.startswith("feature") for event in machine.log)
    with taken() as devices:
        assert feature_maps(image / 4, study, device="auto")[0].tolist() == [[5 << 27] * 3] * 2
    assert devices == {GPU}


def test_features_that_are_too_wide_are_refused_as_by_the_processor(machine):
    study = feature_study("reflect", [{"kind": "skewness", "window": [33, 34]}], fraction_bits=0)
    for where in ("cpu", "cuda"):
        with pytest.raises(ImageError, match=r"skewness is exact for window sums.*fewer fraction_bits"):
            feature_maps(np.full((2, 3), 2.0**31 - 1), study, device=where)


@pytest.mark.parametrize("classifier", ["qda", "lda"])
def test_labels_and_probabilities_are_those_of_the_loops_to_the_bit(machine, tmp_path, monkeypatch, classifier):
    study = feature_study("mirror", FEATURES[:3], "abc")
    rng, shape = np.random.default_rng(2), (4, 5, 7)
    labels, names = np.arange(300) % 3, [feature.label for feature in study.feature]
    table = rng.normal(0, [9000, 1, 5000], (300, 3)) + labels[:, None] * [5000, 0.5, 2000]
    model = Model.of(study, Moments.of_arrays(table, labels + 1, names=names), classifier)
    of = model.discriminant
    voxels = image_of(shape, "int16")
    stack = np.stack(feature_maps(voxels, study, device="cuda"), -1).reshape(-1, 3)
    weights = of.centres, of.linear, of.constants, of.whiten, of.offsets
    places, chances = zip(*(scored(x, study.unit, *weights) for x in stack), strict=True)
    expected = np.array(places).reshape(shape) + 1
    assert set(expected.flat) == {1, 2, 3}
    path = tmp_path / "image.nii"
    path.write_bytes(nifti_bytes(voxels))
    for wanted, most, memory in ((True, 1 << 20, 1 << 20), (False, 70, 1 << 20), (True, 1 << 20, 5 << 10)):
        monkeypatch.setattr(device, "memory", lambda memory=memory: memory)
        made = list(slabs(open_image(path), model, probabilities=wanted, device="auto", voxels=most))
        assert len(made) == (1 if wanted else 2)
        assert np.array_equal(np.concatenate([one.labels for one in made]), expected)
        found = np.concatenate([one.probabilities for one in made], 1)
        assert found.tobytes() == (np.array(chances, np.float32).T.tobytes() if wanted else b"")
    assert len([event for event in machine.log if event.what == "classify" and event.when == "ran"]) > 4
    for where in ("cuda", "auto"):
        ran = len(machine.log)
        assert np.array_equal(model.predict(path, device=where), expected)
        assert any(event.what == "classify" for event in machine.log[ran:])
    assert np.array_equal(model.predict(voxels[:1], device="cuda"), model.predict(voxels[:1]))
    model.save(tmp_path / "model.json")
    asked = {"model": str(tmp_path / "model.json"), "digest": model.digest, "bins": 16}
    evaluating = Study.of(name="test", classes=dict(study.classes), evaluate=asked)
    truth = labels_of(shape)
    there = truth > 0
    counts = Counts.of(tuple("abc"), truth[there], expected[there], np.array(chances, np.float32).T[:, there.flat], 16)
    counted = class_evaluation(voxels, truth, evaluating, labels=study.classes, device="cuda")
    assert counted == {name: counts.of_class(name) for name in "abc"}
    command = [str(tmp_path / "model.json"), str(path), "--out", str(tmp_path / "maps")]
    assert f"image 1 of 1 computed on {GPU}\n" in CliRunner().invoke(classify, command).stderr
    monkeypatch.setattr(classifying, "MOST_NUMBERS", 5)
    ran = len(machine.log)
    with taken() as devices:
        (made,) = slabs(open_image(path), model, probabilities=True, device="auto")
    assert devices == {"CPU"}
    assert np.array_equal(made.labels, expected)
    assert made.probabilities.tobytes() == np.array(chances, np.float32).T.tobytes()
    assert np.array_equal(model.predict(path, device="auto"), expected)
    assert class_evaluation(voxels, truth, evaluating, labels=study.classes, device="auto") == counted
    assert "image 1 of 1 computed on CPU\n" in CliRunner().invoke(classify, [*command, "--force"]).stderr
    assert len(machine.log) == ran
    with pytest.raises(DeviceError, match=r"at most 5 features and classes together, got 3 .* and 3 classes: use"):
        list(slabs(open_image(path), model, probabilities=True, device="cuda"))


def test_a_step_of_a_regression_is_the_processors(machine):
    study = msgspec.to_builtins(feature_study("mirror", FEATURES[:3], "abc", {"gram": True}))
    study |= {"logistic": {}, "window": {"size": FLAT, "border": "mirror"}}
    rows = [[1 << 31, 1 << 54, -(1 << 60), -(1 << 55)], [-(1 << 30), 1 << 53, 7, 3 << 53], [5, -(1 << 54), 1 << 61, 0]]
    at = Study.of(**study).at(rows, ["a", "b", "c"])
    image, truth = image_of((4, 5, 7), "int16"), labels_of((4, 5, 7))
    expected = local_totals(image, truth, at)
    assert len({one.statistics for one in expected.classes.values()}) == 3
    for where in ("cuda", "auto"):
        ran = len(machine.log)
        with taken() as devices:
            assert local_totals(image, truth, at, device=where) == expected
        assert any(event.what == "feature_skewness" for event in machine.log[ran:])
        assert in_words(devices) == f"CPU and {GPU}"


ASKED = [
    {"gram": True, "moments": 2, "histogram": {"bins": 5, "range": [-30000, 9000]}},
    {"moments": 4, "glcm": {"levels": 3, "range": [-9000, 9000]}},
]


@pytest.mark.parametrize("asked", ASKED, ids=["gram", "moments"])
def test_statistics_of_classes_equal_the_definition(machine, monkeypatch, asked):
    study, shape = feature_study("clip", FEATURES[1:3], "ab", asked), (5, 6, 7)
    image, truth = image_of(shape, "int16"), labels_of(shape, most=3)
    x = {q: int(image[q]) << 4 for q in naive.indices(shape)}
    maps = [naive_features.feature_map(f.kind, x, shape, f.along(3), "clip", 0, 16) for f in study.feature]
    how = dict(asked)
    if "histogram" in asked:
        how["histogram"] = 5, -30000, 9000
    if "glcm" in asked:
        how["glcm"] = 3, -9000, 9000, 1, False
    expected = {
        name: naive_features.statistics(maps, x, truth, label, shape, 16, **how)
        for name, label in study.classes.items()
    }
    for memory in (1 << 20, 9 << 10):
        monkeypatch.setattr(device, "memory", lambda memory=memory: memory)
        assert class_statistics(image, truth, study, device="cuda") == expected
    assert any(event.what == "sum_products" for event in machine.log)
    assert any(event.what == "count_pairs" for event in machine.log) == ("glcm" in asked)


def test_pairs_of_neighbours_are_the_processors_in_parts_and_of_too_many_classes(machine, monkeypatch):
    asked = {"glcm": {"levels": 3, "range": [-9000, 9000], "distance": 2}}
    study, shape = feature_study("clip", [], "ab", asked), (6, 12, 7)
    image, truth = image_of(shape, "int16"), labels_of(shape, most=3)
    truth[0] = 0
    expected = class_statistics(image, truth, study)
    for memory, parts in ((1 << 20, 1), (1500, 3)):
        monkeypatch.setattr(device, "memory", lambda memory=memory: memory)
        ran = len(machine.log)
        with taken() as devices:
            assert class_statistics(image, truth, study, device="cuda") == expected
        assert devices == {GPU}
        assert [(event.when, event.what) for event in machine.log[ran:]].count(("ran", "count_pairs")) >= parts
    neighbours = np.where(truth == 0, 2, truth).astype(np.uint8)
    half = class_statistics(image, truth, study, neighbours=neighbours)
    assert half != expected
    assert class_statistics(image, truth, study, neighbours=neighbours, device="cuda") == half
    assert class_statistics(image, truth * 0, study, device="cuda") == {"a": (0,) * 9, "b": (0,) * 9}
    monkeypatch.setattr(device, "memory", lambda: 400)
    with pytest.raises(DeviceError, match=r"a row of 7 voxels.*fewer levels"):
        class_statistics(image, truth, study, device="cuda")
    monkeypatch.setattr(cuda, "MOST_CLASSES", 1)
    with taken() as devices:
        assert class_statistics(image, truth, study, device="cuda") == expected
    assert "CPU" in devices


STUDY = Study.of(name="test", classes={"a": 1, "b": 2}, window={"size": (3, 4), "border": "clip"})
GPU = "GPU (Stand-in 0 and 1 more)"


def test_totals_and_maps_are_the_processors(machine):
    image, labels = image_of((30, 40), "int16"), labels_of((30, 40))
    assert device_name("auto") == device_name("cuda") == promise("cuda") == GPU
    assert promise("auto") == f"{GPU}, and on the CPU what that has no kernels for"
    for where in ("cuda", "auto"):
        assert local_totals(image, labels, STUDY, device=where) == local_totals(image, labels, STUDY)
        for made in (local_mean, local_variance):
            assert np.array_equal(made(image, (3, 4), "clip", device=where), made(image, (3, 4), "clip"))
    gpu, processor = (local_mean(image, (3, 4), "clip", exact=True, device=one) for one in ("cuda", "cpu"))
    assert all(np.array_equal(*pair) for pair in zip(gpu, processor, strict=True))
    floats = image.astype(np.float64) / 4
    floats[0, :2] = 32767.5, -32768  # the ends of 32 bits, on the grid
    options = {"window": (3, 4), "border": "clip", "exact": True}
    gpu, processor = (local_mean(floats, device=one, **options) for one in ("cuda", "cpu"))
    assert all(np.array_equal(*pair) for pair in zip(gpu, processor, strict=True))
    ran = len(machine.log)
    for beyond in (32768, -32768.5):
        floats[0, 0] = beyond
        assert np.array_equal(local_mean(floats, 3, device="auto"), local_mean(floats, 3))
        assert len(machine.log) == ran
        with pytest.raises(DeviceError, match="8 to 32 bits, got int64: take fewer fraction_bits"):
            local_mean(floats, 3, device="cuda")


def test_what_auto_took_is_said(machine):
    image, labels = image_of((30, 40), "int16"), labels_of((30, 40))
    for where, voxels, name in (
        ("cuda", image, GPU),
        ("auto", image, GPU),
        ("auto", image / 4, GPU),  # on the grid they fit 32 bits
        ("auto", image / 0.9, "CPU"),  # and do not
        ("cpu", image, "CPU"),
    ):
        for made in (
            lambda voxels, where: local_totals(voxels, labels, STUDY, device=where),
            lambda voxels, where: local_mean(voxels, (3, 4), "clip", device=where),
        ):
            with taken() as devices:
                made(voxels, where)
            assert devices == {name}


def absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    return 'cupy is not installed. Install "voxring'


def broken(monkeypatch):
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "cupy":
                raise ImportError("\n=====\nlibcuda.so.1: cannot open shared object file\n=====")

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    return "CuPy does not load: libcuda.so.1"


def without_driver(monkeypatch):
    def fail():
        raise standin.CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    monkeypatch.setattr(standin.runtime, "getDeviceCount", fail)
    return "cudaErrorInsufficientDriver.*mend the driver"


def without_devices(monkeypatch):
    monkeypatch.setattr(standin.machine, "devices", 0)
    return "CuPy sees no GPU: look at CUDA_VISIBLE_DEVICES"


def too_old(monkeypatch):
    monkeypatch.setattr(standin.machine, "capability", "61")
    return r"expected a GPU of compute capability 7\.5 or more, got 6\.1: take a newer one"


@pytest.mark.parametrize("lacks", [absent, broken, without_driver, without_devices, too_old])
def test_where_no_gpu_answers_cuda_says_why_and_auto_takes_the_processor(machine, monkeypatch, lacks):
    message = lacks(monkeypatch)
    image, labels = image_of((5, 6), "int16"), labels_of((5, 6))
    calls = [
        lambda: local_totals(image, labels, STUDY, device="cuda"),
        lambda: local_mean(image, 3, device="cuda"),
        lambda: local_variance(image, 3, device="cuda"),
        lambda: device_name("cuda"),
        lambda: cuda.reduce(image[None], labels[None], [1], FLAT, "clip"),
    ]
    for call in calls:
        with pytest.raises(DeviceError, match=message) as caught:
            call()
        assert 'device="cpu"' in str(caught.value)
    assert device_name("auto") == promise("auto") == "CPU"
    assert local_totals(image, labels, STUDY, device="auto") == local_totals(image, labels, STUDY)
    assert np.array_equal(local_mean(image, 3, device="auto"), local_mean(image, 3))


def test_the_stand_in_is_strict(machine):
    made, host = standin.zeros(4, "int32"), np.arange(4, dtype=np.int32)
    for wrong in (lambda: made + host, lambda: host + made, lambda: np.asarray(made)):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(standin.MisuseError, match="waits for a number"):
        bool(made)
    with pytest.raises(standin.MisuseError, match="array of device 0, current is device 1"), standin.cuda.Device(1):
        made.get()
    with pytest.raises(standin.MisuseError, match="used on another"), standin.cuda.Stream():
        made.get()
    assert standin.empty(2, "uint8").get().tolist() == [standin.GARBAGE] * 2
    kernel = standin.RawModule(code="", options=("-DA=1",)).get_function("any")
    with pytest.raises(standin.CUDARuntimeError, match="shared memory"):
        kernel((1, 1, 1), (32, 1, 1), (), shared_mem=(48 << 10) + 1)
    for number in (1, 1.0, host):
        with pytest.raises(TypeError, match="numpy scalar"):
            kernel((1, 1, 1), (32, 1, 1), (number,))
    with pytest.raises(standin.OutOfMemoryError):
        standin.empty(machine.memory + 1, "uint8")


def test_the_stand_in_copies_late(machine):
    pinned = standin.cuda.alloc_pinned_memory(16)
    host = np.frombuffer(pinned, np.int32, 4)
    host[...] = 1
    made = standin.empty(4, "int32")
    made.set(host)
    host[...] = 2  # too early
    with pytest.raises(standin.MisuseError, match="written before"):
        made.get()
    assert made.get().tolist() == [2] * 4
    assert made.get(out=host, blocking=False) is host
    assert set(host.view(np.uint8).tolist()) == {standin.GARBAGE}
    standin.current_stream().synchronize()
    assert host.tolist() == [2] * 4
    made.set(host)
    del host, pinned
    with pytest.raises(standin.MisuseError, match="freed before"):
        made.get()


# Faults planted in the launcher. What would be a race on a device is seen here every time.


def meet(ours, expected):
    """Not by an assert of both: where sums of many classes differ, pytest takes a quarter of an hour to tell how."""
    if ours != expected:
        raise AssertionError("the integers differ")


def numbers_are_right(of):
    """Several passes, a map of two sums, two parts started on one lane, reductions of threads."""
    labels = np.arange(300, dtype=np.int32).reshape(1, 10, 30)
    image = image_of(labels.shape, "int16")
    meet(cuda.reduce(image, labels, range(300), FLAT, "clip"), cpu.reduce(image, labels, range(300), FLAT, "clip"))
    assert np.array_equal(cuda.variance_map(image, FLAT, "clip"), cpu.variance_map(image, FLAT, "clip"))
    lane = of.lanes()[0]
    plan = plan_for(image.shape, image.dtype, FLAT, "clip", "reduce")
    both = [of.start(plan, lane, one, np.ones(one.shape, np.uint8), (1,)) for one in (image, image[:, ::-1])]
    totals = [of.reductions(plan, of.fetch(lane, running.buffers["table"]))[0].squares for running in both]
    assert totals == [int((image.astype(np.int64) ** 2).sum())] * 2
    deep = image_of((3, 6, 9), "uint16"), labels_of((3, 6, 9)), [1], DEEP, "clip"
    meet(cuda.reduce(*deep), cpu.reduce(*deep))
    read, turn, others = of.reductions, itertools.count(), threading.Semaphore(0)

    def the_first_reads_last(plan, table):
        if next(turn):
            others.release()
        else:
            assert all(others.acquire(timeout=PATIENCE) for _ in range(8))
        return read(plan, table)

    of.reductions = the_first_reads_last
    meet(each_in_a_thread(images_of(9), 5), [cpu.reduce(*given) for given in images_of(9)])


def others_are_copied_meanwhile(of):
    with standin.install(devices=1) as machine:
        assert one_computes_while_the_next_is_copied(machine, lambda: each_in_a_thread(images_of(3), 3))


def nothing_is_left_behind(of):
    given = (image_of((12, 20, 40), "int16"), labels_of((12, 20, 40)), (1, 2), FLAT, "clip")
    stage, memory, going, begun = of.stage_numbers, of.memory, [], threading.Event()

    def fails(plan, labels, classes, out):
        if plan.box[0] == 0:
            assert begun.wait(PATIENCE)
            raise KeyError("a fault of one part")
        going.append(plan)
        begun.set()
        time.sleep(0.1)
        stage(plan, labels, classes, out)
        going.remove(plan)

    of.stage_numbers, of.memory = fails, lambda: 16000
    with pytest.raises(KeyError, match="a fault of one part"):
        cuda.reduce(*given)
    assert not going
    assert of.crew().free.qsize() == 2 * device.LANES
    of.stage_numbers = stage
    meet(cuda.reduce(*given), cpu.reduce(*given))
    of.memory = memory


def pinned_memory_is_that_of_the_largest_parts(of):
    """Not also that of the smaller ones before, which CuPy would keep."""
    for given in images_of(30):
        cuda.reduce(*given)
    _, rows, columns = given[0].shape
    staged = rows * (2 * up(columns + 16, 8) + up(columns, 8)) + 4 * (columns + 2 * rows + 10)
    assert standin.machine.most_pinned <= 2 * device.LANES * (staged + 6 * 512)


def what_is_shared_is_made_once(of):
    made, lane = [], of.Lane

    def slowly(device):
        made.append(device)
        time.sleep(0.01)
        return lane(device)

    of.Lane = slowly
    each_in_a_thread(images_of(4), 4)
    assert made == [0, 1] * device.LANES


class Fault(NamedTuple):
    name: str
    seen_by: Callable[[ModuleType], None]
    old: str
    new: str


ENTERED = "    with lane.device, lane.stream:\n        lane.stream.synchronize()  # its pinned memory is free again\n"
TAKEN = "    lane = free.get()\n"
CARRIED_OUT = """    try:
        return task(lane)
    finally:
        free.put(lane)
"""
LANE_LOST = """    made = task(lane)
    free.put(lane)
    return made
"""
FAULTS = [
    Fault("kernels on no stream", numbers_are_right, ENTERED, ENTERED.replace(", lane.stream:", ":")),
    Fault("another device is current", numbers_are_right, ENTERED, ENTERED.replace("lane.device, ", "")),
    Fault("a stream of another device", numbers_are_right, "        with self.device:\n", "        if True:\n"),
    Fault("pinned memory used again too early", numbers_are_right, "lane.stream.synchronize()  #", "pass  #"),
    Fault(
        "a result read too early",
        numbers_are_right,
        "stream=lane.stream, out=host",
        "stream=lane.stream, out=host, blocking=False",
    ),
    Fault(
        "fetched on another stream",
        numbers_are_right,
        "made.get(stream=lane.stream,",
        "made.get(stream=lanes()[1].stream,",
    ),
    Fault("one lane for two parts", numbers_are_right, TAKEN, TAKEN + "    free.put(lane)\n"),
    Fault("a table that is not cleared", numbers_are_right, "cp.zeros(buffer.size", "cp.empty(buffer.size"),
    Fault(
        "numbers of another pass",
        numbers_are_right,
        'there["image"] = running.buffers["image"]',
        "there = running.buffers",
    ),
    Fault("shared memory not asked for", numbers_are_right, "launch.shared > 48 << 10", "launch.shared > 64 << 10"),
    Fault("one lane a device", others_are_copied_meanwhile, "LANES = 2", "LANES = 1"),
    Fault(
        "no copy while another computes",
        others_are_copied_meanwhile,
        "ThreadPoolExecutor(len(lanes()),",
        "ThreadPoolExecutor(1,",
    ),
    Fault("an error keeps the lane", nothing_is_left_behind, CARRIED_OUT, LANE_LOST),
    Fault(
        "an error leaves parts under way",
        nothing_is_left_behind,
        "wait([one for one in under_way if not one.cancel()])",
        "pass",
    ),
    Fault(
        "outgrown pinned memory is kept",
        pinned_memory_is_that_of_the_largest_parts,
        "cp.get_default_pinned_memory_pool().free_all_blocks()",
        "pass",
    ),
    Fault(
        "lanes are made twice",
        what_is_shared_is_made_once,
        "    with MAKING:\n        threads, free = crew()",
        "    if True:\n        threads, free = crew()",
    ),
]


def launcher(monkeypatch, old="", new=""):
    """The launcher with a text in place of another, taken by the backend."""
    text = Path(device.__file__).read_text(encoding="utf-8")
    assert not old or text.count(old) == 1
    made = ModuleType(device.__name__)
    made.__package__ = device.__package__
    exec(compile(text.replace(old, new) if old else text, "device.py", "exec"), made.__dict__)  # noqa: S102 - it is ours
    for name in ("reduced", "fill_map"):
        monkeypatch.setattr(cuda, name, getattr(made, name))
    return made


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_planted_in_the_launcher_is_seen(machine, monkeypatch, fault):
    of = launcher(monkeypatch, fault.old, fault.new)
    monkeypatch.setattr(sys.modules[__name__], "PATIENCE", 0.5)
    with pytest.raises((AssertionError, standin.MisuseError, DeviceError, ValueError)):
        fault.seen_by(of)


@pytest.mark.parametrize("seen_by", sorted({fault.seen_by for fault in FAULTS}, key=lambda one: one.__name__))
def test_in_the_launcher_as_it_is_no_fault_is_seen(machine, monkeypatch, seen_by):
    seen_by(launcher(monkeypatch))


def test_the_stand_in_has_cupys_signatures():
    cupy = pytest.importorskip("cupy")
    paths = (
        *("RawModule", "RawModule.get_function", "ndarray.set", "ndarray.get", "ndarray.astype", "ndarray.reshape"),
        *("ndarray.fill", "copyto", "cuda.Event", "cuda.Event.record", "cuda.Event.synchronize"),
        *("cuda.get_current_stream", "cuda.get_elapsed_time", "cuda.MemoryPool.free_all_blocks"),
        *("empty", "zeros", "asarray", "get_default_memory_pool", "cuda.MemoryPool.total_bytes"),
        *("get_default_pinned_memory_pool", "cuda.PinnedMemoryPool.free_all_blocks"),
        *("cuda.Device", "cuda.Stream", "cuda.Stream.synchronize", "cuda.alloc_pinned_memory"),
        *("cuda.runtime.getDeviceCount", "cuda.runtime.getDeviceProperties", "cuda.runtime.memGetInfo"),
    )
    mine = SimpleNamespace(**vars(standin))
    pools = {"MemoryPool": standin.MemoryPool, "PinnedMemoryPool": standin.PinnedMemoryPool}
    mine.cuda = SimpleNamespace(**vars(standin.cuda), **pools)
    for path in paths:
        assert standin.parameters(reached(mine, path)) == real_parameters(reached(cupy, path)), path
    assert "grid, block, args" in cupy.RawKernel.__call__.__doc__
    assert "shared_mem=0" in cupy.RawKernel.__call__.__doc__
    assert hasattr(cupy.RawKernel, "max_dynamic_shared_size_bytes")
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert issubclass(cupy.cuda.runtime.CUDARuntimeError, RuntimeError)
    assert issubclass(cupy.cuda.driver.CUDADriverError, RuntimeError)
    assert issubclass(cupy.cuda.compiler.CompileException, Exception)
    assert inspect.isdatadescriptor(cupy.cuda.Device.compute_capability)


def reached(root, path):
    for name in path.split("."):
        root = getattr(root, name)
    return root


def real_parameters(function):
    """Of a function of CuPy; compiled ones tell their signature in the first line of their docstring."""
    try:
        found = list(inspect.signature(function).parameters)
    except ValueError:
        declared = re.search(r"\((.*)\)", function.__doc__.strip().splitlines()[0])[1]
        found = [one.split("=")[0].split()[-1] for one in declared.split(",") if one.strip() and one.strip() != "*"]
    return [name.lstrip("*") for name in found if name != "self"]


def test_the_benchmark_says_that_no_gpu_answers():
    script = Path(__file__).parents[1] / "bench" / "gpu.py"
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(script)], env=hidden, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing is measured: no CUDA engine answers" in done.stderr
