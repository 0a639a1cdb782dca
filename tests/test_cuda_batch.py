"""A party's batch on GPUs, through the stand-in for CuPy: threads share them, and totals are the processor's."""

import importlib
import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cuda_tools import standin
from voxring import DeviceError, ImageError, Study
from voxring.batch import Journal, party_batch, read_manifest
from voxring.batch.pool import in_threads
from voxring.batch.row import Answer, Task
from voxring.devices import taken
from voxring.kernels import Reduction
from voxring.kernels.cuda import device

WINDOW = {"size": (1, 3, 4), "border": "clip"}
STUDY = Study.of(name="test", classes={"a": 1, "b": 2}, bounds={"intensity": 200}, window=WINDOW)
ROWS = 9
GPU = "GPU (Stand-in 0 and 1 more)"
PATIENCE = 10.0  # seconds until what another thread should have done counts as not done


@pytest.fixture
def machine():
    with standin.install() as here:
        yield here


@pytest.fixture
def manifest(tmp_path):
    rng = np.random.default_rng(3)
    lines = ["image,ground_truth,patient"]
    for i in range(ROWS):
        shape = (2, 8 + i, 20)
        np.save(tmp_path / f"image{i}.npy", rng.integers(-100, 100, shape, np.int16))
        np.save(tmp_path / f"truth{i}.npy", rng.integers(0, 3, shape, np.uint8))
        lines.append(f"image{i}.npy,truth{i}.npy,{'pqr'[i % 3]}")
    path = tmp_path / "m.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def kernels(machine, when="ran"):
    return [event for event in machine.log if (event.when, event.what) == (when, "box2d")]


@pytest.mark.parametrize(("where", "workers"), [("cuda", 1), ("cuda", 3), ("auto", 20)])
def test_totals_are_the_processors_and_devices_take_images_in_turn(machine, manifest, where, workers):
    expected = party_batch(manifest, STUDY)
    batch = party_batch(manifest, STUDY, device=where, workers=workers)
    assert batch == expected
    assert (batch.devices, expected.devices) == ({GPU: ROWS}, {"CPU": ROWS})
    assert len(kernels(machine)) == ROWS
    assert {event.device for event in kernels(machine)} == {0, 1}
    assert not multiprocessing.active_children()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("voxring worker")]


def test_an_image_is_read_and_copied_while_another_computes(machine, manifest):
    """The first kernel waits until those of two other images are queued."""
    first, seen = threading.Lock(), []

    def before(what, stream):
        if what == "box2d" and first.acquire(blocking=False):
            until = time.monotonic() + PATIENCE
            while len(kernels(machine, "queued")) < 3 and time.monotonic() < until:
                time.sleep(0.001)
            seen.extend(kernels(machine, "queued"))

    machine.before = before
    assert party_batch(manifest, STUDY, device="cuda", workers=3) == party_batch(manifest, STUDY)
    assert len({event.stream for event in seen}) >= 3
    assert {event.device for event in seen} == {0, 1}


def test_a_row_that_cannot_be_used_is_alone_in_that(machine, manifest):
    (manifest.parent / "image4.npy").write_bytes((manifest.parent / "image4.npy").read_bytes()[:-1])
    np.save(manifest.parent / "image5.npy", np.full((2, 13, 20), 9000, np.int16))  # beyond the study's bound
    told = []
    batch = party_batch(manifest, STUDY, device="cuda", workers=3, bad="skip", report=told.append)
    assert batch.patients == party_batch(manifest, STUDY, bad="skip").patients
    assert [row.line for row in batch.skipped] == sorted(row.line for row in told) == [6, 7]
    assert "image5.npy: standardised values run" in str(batch.skipped[1].error)
    with pytest.raises(ImageError, match=r"m\.csv: line [67]: "):
        party_batch(manifest, STUDY, device="cuda", workers=3, bad="stop")


def test_what_is_done_when_a_batch_is_stopped_is_in_the_journal(machine, manifest):
    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with Journal(manifest.parent, STUDY, "here") as journal, pytest.raises(KeyboardInterrupt):
        party_batch(manifest, STUDY, device="cuda", workers=3, journal=journal, progress=stop)
    assert device.crew().free.qsize() == 2 * device.LANES
    machine.log.clear()
    with Journal(manifest.parent, STUDY, "here") as journal:
        batch = party_batch(manifest, STUDY, device="cuda", workers=3, journal=journal)
    assert batch.known == 4
    assert len(kernels(machine)) == ROWS - 4
    assert batch.patients == party_batch(manifest, STUDY).patients


def test_an_iterator_that_is_closed_takes_no_more_rows(machine, manifest):
    rows = read_manifest(manifest)
    answers = in_threads(Task(STUDY, "cuda", None, None), rows, range(ROWS), 2)
    number, came = next(answers)
    assert isinstance(came, Answer)
    assert number in (0, 1, 2)
    answers.close()
    done = len(kernels(machine))
    assert done <= 1 + 3
    time.sleep(0.02)
    assert len(kernels(machine)) == done
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("voxring worker")]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_batch_says_which_device_took_which_images(machine, manifest, workers):
    np.save(manifest.parent / "image3.npy", np.full((2, 11, 20), 1.5))  # on the grid it fits 32 bits
    np.save(manifest.parent / "image4.npy", np.full((2, 12, 20), 40000.5))  # and does not
    np.save(manifest.parent / "truth5.npy", np.zeros((2, 13, 20), np.uint8))  # nothing to compute
    study = Study.of(name="test", classes={"a": 1, "b": 2}, bounds={"intensity": 50000}, window=WINDOW)
    with taken() as devices:
        batch = party_batch(manifest, study, device="auto", workers=workers)
    assert batch == party_batch(manifest, study)
    assert batch.computed() == f"1 image computed on CPU, 7 images computed on {GPU}"
    assert devices == {"CPU", GPU}


def test_a_device_that_fails_ends_the_batch(manifest):
    with standin.install(memory=1 << 10), pytest.raises(DeviceError, match="a row of 20 voxels needs"):
        party_batch(manifest, STUDY, device="cuda", workers=3, bad="skip")
    with standin.install() as machine:

        def fails(what, stream):
            raise standin.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

        machine.before = fails
        with pytest.raises(DeviceError, match=r"the GPU failed: cudaErrorIllegalAddress.*nvidia-smi"):
            party_batch(manifest, STUDY, device="cuda", workers=3, bad="skip")


def test_the_benchmark_runs_but_for_cupys_own_ways(machine, monkeypatch):
    """Its times are those of the stand-in, and mean nothing; that it is right about what is exact is what counts."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "bench")
    bench = importlib.import_module("gpu")
    rng = np.random.default_rng(4)
    image = rng.integers(-100, 100, (2, 9, 20), np.int16)
    work = bench.Workload("small", image, rng.integers(0, 2, image.shape, np.uint8), (1, 3, 4))
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "THREADS", (1, 3))
    monkeypatch.setattr(bench, "peers", lambda work, expected: {})
    rows = [bench.measure(work), bench.measure_batch(work, 3), bench.measure_party(work, 3)]
    rows += [bench.measure_map(kind, work) for kind in bench.MAPS]
    assert [sorted(row["ns"]) for row in rows] == [
        ["copy", "end to end", "voxring"],
        ["1 at a time", "3 at a time", "copy from pinned memory"],
        ["1 at a time", "3 at a time", "processor"],
        *[["end to end", "processor"]] * 2,
    ]
    monkeypatch.setattr(bench, "WINDOWS", ((1, 3, 4),))
    monkeypatch.setattr(bench, "FRACTION_BITS", 4)
    monkeypatch.setattr(bench, "filters", lambda image: {})
    more = (bench.measure_features, bench.measure_labels, bench.measure_sums, bench.measure_pairs)
    for measure in more:
        rows.append(measure(work))
        assert sorted(rows[-1]["ns"]) == ["copy", "end to end", "processor", "voxring"]
    assert all(time > 0 for row in rows for time in row["ns"].values())
    monkeypatch.setattr(bench, "feature_maps", lambda image, study, device: [np.zeros(image.shape, np.int64)] * 4)
    monkeypatch.setattr(bench, "class_statistics", lambda image, mask, study, device: {"a": (0,), "b": (0,)})
    for measure in (bench.measure_features, bench.measure_sums, bench.measure_pairs):
        with pytest.raises(AssertionError, match="not exact: nothing is timed"):
            measure(work)
    monkeypatch.setattr(bench.cpu, "reduce", lambda *given: [Reduction(), Reduction()])
    for measure in (bench.measure, bench.measure_batch):
        with pytest.raises(AssertionError, match="not exact: nothing is timed"):
            measure(work)
