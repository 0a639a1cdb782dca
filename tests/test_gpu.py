"""The CUDA kernels on a real device against the processor's, bit for bit: pytest -m gpu."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from voxring import Study, local_mean, local_totals
from voxring.batch import Journal, party_batch
from voxring.features import FeatureStack, class_statistics, feature_maps
from voxring.kernels import BORDERS, cpu, cuda
from voxring.kernels.checks import WINDOWED
from voxring.kernels.cuda import device
from voxring.learn import Model, Moments

pytestmark = pytest.mark.gpu

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
FLAT = [(1, 1, 1), (1, 7, 7), (1, 4, 9), (1, 15, 15), (1, 21, 21), (1, 31, 31)]
DEEP = [(2, 3, 4), (3, 3, 3), (7, 7, 7), (15, 15, 15), (31, 31, 31), (40, 5, 6)]
WIDE = [(1, 1, 32), (1, 70, 3), (2, 33, 40)]


@pytest.fixture(autouse=True, scope="module")
def a_device():
    cuda.name()  # or says why not


@pytest.fixture(autouse=True)
def no_memory_is_kept():
    yield
    device.cupy().get_default_memory_pool().free_all_blocks()


def image_of(shape, dtype, seed=0, *, ends=False):
    info = np.iinfo(dtype)
    rng = np.random.default_rng(seed)
    if ends:
        return np.where(rng.random(shape) < 0.5, info.min, info.max).astype(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def labels_of(shape, seed=1, values=(0, 1, 2, 9)):
    """Blocks of labels, and single ones among them."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array(values, np.uint8), [-(-n // 8) for n in shape])
    labels = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[: shape[0], : shape[1], : shape[2]].copy()
    some = rng.random(shape) < 0.05
    labels[some] = rng.choice(np.array(values, np.uint8), int(some.sum()))
    return labels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", FLAT + DEEP + WIDE, ids=str)
def test_reductions_are_the_processors(window, dtype):
    for shape in ((1, 1, 1), (3, 5, 7), (2, 70, 333), (17, 90, 121)):
        for border in BORDERS:
            image, labels = image_of(shape, dtype, ends=shape[0] == 2), labels_of(shape)
            for classes in ([1], [2, 9, 1, 300, 5]):
                expected = cpu.reduce(image, labels, classes, window, border)
                assert cuda.reduce(image, labels, classes, window, border) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(1, 7, 7), (1, 4, 9), (3, 3, 3), (5, 2, 7), (1, 33, 3), (9, 2, 40)], ids=str)
def test_maps_are_the_processors(window, dtype):
    narrow = dtype.removesuffix("32") + "16" if dtype.endswith("32") else dtype
    for border in BORDERS:
        image = image_of((11, 60, 150), dtype)
        small = (image_of(image.shape, narrow) // 2).astype(dtype)  # squares fit
        assert np.array_equal(
            cuda.window_sums(image, window, border, fill=-7), cpu.window_sums(image, window, border, fill=-7)
        )
        for kind in ("float32", "float64"):
            options = {"fill": 11, "dtype": kind}
            for one, made in ((image, "mean_map"), (small, "variance_map")):
                gpu, processor = (getattr(of, made)(one, window, border, **options) for of in (cuda, cpu))
                assert np.array_equal(gpu, processor)


@pytest.mark.parametrize("window", [(5, 5, 5), (15, 15, 15)], ids=str)
def test_a_large_volume(window):
    image, labels = image_of((512, 512, 512), "int16"), labels_of((512, 512, 512))
    expected = cpu.reduce(image, labels, [1, 9], window, "clip")
    assert cuda.reduce(image, labels, [1, 9], window, "clip") == expected


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_a_large_slide(dtype):
    image, labels = image_of((1, 4096, 4096), dtype), labels_of((1, 4096, 4096))
    for window in ((1, 15, 15), (1, 31, 31), (1, 101, 101)):
        expected = cpu.reduce(image, labels, [1, 2, 9], window, "reflect")
        assert cuda.reduce(image, labels, [1, 2, 9], window, "reflect") == expected


@pytest.mark.parametrize("window", [(1, 7, 7), (5, 6, 7), (9, 1, 50)], ids=str)
@pytest.mark.parametrize("border", ["mirror", "constant"])
def test_parts_make_the_whole(window, border, monkeypatch):
    image, labels = image_of((40, 200, 300), "int16"), labels_of((40, 200, 300))
    expected = cpu.reduce(image, labels, [1, 2], window, border)
    means = cpu.mean_map(image, window, border)
    for memory in (32 << 20, 8 << 20, 2 << 20):
        monkeypatch.setattr(device, "memory", lambda memory=memory: memory)
        assert cuda.reduce(image, labels, [1, 2], window, border) == expected
    monkeypatch.setattr(device, "memory", lambda: device.MAP_SHARE * (4 << 20))
    assert np.array_equal(cuda.mean_map(image, window, border), means)


def jobs():
    for seed in range(60):
        shape = (1 + seed % 3, 100 + 7 * seed, 257)
        yield (
            image_of(shape, "int16", seed),
            labels_of(shape, seed),
            (1, 2, 9),
            ((1, 7, 7), (3, 3, 5))[seed % 2],
            "clip",
        )


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_images_of_several_threads_over_all_devices(threads):
    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(lambda given: cuda.reduce(*given), jobs())) == [cpu.reduce(*given) for given in jobs()]


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_a_partys_batch(tmp_path, workers):
    lines = ["image,ground_truth,patient"]
    for at, (image, labels, *_) in enumerate(jobs()):
        np.save(tmp_path / f"image{at}.npy", image)
        np.save(tmp_path / f"truth{at}.npy", labels if at != 5 else labels[:, 1:])
        lines.append(f"image{at}.npy,truth{at}.npy,{at % 7}")
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(lines) + "\n")
    study = Study.of(name="gpu", classes={"a": 1, "b": 9}, window={"size": (3, 3, 5), "border": "mirror"})
    expected = party_batch(manifest, study, bad="skip")

    def stop(done, total):
        if done == 20:
            raise KeyboardInterrupt

    with Journal(tmp_path, study, "here") as journal, pytest.raises(KeyboardInterrupt):
        party_batch(manifest, study, device="cuda", workers=workers, journal=journal, bad="skip", progress=stop)
    with Journal(tmp_path, study, "here") as journal:
        batch = party_batch(manifest, study, device="cuda", workers=workers, journal=journal, bad="skip")
    assert batch.known in (19, 20)  # one of the rows is bad
    assert batch.patients == expected.patients


def test_the_same_again_and_again():
    """What depends on the order of threads would show here."""
    image, labels = image_of((30, 300, 400), "uint16"), labels_of((30, 300, 400))
    first = cuda.reduce(image, labels, [1, 2], (5, 5, 5), "clip")
    assert all(cuda.reduce(image, labels, [1, 2], (5, 5, 5), "clip") == first for _ in range(50))


def test_totals_and_maps_of_the_package():
    study = Study.of(name="gpu", classes={"a": 1, "b": 2}, window={"size": (5, 7), "border": "nearest"})
    image, labels = image_of((300, 400), "int16"), labels_of((1, 300, 400))[0]
    assert local_totals(image, labels, study, device="cuda") == local_totals(image, labels, study)
    for one in (image, image / 4):  # floats on the grid fit 32 bits
        assert np.array_equal(local_mean(one, 5, device="cuda"), local_mean(one, 5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [(1, 3, 4), (3, 3, 3), (5, 7, 6), (1, 31, 31), (2, 2, 40)], ids=str)
def test_features_are_the_processors(window, dtype):
    features = [{"kind": kind, "window": list(window)} for kind in WINDOWED]
    broad = dtype.endswith("32")
    most = 2**30 if broad else np.iinfo(dtype).max
    least = 0 if dtype.startswith("u") else -most
    image = np.random.default_rng(3).integers(least, most, (9, 40, 70), dtype)
    for border in BORDERS:
        study = Study.of(
            name="gpu",
            classes={"a": 1},
            feature=[{"kind": "intensity"}, {"kind": "gradient"}, *features],
            window={"size": 3, "border": border, "fill": 2.0 if border == "constant" else 0.0},
            standardise={"fraction_bits": 0 if broad else 8},
            bounds={"intensity": 2**31},
        )
        gpu, processor = (feature_maps(image, study, device=one) for one in ("cuda", "cpu"))
        assert all(map(np.array_equal, gpu, processor))


def test_parts_of_features_make_the_whole(monkeypatch):
    features = [{"kind": kind, "window": 5} for kind in WINDOWED]
    study = Study.of(name="gpu", classes={"a": 1}, feature=[*features, {"kind": "gradient"}])
    image = image_of((20, 100, 120), "int16")
    expected = feature_maps(image, study)
    monkeypatch.setattr(device, "memory", lambda: 4 << 20)
    assert all(map(np.array_equal, feature_maps(image, study, device="cuda"), expected))


@pytest.mark.parametrize("classifier", ["qda", "lda", "ridge"])
def test_labels_and_probabilities_are_the_processors_to_the_bit(classifier):
    features = [{"kind": "intensity"}, {"kind": "mean", "window": 3}, {"kind": "std", "window": 5}]
    study = Study.of(name="gpu", classes={"a": 1, "b": 2, "c": 3}, feature=features, window={"axes": 3})
    image, labels = image_of((9, 90, 120), "int16"), labels_of((9, 90, 120), values=(1, 2, 3))
    table = np.stack([one.reshape(-1) for one in feature_maps(image, study)], -1) / study.unit
    table += 2000.0 * labels.reshape(-1, 1)
    names = [feature.label for feature in study.feature]
    model = Model.of(study, Moments.of_arrays(table[::50], labels.reshape(-1)[::50], names=names), classifier)
    wanted = classifier != "ridge"
    stacks = (FeatureStack(image, study, device=one) for one in ("cuda", "cpu"))
    gpu, processor = (model.classify_planes(one, (1, 8), probabilities=wanted) for one in stacks)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(gpu, processor, strict=True))
    assert np.array_equal(model.predict(image, device="cuda"), model.predict(image))


@pytest.mark.parametrize(("border", "levels", "distance"), [("clip", 32, 1), ("mirror", 200, 3)])
def test_statistics_of_classes_are_the_processors(border, levels, distance, monkeypatch):
    features = [{"kind": "intensity"}, {"kind": "variance", "window": 3}, {"kind": "skewness", "window": 5}]
    study = Study.of(
        name="gpu",
        classes={"a": 1, "b": 2, "c": 9},
        feature=features,
        window={"size": 3, "border": border},
        statistics={
            "gram": True,
            "moments": 4,
            "histogram": {"bins": 50, "range": [-20000, 20000]},
            "glcm": {"levels": levels, "range": [-30000, 30000], "distance": distance},
        },
    )
    image, labels = image_of((20, 150, 170), "int16"), labels_of((20, 150, 170))
    expected = class_statistics(image, labels, study)
    assert class_statistics(image, labels, study, device="cuda") == expected
    monkeypatch.setattr(device, "memory", lambda: 6 << 20)
    assert class_statistics(image, labels, study, device="cuda") == expected


def test_probabilities_below_the_least_normal_float_are_not_lost():
    """CuPy compiles with -ftz=true, which makes 0 of them."""
    image = np.arange(-25600, -22600, 5, dtype=np.int16).reshape(1, 20, 30)  # over 256: -100 to -88
    model = np.array([0, 0, 0, 1, 0, 0], np.float64)  # a score of 0, and one of the intensity
    of = cuda.Classifier(model, 1, 2, 0, np.array([1, 2], np.uint8), 256, True, True)
    asked, scale = [cuda.Asked("intensity", (1, 1, 1))], cuda.Scale(1, 0, 8, 0, 2**15)
    _, chances = cuda.classified(image, asked, "clip", scale, (0, 1), of)
    assert ((chances[1] > 0) & (chances[1] < np.finfo(np.float32).tiny)).all()
    assert np.array_equal(chances[1], np.exp(image / 256.0).astype(np.float32))
