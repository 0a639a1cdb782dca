"""GPU reductions and maps against CuPy's own ways, in the same run: python bench/gpu.py [--only TEXT].

For each workload, in nanoseconds a voxel by CUDA events: our kernels, on data that is on the device; a copy from
device to device of as many bytes as must be read (the floor: image and ground truth, once); a box filter of
cupyx.scipy.ndimage and a masked sum; a summed-area table of cupy.cumsum and a masked sum. And the whole call, with
the copies from and to the host, by the clock. Then batches: images in memory one after the other, and in threads, whose
copies and kernels overlap, beside what it takes to copy them from pinned memory; and a party's manifest of files. Then
stacks of feature maps, beside box filters of cupyx.scipy.ndimage in float32, a classifier's labels, and additive
statistics: sums over features and co-occurrence. The floor of these is a copy of the image and of what comes out.
Ours is checked to equal the processor's answer, and the table's sum ours, before anything is timed. Writes
bench/results/gpu.json. Ends with 2 if no GPU answers.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from timing import machine
from voxring import Study
from voxring.batch import party_batch
from voxring.errors import DeviceError
from voxring.features import class_statistics, feature_maps, sums_asked
from voxring.kernels import cpu, cuda
from voxring.kernels.checks import magnitude_of
from voxring.kernels.cpu.additive import directions
from voxring.kernels.cuda import device
from voxring.kernels.cuda.classifying import classify_plan
from voxring.kernels.cuda.features import plans_of
from voxring.kernels.cuda.pairing import Pairs, pairs_plan
from voxring.kernels.cuda.plans import plan_for, reductions
from voxring.kernels.cuda.summing import read_sums, sums_plan
from voxring.learn import Model, Moments
from workloads import Workload, ct, slices_2d

RESULTS = Path(__file__).parent / "results" / "gpu.json"
ROUNDS, QUEUED = 15, 10
IMAGES = 12
THREADS = (1, 2, 4, 8)
WINDOWS = (3, 7)
"""Of the features."""
FRACTION_BITS = 16
TRAINED_ON = 5_000
MAPS = {"mean map": (cuda.mean_map, cpu.mean_map), "variance map": (cuda.variance_map, cpu.variance_map)}


def events(functions):
    """Median seconds of each function on the current stream of the device, in turn; two calls of each warm up.

    A sample is of QUEUED calls: the host then queues a call while the device is at another, and does not count.
    """
    cp = device.cupy()
    stream = cp.cuda.get_current_stream()
    samples = {name: [] for name in functions}
    for function in functions.values():
        function()
        function()
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start, stop = cp.cuda.Event(), cp.cuda.Event()
            start.record(stream)
            for _ in range(QUEUED):
                function()
            stop.record(stream)
            stop.synchronize()
            samples[name].append(cp.cuda.get_elapsed_time(start, stop) / 1e3 / QUEUED)
    return {name: statistics.median(times) for name, times in samples.items()}


def clocked(function):
    """Median seconds of calls that end on the host."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def on_device(work, lane):
    """Our kernels alone, over an image that lies on the device, and what they answer."""
    plan = plan_for(work.image.shape, work.image.dtype, work.window, "reflect", "reduce", shared=device.shared_memory())
    running = device.start(plan, lane, work.image, work.mask, (1,))
    run = again(running)
    run()
    return run, lambda: reductions(plan, device.fetch(lane, running.buffers["table"]))


def again(*carried_out):
    """What runs the kernels of plans that were carried out, over what lies on the device."""
    todo = []
    for plan, lane, buffers in carried_out:
        cleared = [buffers[name] for name, buffer in plan.buffers.items() if buffer.clear]
        launches = [(device.function(lane.device.id, one[:3]), one) for one in plan.launches]
        todo.append((buffers, cleared, launches))

    def run():
        for buffers, cleared, launches in todo:
            for one in cleared:
                one.fill(0)
            for kernel, one in launches:
                arguments = tuple(buffers[a] if isinstance(a, str) else a for a in one.arguments)
                kernel(one.grid, one.block, arguments, shared_mem=one.shared)

    return run


def box_filter(work, image, mask):
    """cupyx.scipy.ndimage in float32, and its masked sum."""
    from cupyx.scipy.ndimage import uniform_filter

    values = image.astype(np.float32)
    return lambda: (uniform_filter(values, size=work.window, mode="reflect") * mask).sum(dtype=np.float64)


def tables(work, image, mask):
    """A summed-area table along each axis of the window, by cupy.cumsum in int64, and a masked sum."""
    cp = device.cupy()

    def run():
        table = image.astype(np.int64)
        for axis, c in enumerate(work.window):
            if c == 1:
                continue
            pad = [(c // 2, c - 1 - c // 2) if a == axis else (0, 0) for a in range(3)]
            table = cp.cumsum(cp.pad(table, pad, mode="symmetric"), axis=axis)
            table = cp.pad(table, [(1, 0) if a == axis else (0, 0) for a in range(3)])
            after, before = [slice(None)] * 3, [slice(None)] * 3
            after[axis], before[axis] = slice(c, None), slice(None, -c)
            table = table[tuple(after)] - table[tuple(before)]
        return (table * mask).sum()

    return run


def measure(work):
    """One reduction: kernels, floor, peers, and the whole call."""
    expected = cpu.reduce(work.image, work.mask, [1], work.window, "reflect")
    assert cuda.reduce(work.image, work.mask, [1], work.window, "reflect") == expected, "not exact: nothing is timed"
    lane = device.lanes()[0]
    with lane.device, lane.stream:
        seconds, floor = measure_kernels(work, lane, expected)
    seconds["end to end"] = clocked(lambda: cuda.reduce(work.image, work.mask, [1], work.window, "reflect"))
    return row_of(work.name, work, seconds, floor)


def measure_kernels(work, lane, expected):
    """What runs on the device alone, in seconds; and the bytes that must be read."""
    cp = device.cupy()
    run, answer = on_device(work, lane)
    assert answer() == expected, "not exact: nothing is timed"
    floor = work.image.nbytes + work.mask.nbytes
    source, target = (cp.empty(floor // 2, np.uint8) for _ in range(2))  # what is read and written is the floor
    functions = {"voxring": run, "copy": lambda: cp.copyto(target, source), **peers(work, expected)}
    return events(functions), floor


def peers(work, expected):
    """CuPy's own ways."""
    cp = device.cupy()
    image, mask = cp.asarray(work.image), cp.asarray(work.mask)
    table = tables(work, image, mask)
    assert int(table()) == sum(total for _, total in expected[0].groups.values()), "the table is not exact"
    return {"uniform_filter": box_filter(work, image, mask), "cumsum table": table}


def measure_batch(work, count=IMAGES):
    """Images in memory: one after the other, and some at a time; beside their copies from pinned memory."""
    given = [(np.roll(work.image, 7 * at, 1), np.roll(work.mask, 5 * at, 2)) for at in range(count)]

    def reduce(one):
        return cuda.reduce(*one, [1], work.window, "reflect")

    expected = [cpu.reduce(*one, [1], work.window, "reflect") for one in given]
    seconds = {"copy from pinned memory": clocked(copies(given)) / count}
    for threads in THREADS:
        with ThreadPoolExecutor(threads) as pool:
            assert list(pool.map(reduce, given)) == expected, "not exact: nothing is timed"
            seconds[f"{threads} at a time"] = clocked(lambda: list(pool.map(reduce, given))) / count
    return row_of(f"batch of {count}, {work.name}", work, seconds, work.image.nbytes + work.mask.nbytes)


def copies(given):
    """Copy every image and mask to the first device, from pinned memory where they lie already: no batch is faster."""
    cp = device.cupy()
    lane = device.lanes()[0]
    with lane.device, lane.stream:
        pairs = []
        for number, array in enumerate(array for one in given for array in one):
            host = lane.host(f"bench {number % 2}", array.dtype.str, array.size)
            host[...] = array.reshape(-1)
            pairs.append((cp.empty(array.size, array.dtype), host))
            lane.stream.synchronize()

    def run():
        with lane.device, lane.stream:
            for target, host in pairs:
                target.set(host, stream=lane.stream)
            lane.stream.synchronize()

    return run


def measure_party(work, count=IMAGES):
    """A manifest of files as they lie, from the page cache, by the processor and by the GPU."""
    study = Study.of(name="bench", classes={"a": 1}, window={"size": work.window, "border": "reflect"})
    with tempfile.TemporaryDirectory() as name:
        lines = ["image,ground_truth"]
        for at in range(count):
            np.save(f"{name}/image{at}.npy", np.roll(work.image, 7 * at, 1))
            np.save(f"{name}/truth{at}.npy", np.roll(work.mask, 5 * at, 2))
            lines.append(f"image{at}.npy,truth{at}.npy")
        manifest = Path(name, "m.csv")
        manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
        expected = party_batch(manifest, study).totals
        seconds = {}
        for where, workers in (("cpu", 1), *(("cuda", threads) for threads in THREADS)):
            batch = lambda where=where, workers=workers: party_batch(manifest, study, device=where, workers=workers)  # noqa: E731
            assert batch().totals == expected, "not exact: nothing is timed"
            seconds["processor" if where == "cpu" else f"{workers} at a time"] = clocked(batch) / count
    return row_of(f"party, {count} files, {work.name}", work, seconds, work.image.nbytes + work.mask.nbytes)


def measure_map(kind, work):
    """One map: the whole call, beside the processor's."""
    ours, processors = MAPS[kind]
    options = {"window": work.window, "border": "reflect"}
    assert np.array_equal(ours(work.image, **options), processors(work.image, **options)), "not the same: not timed"
    seconds = {
        "end to end": clocked(lambda: ours(work.image, **options)),
        "processor": clocked(lambda: processors(work.image, **options)),
    }
    return row_of(f"{kind}, {work.name}", work, seconds, work.image.nbytes + 4 * work.voxels)


def study_of(**tables):
    """Intensity, gradient, and mean and standard deviation at some windows; two classes, of which masks hold one."""
    windowed = [{"kind": kind, "window": window} for window in WINDOWS for kind in ("mean", "std")]
    return Study.of(
        name="bench",
        classes={"a": 1, "b": 2},
        feature=[{"kind": "intensity"}, {"kind": "gradient"}, *windowed],
        window={"border": "mirror", "axes": 3},
        standardise={"fraction_bits": FRACTION_BITS},
        bounds={"intensity": 2**16},
        **tables,
    )


def whole(image):
    """The box of a whole image."""
    return 0, image.shape[0], 0, image.shape[1]


def stack_on(lane, image, study, more=()):
    """The plans of an image's features, carried out on a lane: their maps are the first's buffer ``stack``."""
    asked = [*(cuda.Asked(one.kind, one.along(3)) for one in study.feature), *more]
    scale = cuda.Scale(study.unit, 0, FRACTION_BITS, 0, magnitude_of(image.dtype))
    there, made = {}, []
    for plan in plans_of(image.shape, image.dtype, asked, study.window.border, scale, whole(image)):
        made.append(device.start(plan, lane, image, None, (), there))
        there["stack"] = made[0].buffers["stack"]
    return made


def measure_call(name, work, call, same, kernels, written):
    """A call on either device; and its kernels alone, beside a copy of the image, the mask and what is written.

    ``kernels`` makes, on a lane, what runs them, and what reads their answer, which is to be the ``same`` as a call's.
    """
    expected = call("cpu")
    assert same(call("cuda"), expected), "not exact: nothing is timed"
    cp, lane = device.cupy(), device.lanes()[0]
    floor = work.image.nbytes + written
    with lane.device, lane.stream:
        run, answer, *others = kernels(lane)
        run()
        assert same(answer(), expected), "not exact: nothing is timed"
        source, target = (cp.empty(floor // 2, np.uint8) for _ in range(2))
        seconds = events({"voxring": run, "copy": lambda: cp.copyto(target, source), **dict(*others)})
    seconds["end to end"] = clocked(lambda: call("cuda"))
    seconds["processor"] = clocked(lambda: call("cpu"))
    return row_of(f"{name}, {work.name}", work, seconds, floor)


def measure_features(work):
    """A stack of feature maps."""
    image, study = work.image, study_of()

    def kernels(lane):
        made = stack_on(lane, image, study)
        shape = len(study.feature), *image.shape
        return again(*made), lambda: device.fetch(lane, made[0].buffers["stack"]).reshape(shape), filters(image)

    def same(some, others):
        return all(map(np.array_equal, some, others))

    written = 8 * len(study.feature) * work.voxels
    title = f"{len(study.feature)} features"
    return measure_call(title, work, lambda on: feature_maps(image, study, device=on), same, kernels, written)


def filters(image):
    """Means and deviations in float32 by cupyx.scipy.ndimage, the others left out."""
    from cupyx.scipy.ndimage import uniform_filter

    cp = device.cupy()
    x = cp.asarray(image).astype(np.float32)

    def run():
        squares = x * x
        for window in WINDOWS:
            mean = uniform_filter(x, size=window, mode="mirror")
            cp.sqrt(cp.maximum(uniform_filter(squares, size=window, mode="mirror") - mean * mean, 0))

    return {"uniform_filter": run}


def measure_labels(work):
    """Labels of a quadratic discriminant."""
    image, study = work.image, study_of()
    rng, names = np.random.default_rng(1), [one.label for one in study.feature]
    some = image[: max(1, len(image) // 8)]
    table = np.stack([one.reshape(-1) for one in feature_maps(some, study)], -1) / study.unit
    chosen = rng.choice(len(table), min(TRAINED_ON, len(table)), replace=False)
    labels = 1 + work.mask[: len(some)].reshape(-1)[chosen]
    model = Model.of(study, Moments.of_arrays(table[chosen], labels, names=names), "qda", shrinkage=0.1)

    def kernels(lane):
        of = model.discriminant
        weights = [one.reshape(-1) for one in (of.centres, of.linear, of.constants, of.whiten, of.offsets)]
        sizes = len(names), len(of.constants), of.whiten.shape[1]
        values = np.array(model.values, np.uint8)
        classifier = cuda.Classifier(np.concatenate(weights), *sizes, values, study.unit, True, False)
        made = stack_on(lane, image, study)
        plan = classify_plan(classifier, whole(image), image.size)
        made.append(device.start(plan, lane, image, None, (), {"stack": made[0].buffers["stack"]}))
        return again(*made), lambda: device.fetch(lane, made[-1].buffers["labels"]).reshape(image.shape)

    title = f"labels by {len(names)} features"
    return measure_call(title, work, lambda on: model.predict(image, device=on), np.array_equal, kernels, work.voxels)


def measure_sums(work):
    """The Gram matrix of features, four powers of the intensity, and its histogram."""
    histogram = {"bins": 64, "range": [-1024, 3072]}
    study = study_of(statistics={"gram": True, "moments": 4, "histogram": histogram})
    image, of = work.image, sums_asked(study, 2)

    def kernels(lane):
        made = stack_on(lane, image, study, [cuda.Asked("intensity", (1, 1, 1))])
        plan = sums_plan(of, whole(image), work.mask)
        made.append(device.start(plan, lane, image, None, (), {"stack": made[0].buffers["stack"]}))

        def answer():
            sums = read_sums(of, device.fetch(lane, made[-1].buffers["sums"]))
            bins = device.fetch(lane, made[-1].buffers["counts"]).reshape(2, -1).tolist()
            return {name: (*one, *more) for name, one, more in zip("ab", sums, bins, strict=True)}

        return again(*made), answer

    return measure_statistics("Gram, moments, histogram", work, study, kernels)


def measure_pairs(work):
    """Co-occurrence of 32 levels, in all directions."""
    study = study_of(statistics={"glcm": {"levels": 32, "range": [-1024, 3072]}})
    image, edges = work.image, study.statistics.glcm.bins.starts(study.unit)[1:-1]
    of = Pairs(2, study.unit, 0, edges, directions(1, planar=len(work.image) == 1))

    def kernels(lane):
        plan = pairs_plan(of, image.dtype, work.mask, work.mask, whole(image))
        running = device.start(plan, lane, image, None, ())

        def answer():
            counts = device.fetch(lane, running.buffers["table"]).reshape(2, 32, 32)
            return {name: tuple((one + one.T).reshape(-1).tolist()) for name, one in zip("ab", counts, strict=True)}

        return again(running), answer

    return measure_statistics("co-occurrence", work, study, kernels)


def measure_statistics(name, work, study, kernels):
    """Sums over classes: all that is read is the image and the mask."""

    def call(on):
        return class_statistics(work.image, work.mask, study, device=on)

    return measure_call(name, work, call, lambda some, others: some == others, kernels, work.mask.nbytes)


def shallow(work):
    """Its first planes: stacks take 8 bytes a voxel and feature."""
    return Workload(work.name.replace("×256", "×64"), work.image[:64], work.mask[:64], work.window)


def row_of(name, work, seconds, floor):
    row = {"workload": name, "voxels": work.voxels, "floor_bytes": floor}
    row["ns"] = {of: one / work.voxels * 1e9 for of, one in seconds.items()}
    row["gb_per_s"] = {of: floor / one / 1e9 for of, one in seconds.items()}
    if "copy" in seconds:
        row["fraction_of_floor"] = seconds["copy"] / seconds["voxring"]
    return row


def sized(work, c):
    """The same images under another flat window."""
    return Workload(work.name.replace("7×7", f"{c}×{c}"), work.image, work.mask, (1, c, c))


def workloads():
    """Name, and what measures it; images are made one at a time, since they are large."""
    for c in (7, 15, 21):
        yield f"2D {c}×{c}", lambda c=c: measure(sized(slices_2d("dense"), c))
    for c in (5, 7, 15):
        yield f"3D {c}³", lambda c=c: measure(ct("dense", c))
    yield "batch 3D 7³", lambda: measure_batch(ct("dense", 7))
    yield "party 3D 7³", lambda: measure_party(ct("dense", 7))
    for kind in MAPS:
        yield f"{kind} 2D 7×7", lambda kind=kind: measure_map(kind, slices_2d("dense"))
        yield f"{kind} 3D 5³", lambda kind=kind: measure_map(kind, ct("dense", 5))
    for name, of in (
        ("features", measure_features),
        ("labels", measure_labels),
        ("sums of features", measure_sums),
        ("co-occurrence", measure_pairs),
    ):
        yield f"{name} 3D", lambda of=of: of(shallow(ct("dense", 7)))


def show(row):
    print(f"\n{row['workload']}  ({row['voxels']:,} voxels, {row['floor_bytes'] / row['voxels']:.0f} bytes a voxel)")
    for name, ns in sorted(row["ns"].items(), key=lambda item: item[1]):
        print(f"  {name:<24} {ns:9.4f} ns a voxel   {row['gb_per_s'][name]:8.1f} GB/s of what must be read", flush=True)
    if "fraction_of_floor" in row:
        print(f"  ours runs at {row['fraction_of_floor']:.0%} of the speed of a copy that moves as many bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only workloads whose name holds this text; writes no file")
    options = parser.parse_args()
    try:
        name = cuda.name()
    except DeviceError as error:
        print(f"bench/gpu.py: nothing is measured: {error}", file=sys.stderr)
        return 2
    rows = []
    RESULTS.parent.mkdir(exist_ok=True)
    for of, make in workloads():
        if options.only not in of:
            continue
        rows.append(make())
        show(rows[-1])
        if not options.only:  # after each, so that a run cut short leaves what it measured
            results = {"device": name, "machine": machine(), "rows": rows}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        device.cupy().get_default_memory_pool().free_all_blocks()
    return 0


if __name__ == "__main__":
    sys.exit(main())
