"""A hospital's batch against nibabel with scipy.ndimage, in one run: python bench/batch.py [--count N].

Makes volumes of noisy CT with lesion-like ground truth as .nii.gz in a temporary folder, and reduces all of them with
as many processes as there are processors, in three ways, in turn:

  peer             nibabel reads, scipy.ndimage.uniform_filter makes the map of local means, numpy sums it
  voxring          `party_batch` with a journal
  decompression    isal unpacks both files of each row into memory, and no more

for three studies: one of which the windows reach few planes, and two whose standardisation needs the whole volume, of
which nyul maps every voxel that windows reach. A volume is read once in each. Where parties agree on nyul's landmarks,
it is read once more before, for its own. Sums are checked against the peer's, to its own precision, before anything is
timed. Writes bench/results/batch.json.
"""

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
from isal import igzip
from scipy import ndimage

from timing import machine
from voxring import Study
from voxring.batch import Journal, party_batch, read_manifest
from voxring.batch.row import Answer, Task, answer
from voxring.images import Room

RESULTS = Path(__file__).parent / "results" / "batch.json"
SHAPE = (96, 256, 256)
BUFFER = memoryview(np.zeros(math.prod(SHAPE) * 2 + 1024, np.uint8))
STUDIES = {
    "CT, rescale": {"method": "rescale", "range": [-1000, 3000], "fraction_bits": 32},
    "MR, zscore of all voxels": {"method": "zscore", "foreground": "above-mean", "fraction_bits": 32},
    "MR, nyul through given landmarks, a volume read once": {
        "method": "nyul",
        "percentiles": [1, 25, 50, 75, 99],
        "landmarks": [0, 0.2, 0.4, 0.7, 1],
        "foreground": "above-mean",
        "fraction_bits": 30,
    },
}


def study_of(standardise):
    return Study.of(name="bench", classes={"lesion": 1}, window={"size": 7}, standardise=standardise)


def make(job):
    """One volume: smooth tissue with noise of 4 bits, and 1 to 4 lesions of 8 to 25 mm in a random part of it."""
    folder, number = job
    rng = np.random.default_rng(number)
    coarse = rng.normal(0, 1, (14, 34, 34))
    smooth = ndimage.zoom(coarse, [n / m for n, m in zip(SHAPE, coarse.shape, strict=True)], order=1)
    image = (smooth * 150 + rng.normal(40, 12, SHAPE)).astype(np.int16)
    image[:, :20] = -1000  # air
    truth = np.zeros(SHAPE, np.uint8)
    z, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
    place = rng.integers(30, [SHAPE[0] - 30, 226, 226])
    for _ in range(rng.integers(1, 5)):
        centre, radius = place + rng.integers(-12, 13, 3), rng.integers(4, 13)
        truth[((z - centre[0]) * 2) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2] = 1
    for kind, array in (("image", image), ("truth", truth)):
        picture = nibabel.Nifti1Image(array.transpose(), np.diag([0.8, 0.8, 1.6, 1.0]))
        nibabel.save(picture, f"{folder}/{kind}{number}.nii.gz")


def peer(job):
    """One volume as it is usually done: n, Σ of local means, Σx and Σx², in float64."""
    image_path, truth_path, standardise = job
    image = np.asarray(nibabel.load(image_path).dataobj, dtype=np.float64)
    truth = np.asarray(nibabel.load(truth_path).dataobj) == 1
    if standardise["method"] == "rescale":
        low, high = standardise["range"]
        image = (np.clip(image, low, high) - low) / (high - low)
    else:
        foreground = image[image > image.mean()]
        if standardise["method"] == "nyul":
            own = np.percentile(foreground, standardise["percentiles"], method="inverted_cdf")
            image = np.interp(image, own, standardise["landmarks"])
        else:
            image = (image - foreground.mean()) / foreground.std(ddof=1)
    means = ndimage.uniform_filter(image, 7, mode="reflect")
    inside = image[truth]
    return int(truth.sum()), float(means[truth].sum()), float(inside.sum()), float((inside**2).sum())


def unpack(job):
    """Both files into the same memory, again and again, in pieces, which is isal's best pace."""
    for path in job[:2]:
        with igzip.open(path) as stream:
            filled = 0
            while count := stream.readinto(BUFFER[filled : filled + (1 << 20)]):
                filled += count


def resident(what):
    """A size of this process, in bytes: VmRSS now, VmHWM at its peak."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(what)) * 1024


def memory(job):
    """How much a worker grows over some rows, in volumes of the image."""
    rows, study = job
    task = Task(study, "cpu", 1, bytes(32))
    answer(task, rows[0])  # what is loaded and compiled is no volume
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak anew
    before, room = resident("VmRSS"), Room()
    for row in rows:
        assert isinstance(answer(task, row, room), Answer)
    return (resident("VmHWM") - before) / (math.prod(SHAPE) * 2)


def check(rows, standardise, study, folder):
    """Every sum against the peer's, on the first rows."""
    few = folder / "few.csv"
    some = rows[:3]
    few.write_text("image,ground_truth\n" + "".join(f"{row.image},{row.ground_truth}\n" for row in some))
    mine = party_batch(few, study).totals["lesion"]
    theirs = [peer((row.image, row.ground_truth, standardise)) for row in some]
    n, total, intensities, squares = (math.fsum(column) for column in zip(*theirs, strict=True))
    assert mine.voxels == n, (mine.voxels, n)
    for ours, of_peer in (
        (mine.sum / study.denominator, total),
        (mine.total / study.unit, intensities),
        (mine.squares / study.unit**2, squares),
    ):
        assert abs(ours - of_peer) <= 1e-6 * n, (ours, of_peer, n)  # a map's slope has 32 bits after the point


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    """Make, check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="volumes")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    document = {"machine": machine(), "count": options.count, "shape": SHAPE, "workers": workers, "studies": {}}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, spawn.Pool(workers) as pool:
        folder = Path(name)
        pool.map(make, [(name, number) for number in range(options.count)], chunksize=1)
        manifest = folder / "m.csv"
        files = "".join(f"image{i}.nii.gz,truth{i}.nii.gz\n" for i in range(options.count))
        manifest.write_text("image,ground_truth\n" + files)
        rows = read_manifest(manifest)
        packed = sum(row.image.stat().st_size + row.ground_truth.stat().st_size for row in rows)
        print(f"{options.count} volumes of {SHAPE} int16, {packed / 1e6:.0f} MB compressed, {workers} processes")
        for title, standardise in STUDIES.items():
            study = study_of(standardise)
            check(rows, standardise, study, folder)
            jobs = [(row.image, row.ground_truth, standardise) for row in rows]
            # The peer takes long: its pace is taken from a part of the rows, in each round.
            part = jobs[: max(workers, len(jobs) // 8)]
            wholes = []
            times = {"peer": [], "voxring": [], "decompression": []}
            for turn in range(options.rounds):
                times["peer"].append(timed(lambda: pool.map(peer, part, chunksize=1)) / len(part))  # noqa: B023
                times["decompression"].append(timed(lambda: pool.map(unpack, jobs, chunksize=1)) / len(jobs))  # noqa: B023
                pace, whole = batch(manifest, study, folder / f"state{turn}{title[:2]}", workers)
                times["voxring"].append(pace)
                wholes.append(whole)
            pace = {what: 1 / statistics.median(of) for what, of in times.items()}
            entry = {
                "images_per_second": pace,
                "over_peer": pace["voxring"] / pace["peer"],
                "seconds_with_start": statistics.median(wholes),
                "of_decompression": pace["voxring"] / pace["decompression"],
            }
            with spawn.Pool(1) as fresh:
                entry["peak_volumes_per_worker"] = fresh.apply(memory, ((rows[:4], study),))
            document["studies"][title] = entry
            print(
                f"{title}: peer {pace['peer']:.2f}, voxring {pace['voxring']:.2f}, decompression alone "
                f"{pace['decompression']:.2f} images/s: {entry['over_peer']:.1f} times the peer, "
                f"{entry['of_decompression']:.2f} of decompression alone, at its peak "
                f"{entry['peak_volumes_per_worker']:.2f} volumes a worker"
            )
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def batch(manifest, study, state, workers):
    """Seconds for a row, at the pace of the second half, and for the whole batch with the start of its workers.

    The peer's processes have been started and have loaded all that they need; these load and compile in the first half.
    """
    start, times = time.perf_counter(), {}
    with Journal(state, study, "bench") as journal:

        def progress(done, total):
            times[done] = time.perf_counter()

        party_batch(manifest, study, workers=workers, journal=journal, progress=progress)
    total = max(times)
    return (times[total] - times[total // 2]) / (total - total // 2), time.perf_counter() - start


if __name__ == "__main__":
    main()
