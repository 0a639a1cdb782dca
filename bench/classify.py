"""New images, from stored integers to labels: python bench/classify.py [--quick].

Against what a scikit-image TrainableSegmenter does, with the same features and the same classifier: scipy's filters
make the features as float64, scikit-image's predict_segmenter (or what it calls) hands them to scikit-learn. On all
processors the peer computes its features in threads, one a task, and predicts in as many parts. Before anything is
timed, the labels are held against scikit-learn's on voxring's own exact maps, which must be equal, and on scipy's,
which round otherwise; the share of equal ones is printed. Writes bench/results/classify.json.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy import ndimage

from timing import interleaved, machine
from voxring.features import FeatureStack
from voxring.learn import Model, Moments
from voxring.study import Study
from workloads import intensities, smooth

RESULTS = Path(__file__).parent / "results" / "classify.json"
CORES = len(os.sched_getaffinity(0))
WINDOWS = (3, 7)
STUDY = Study.of(
    name="bench",
    classes={"air": 1, "fat": 2, "organ": 3, "bone": 4},
    standardise={"method": "rescale", "range": [-1024, 3072]},
    feature=[
        {"kind": "intensity"},
        *({"kind": kind, "window": window} for window in WINDOWS for kind in ("mean", "std")),
        {"kind": "gradient"},
    ],
)
TRAINED_ON = 20_000


def image_and_truth(shape):
    """Tissues that follow a smooth field, so that classes overlap as real ones do."""
    image = intensities(shape, -1024, 3071, np.int16, 30)
    field = image + 900 * smooth(shape, [6, 12, 12], 31)
    truth = 1 + np.digitize(field, np.quantile(field[::4, ::8, ::8], [0.25, 0.5, 0.75])).astype(np.uint8)
    return image, truth


def scipy_features(image, threads):
    """The same features by scipy, as a segmenter has them: float64, the last axis over features."""
    x = (image.astype(np.float64) + 1024) / 4096

    def mean(window):
        return ndimage.uniform_filter(x, window, mode="reflect")

    def std(window):
        of_squares = ndimage.uniform_filter(x * x, window, mode="reflect")
        return np.sqrt(np.maximum(of_squares - mean(window) ** 2, 0))

    def gradient():
        return np.sqrt(sum(ndimage.correlate1d(x, [-1, 0, 1], axis, mode="reflect") ** 2 for axis in range(3))) / 2

    tasks = [lambda: x]
    for window in WINDOWS:
        tasks += [lambda window=window: mean(window), lambda window=window: std(window)]
    tasks.append(gradient)
    if threads == 1:
        made = [task() for task in tasks]
    else:
        with ThreadPoolExecutor(threads) as pool:
            made = list(pool.map(lambda task: task(), tasks))
    return np.stack(made, -1)


def segmenter(image, classifier, threads):
    """Features, then predictions."""
    features = scipy_features(image, threads)
    if threads == 1:
        return predict(features, classifier)
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(lambda part: predict(part, classifier), np.array_split(features, threads))))


def predict(features, classifier):
    try:
        from skimage.future import predict_segmenter
    except ModuleNotFoundError:
        return classifier.predict(features.reshape(-1, features.shape[-1])).reshape(features.shape[:-1])
    return predict_segmenter(features, classifier)


def ours(image, model, threads, probabilities=False):
    """Standardise, features, labels: as `voxring classify` has them."""
    stack = model.stack(image, threads=threads)
    return model.classify_planes(stack, (0, len(image)), probabilities=probabilities)


def peers(moments_of, labels):
    """scikit-learn's classifiers, fitted on the same voxels."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
    from sklearn.naive_bayes import GaussianNB

    return {
        "lda": LinearDiscriminantAnalysis(solver="lsqr").fit(moments_of, labels),
        "qda": QuadraticDiscriminantAnalysis(tol=1e-9).fit(moments_of, labels),
        "gnb": GaussianNB(var_smoothing=0).fit(moments_of, labels),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller image, fewer rounds")
    quick = parser.parse_args().quick
    try:
        import sklearn
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError as missing:
        print(f"left out: scikit-learn ({missing.name} is not installed); nothing to compare with")
        return
    shape = (32, 192, 192) if quick else (64, 320, 320)
    image, truth = image_and_truth(shape)
    names = [feature.label for feature in STUDY.feature]
    exact = np.stack(FeatureStack(image, STUDY).maps(), -1) / STUDY.unit
    chosen = np.random.default_rng(1).choice(image.size, TRAINED_ON, replace=False)
    table, labels = exact.reshape(-1, len(names))[chosen], truth.ravel()[chosen]
    moments = Moments.of_arrays(table, labels, names=names)
    print(f"{image.size:,} voxels of int16, {len(names)} features, {len(STUDY.classes)} classes, {CORES} cores\n")
    rows = []
    for kind, classifier in peers(table, labels).items():
        model = Model.of(STUDY, moments, kind)
        made, _ = ours(image, model, CORES)
        same = float((made == predict(exact, classifier)).mean())
        near = float((made == segmenter(image, classifier, 1)).mean())
        assert same == 1, f"{kind}: {1 - same:.2e} of the labels differ from scikit-learn's on the same maps"
        for threads in dict.fromkeys((1, CORES)):
            with threadpool_limits(limits=threads):
                times = interleaved(
                    {
                        "labels": lambda model=model, threads=threads: ours(image, model, threads),
                        "and probabilities": lambda model=model, threads=threads: ours(image, model, threads, True),
                        "segmenter": lambda classifier=classifier, threads=threads: segmenter(
                            image, classifier, threads
                        ),
                    },
                    rounds=3 if quick else 5,
                )
            row = {"classifier": kind, "threads": threads, "equal_on_scipys_features": near}
            rows.append(row | {name: seconds / image.size * 1e9 for name, seconds in times.items()})
            print(
                f"{kind}, {threads} thread{'s'[: threads - 1]}: labels {rows[-1]['labels']:.1f} ns a voxel, and "
                f"probabilities {rows[-1]['and probabilities']:.1f}; segmenter {rows[-1]['segmenter']:.1f}, "
                f"{times['segmenter'] / times['labels']:.1f} times as long; labels equal on the same maps: all, on "
                f"scipy's: {near:.6%}",
                flush=True,
            )
    if not quick:
        on = machine()
        on["versions"]["scikit-learn"] = sklearn.__version__
        results = {"machine": on, "voxels": image.size, "features": len(names), "classes": len(STUDY.classes)}
        RESULTS.write_text(json.dumps(results | {"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
