"""The model file, what it makes of feature maps, `voxring train`, and models for other programs."""

import json
from fractions import Fraction

import numpy as np
import pytest
from click.testing import CliRunner

from voxring.cli.train import train
from voxring.cli.warm import _classifier
from voxring.errors import ModelError
from voxring.kernels.cpu.classify import BLOCK, STEP, classify_block
from voxring.learn import Model, Moments
from voxring.learn.discriminant import Discriminant
from voxring.learn.export import scikit_learn, write_onnx, write_skops
from voxring.learn.moments import fraction_of, pair_of
from voxring.study import Study
from voxring.totals import Statistics, result_document

CLASSIFIERS = {
    "gnb": {"smoothing": 1e-3},
    "lda": {"shrinkage": "oas"},
    "qda": {"priors": [0.5, 0.25, 0.25]},
    "ridge": {"alpha": 2.0},
}
FEATURES = [{"kind": "intensity"}, {"kind": "mean", "window": 3}, {"kind": "std", "window": 3}]


def study_of(classes=None, **more):
    tables = {"name": "liver", "classes": classes or {"fat": 7, "air": 2, "liver": 3}, "feature": FEATURES}
    return Study.of(**tables | {"statistics": {"gram": True}} | more)


def sample(classes=3, count=150, seed=2):
    """Integers of feature maps over 2^16, and places of classes that overlap."""
    random = np.random.default_rng(seed)
    places = np.arange(count) % classes
    table = random.normal(size=(count, 3)) @ random.normal(size=(3, 3)) + places[:, None] * [1.0, -0.5, 0.25] + 40.0
    return np.rint(table * 65536).astype(np.int64), places


def result_of(study, integers, places):
    """The result document of a study with these voxels."""
    answer = {}
    for place, name in enumerate(study.classes):
        mine = [[int(x) for x in row] for row in integers[places == place]]
        sums = [sum(row[i] for row in mine) for i in range(3)]
        gram = [sum(row[i] * row[j] for row in mine) for i in range(3) for j in range(i, 3)]
        answer[name] = Statistics(len(mine), Fraction(sums[0], 65536), Fraction(1), (*sums, *gram))
    return result_document(answer, study)


def model_of(classifier, classes=3, **settings):
    study = study_of({"fat": 7, "air": 2, "liver": 300} if classes == 3 else {"fat": 7, "air": 2})
    moments = Moments.of_result(result_of(study, *sample(classes)), study)
    return Model.of(study, moments, classifier, **settings)


def image(shape, dtype=np.int64, seed=3):
    """Feature maps, as large as what the sample holds and somewhat beyond."""
    random = np.random.default_rng(seed)
    return [np.rint((random.normal(size=shape) * 3 + 40) * 65536).astype(dtype) for _ in range(3)]


def columns(maps):
    return np.stack([one.reshape(-1) for one in maps], axis=1) / 65536


def test_moments_of_a_result_are_those_of_the_voxels():
    study = study_of()
    integers, places = sample()
    moments = Moments.of_result(result_of(study, integers, places), study)
    expected = Moments.of_arrays(integers / 65536, places)
    assert moments.classes == ("air", "liver", "fat")
    assert moments.labels == (2, 3, 7)
    assert moments.features == ("intensity", "mean-3", "std-3")
    for found, wanted in (
        (moments.counts, expected.counts),
        (moments.sums, expected.sums),
        (moments.grams, expected.grams),
    ):
        assert found == (*wanted[1:], wanted[0])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_labels_are_what_the_estimator_predicts(classifier, classes):
    priors = [0.75, 0.25] if classes == 2 else [0.5, 0.25, 0.25]
    settings = {"priors": priors} if classifier == "qda" else CLASSIFIERS[classifier]
    model = model_of(classifier, classes, **settings)
    names = {
        "gnb": "GaussianNaiveBayes",
        "lda": "LinearDiscriminant",
        "qda": "QuadraticDiscriminant",
        "ridge": "RidgeDiscriminant",
    }
    estimator = getattr(__import__("voxring.learn", fromlist=["x"]), names[classifier])
    fitted = estimator.from_statistics(model.moments, **settings)
    maps = image((3, 70, 81))
    labels = model.labels(maps, threads=2)
    assert (labels.shape, labels.dtype) == (maps[0].shape, np.uint16 if classes == 3 else np.uint8)
    assert np.array_equal(labels.reshape(-1), fitted.predict(columns(maps)))
    assert len(np.unique(labels)) == classes
    if classifier == "ridge":
        with pytest.raises(ModelError, match="ridge gives labels alone"):
            model.probabilities(maps)
        return
    both, chances = model.classify(maps)
    assert np.array_equal(both, labels)
    assert (chances.shape, chances.dtype) == ((classes, *maps[0].shape), np.float32)
    expected = fitted.predict_proba(columns(maps)).T.reshape(chances.shape)
    assert np.abs(chances - expected).max() <= 2.0**-24
    assert np.array_equal(model.probabilities(maps), chances)


@pytest.mark.parametrize("size", [1, STEP - 1, STEP, STEP + 1, BLOCK, 2 * BLOCK + STEP + 3])
def test_kernel_and_numpy_have_the_same_bits_whatever_the_size(size):
    """The kernel's own scores are not returned: probabilities as they are and labels tell them apart."""
    for classifier in ("lda", "qda", "gnb"):
        model = model_of(classifier)
        maps = image(size, np.int32)
        labels, chances = model.classify(maps, threads=1)
        scores = model.discriminant.scores(columns(maps))
        assert np.array_equal(labels, np.array(model.values)[scores.argmax(axis=1)])
        for cut in {1, size // 3, size - 1}:
            parts = [model.classify([one[a:b] for one in maps]) for a, b in ((0, cut), (cut, size)) if b > a]
            assert np.array_equal(np.concatenate([part[0] for part in parts]), labels)
            assert np.array_equal(np.concatenate([part[1] for part in parts], axis=1), chances)


def test_warm_compiles_what_a_model_runs():
    _classifier()
    compiled = list(classify_block.signatures)
    model_of("qda", 2).classify(image((2, 3, 4)))
    assert classify_block.signatures == compiled


def test_threads_change_nothing():
    model = model_of("qda")
    maps = image((2, 400, 401))
    labels, chances = model.classify(maps, threads=1)
    for threads in (2, 3, 7):
        again = model.classify(maps, threads=threads)
        assert np.array_equal(again[0], labels)
        assert np.array_equal(again[1], chances)


def test_equal_scores_go_to_the_first_class():
    from voxring.kernels.cpu.classify import Weights, classify

    same = np.zeros((3, 1))
    weights = Weights(same, same, np.array([-1.0, 2.0, 2.0]), np.zeros((3, 0, 1)), np.zeros((3, 0)))
    labels, chances = classify([np.arange(5)], 1, weights, np.array([4, 5, 6], np.uint8))
    assert labels.tolist() == [5] * 5
    assert np.array_equal(chances[1], chances[2])
    assert Discriminant(*weights).scores(np.zeros((1, 1))).argmax() == 1


def test_any_weights_score_as_numpy_has_it():
    from voxring.kernels.cpu.classify import Weights, classify

    random = np.random.default_rng(8)
    lower = np.tril(random.normal(size=(4, 3, 3))) * (random.random((4, 3, 3)) < 0.7)
    centres, linear, offsets = random.normal(size=(3, 4, 3))
    weights = Weights(centres, linear, random.normal(size=4), lower, offsets)
    maps = [np.rint(random.normal(size=5000) * 65536).astype(np.int64) for _ in range(3)]
    labels, chances = classify(maps, 65536, weights, np.arange(4, dtype=np.uint8))
    scores = Discriminant(*weights).scores(columns(maps))
    assert np.array_equal(labels, scores.argmax(axis=1))
    expected = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    assert np.abs(chances.T - expected).max() <= 2.0**-24


def test_scores_far_apart_have_probabilities_of_0_and_1():
    model = model_of("qda")
    far = [np.full(3, 10**9, np.int64)] * 3
    chances = model.probabilities(far)
    assert sorted(chances[:, 0].tolist()) == [0.0, 0.0, 1.0]
    assert np.isfinite(chances).all()


def test_maps_that_do_not_fit_are_refused():
    model = model_of("lda")
    maps = image((4, 4))
    for wrong, said in ((maps[:2], "each of 3 features, got 2"), ([*maps[:2], maps[2][:3]], "of one shape")):
        with pytest.raises(ModelError, match=said):
            model.labels(wrong)
    with pytest.raises(ModelError, match="of integers"):
        model.labels([one.astype(float) for one in maps])
    assert model.labels([one[:0] for one in maps]).shape == (0, 4)
    assert np.array_equal(model.labels([one.T for one in maps]), model.labels(maps).T)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_model_file_is_canonical_and_reads_back(classifier, tmp_path):
    model = model_of(classifier, **CLASSIFIERS[classifier])
    path = tmp_path / "model.json"
    model.save(path)
    assert list(tmp_path.iterdir()) == [path]
    document = json.loads(path.read_bytes())
    again = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert path.read_text(encoding="utf-8") == again + "\n"
    read = Model.load(path)
    assert read == model
    assert (read.digest, read.canonical()) == (document["digest"], model.canonical())
    assert read.study.feature == model.study.feature
    maps = image((20, 20))
    assert np.array_equal(read.labels(maps), model.labels(maps))
    spaced = tmp_path / "spaced.json"
    spaced.write_text(json.dumps(document, indent=2), encoding="utf-8")
    assert Model.load(spaced) == model


def altered(change):
    """A model's document with something else in it, and the digest of what it then holds."""
    from voxring.learn.model import _digest

    document = json.loads(model_of("lda").canonical())
    change(document)
    document["digest"] = _digest(document)
    return json.dumps(document).encode()


def put(key, value, *inside):
    def change(document):
        for step in inside:
            document = document[step]
        document[key] = value

    return change


FOREIGN = {
    "another format": (put("format", "other"), "expected voxring-model of version 1, got other"),
    "a later version": (put("version", 2), "got voxring-model of version 2: a later voxring"),
    "an unknown field": (put("code", "x"), "unknown field"),
    "an unknown classifier": (put("classifier", "svm"), "expected one of gnb, lda, logistic, qda, ridge, got 'svm'"),
    "a setting of another classifier": (put("alpha", 1.0, "settings"), "lda has no setting 'alpha'"),
    "a setting of another type": (put("shrinkage", [1], "settings"), "settings of lda"),
    "an impossible setting": (put("shrinkage", 2, "settings"), "shrinkage: expected a number from 0 to 1"),
    "an unknown feature": (put("kind", "magic", "study", "feature", 0), "feature"),
    "a feature fewer": (put("feature", FEATURES[:2], "study"), "expected sums of 2 features"),
    "an unknown study table": (put("relay", "x", "study"), "relay"),
    "a class of no study": (put("class", "bone", "moments", 0), "class 'bone' is not of the study"),
    "another order": (lambda d: d["moments"].reverse(), "in the order of their labels"),
    "a class twice": (put("class", "air", "moments", 1), "class 'air' is not of the study, or stands twice"),
    "one voxel": (put("voxels", 1, "moments", 0), "class 'air': expected at least 2 voxels"),
    "no integer": (put("voxels", 2.5, "moments", 0), "int"),
    "no number": (put(0, ["x", "1"], "moments", 0, "feature_sums"), "pairs of decimal strings"),
    "not in lowest terms": (put(0, ["2", "4"], "moments", 0, "feature_sums"), "in lowest terms"),
    "a denominator of 0": (put(0, ["2", "0"], "moments", 0, "feature_sums"), "in lowest terms"),
    "a huge number": (put(0, ["9" * 5000, "1"], "moments", 0, "feature_sums"), "in lowest terms"),
    "a sum beyond its squares": (put(0, ["9" * 40, "1"], "moments", 0, "feature_sums"), "variance would be negative"),
    "not symmetric": (put(1, ["1", "3"], "moments", 0, "gram", 0), "not symmetric"),
    "a row fewer": (lambda d: d["moments"][0]["gram"].pop(), "sums of 3 features"),
    "a class alone": (lambda d: d.update(moments=d["moments"][:1]), "at least 2 classes, got 1"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_that_is_no_model_is_refused(case, tmp_path):
    change, said = FOREIGN[case]
    path = tmp_path / "model.json"
    path.write_bytes(altered(change))
    with pytest.raises(ModelError, match=said) as caught:
        Model.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_was_changed_is_refused(tmp_path):
    content = model_of("lda").canonical()
    changed = content.replace(b'"voxels":50', b'"voxels":51', 1)
    assert changed != content
    with pytest.raises(ModelError, match="the digest is not that of the content"):
        Model.parse(changed)
    for wrong in (b"", b"\x80\x04K*.", content[:-20], b"[]", b"{}", b'{"format": "\xff"}'):
        with pytest.raises(ModelError, match="model: expected a model that `voxring train` wrote"):
            Model.parse(wrong)
    for wrong, said in (
        (b"\x93NUMPY", "got something that is no JSON: give the model before the images"),
        (b'{"study": "t", "digest": "0", "classes": {}}', "got a result: make a model of it with `voxring train`"),
        (content.replace(b'"moments":', b'"sums":', 1), "got one that is damaged"),
        (b'{"format": "another"}', "got other JSON: give the file that --out of `voxring train` named"),
    ):
        with pytest.raises(ModelError, match=said):
            Model.parse(wrong)
    with pytest.raises(ModelError, match="no model can be read there"):
        Model.load(tmp_path / "none.json")
    with pytest.raises(ModelError, match="cannot be written"):
        model_of("lda").save(tmp_path / "none" / "model.json")


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        ({"a": 1, "b": 65_535}, (1, 65_535)),
        ({"a": 0, "b": 5}, (1, 2)),
        ({"a": 9, "b": "GTV"}, (1, 2)),
        ({"a": 70_000, "b": 1}, (1, 2)),
        ({"a": -3, "b": 1}, (1, 2)),
    ],
)
def test_a_label_map_has_label_values_where_they_fit_it(classes, labels):
    study = study_of(classes)
    model = Model.of(study, Moments.of_result(result_of(study, *sample(2)), study), "lda")
    assert model.values == labels
    assert set(np.unique(model.labels(image((40, 40))))) == set(labels)


def test_exact_numbers_in_files():
    for value in (Fraction(0), Fraction(-7, 3), Fraction(10**40, 3)):
        assert fraction_of(pair_of(value)) == value
    for wrong in (
        ["1"],
        ["1", "2", "3"],
        ["1", "-2"],
        ["+1", "2"],
        ["٣", "1"],
        [1, 2],
        "12",
        None,
        ["1_0", "1"],
        ["-0", "1"],
    ):
        with pytest.raises(ModelError, match="lowest terms"):
            fraction_of(wrong)


@pytest.fixture
def files(tmp_path):
    """A study file with its result."""
    study = tmp_path / "study.toml"
    study.write_text(
        'name = "liver"\nclasses = { fat = 7, air = 2, liver = 3 }\n[[feature]]\nkind = "intensity"\n'
        '[[feature]]\nkind = "mean"\nwindow = 3\n[[feature]]\nkind = "std"\nwindow = 3\n[statistics]\ngram = true\n',
        encoding="utf-8",
    )
    result = tmp_path / "result.json"
    result.write_text(json.dumps(result_of(study_of(), *sample())), encoding="utf-8")
    return study, result, tmp_path / "model.json"


def trained(files, *options, change=None):
    study, result, out = files
    if change is not None:
        document = json.loads(result.read_text(encoding="utf-8"))
        change(document)
        result.write_text(json.dumps(document), encoding="utf-8")
    return CliRunner().invoke(train, [str(result), "--study", str(study), "--out", str(out), *options])


def test_train_writes_the_model_of_the_result(files):
    done = trained(files, "--classifier", "qda", "--shrinkage", "0.25", "--equal-priors")
    assert done.exit_code == 0, done.output
    model = Model.load(files[2])
    assert (model.classifier, model.settings["shrinkage"]) == ("qda", 0.25)
    assert model.settings["priors"] == [1 / 3] * 3
    assert model.moments == Moments.of_result(result_of(study_of(), *sample()), study_of())
    for words in ("fat", "50", "0.3333", "qda of intensity, mean-3, std-3", f"digest {model.digest}"):
        assert words in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--classifier", "lda", "--shrinkage", "oas"], {"shrinkage": "oas"}),
        (["--classifier", "gnb", "--smoothing", "0.5"], {"smoothing": 0.5}),
        (["--classifier", "ridge", "--alpha", "3"], {"alpha": 3.0}),
    ],
)
def test_train_takes_the_settings_of_each_classifier(files, options, settings):
    assert trained(files, *options).exit_code == 0
    assert dict(Model.load(files[2]).settings) == settings


def test_train_says_what_the_model_suffers_from(files):
    def withhold(document):
        document["classes"]["air"] = {"withheld": "fewer than 50 voxels in all"}
        document["digest"] = "0" * 64

    done = trained(files, change=withhold)
    assert done.exit_code == 0, done.output
    assert Model.load(files[2]).classes == ("liver", "fat")
    assert "warning: air was withheld: the model never predicts it" in done.stderr
    assert "names no parties, so its digest cannot be compared" in done.stderr


def test_train_warns_of_few_voxels_and_features_that_say_the_same(files):
    integers, places = sample(count=30)
    integers[:, 2] = integers[:, 0] + integers[:, 1] + np.arange(30) % 2
    files[1].write_text(json.dumps(result_of(study_of(), integers, places)), encoding="utf-8")
    done = trained(files)
    assert done.exit_code == 0, done.output
    assert "fat: 10 voxels are few for 3 features" in done.stderr
    assert "two features or more say nearly the same within the classes" in done.stderr
    assert "fat: two features" in trained(files, "--classifier", "qda").stderr


def test_train_numbers_classes_whose_labels_fit_no_label_map(files):
    study = files[0]
    study.write_text(study.read_text(encoding="utf-8").replace("fat = 7", "fat = 0"), encoding="utf-8")
    done = trained(files)
    assert "labels are places in the study" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(features=["intensity"]), "expected the features intensity, mean-3, std-3 of the study"),
        (lambda d: d.pop("features"), "got none"),
        (lambda d: d.update(study="other"), "is of the study 'other'"),
        (lambda d: d["classes"].pop("fat"), "classes are not those of the study"),
        (lambda d: d["classes"]["fat"].pop("statistics"), "class 'fat' lacks voxels, feature_sums or gram"),
        (lambda d: d["classes"].update(fat=None), "class 'fat' lacks"),
        (lambda d: d.pop("digest"), "expected a result file with study, digest and classes"),
        (lambda d: [d["classes"].update({n: {"withheld": "few"}}) for n in ("fat", "air")], "2 classes, got 1"),
        (
            lambda d: [d["classes"].update({n: {"withheld": "few"}}) for n in ("fat", "air", "liver")],
            "2 classes, got 0",
        ),
    ],
)
def test_train_refuses_a_result_that_does_not_fit(files, change, said):
    done = trained(files, change=change)
    assert isinstance(done.exception, ModelError)
    assert said in str(done.exception)
    assert not files[2].exists()


def test_train_refuses_what_is_no_result_of_the_study(files, tmp_path):
    study, result, _ = files
    text = study.read_text(encoding="utf-8")
    parties = "".join(f'[[party]]\nname = "p{i}"\n' for i in range(3))
    study.write_text(text + parties, encoding="utf-8")
    assert "the digest is not that of" in str(trained(files).exception)
    study.write_text(text.replace("gram = true\n", ""), encoding="utf-8")
    assert "gram = true under [statistics]" in str(trained(files).exception)
    study.write_text(text, encoding="utf-8")
    assert trained(files, "--shrinkage", "much").exit_code == 2
    assert "ridge has no setting 'shrinkage'" in str(
        trained(files, "--classifier", "ridge", "--shrinkage", "1").exception
    )
    result.write_text("no JSON", encoding="utf-8")
    assert "which is JSON, got something else" in str(trained(files).exception)
    result.unlink()
    assert "no result can be read there" in str(trained(files).exception)
    done = trained((study, result, tmp_path / "none" / "model.json"))  # found before anything is read
    assert "expected a file in a folder that exists" in str(done.exception)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("classifier", [*CLASSIFIERS, "logistic"])
def test_exported_models_predict_the_same(classifier, classes, tmp_path):
    import onnx.reference
    from skops import io

    weights = [[["-41", "1"], ["1", "2"], ["1", "3"], ["1", "4"]], [["2", "1"], ["-1", "7"], ["1", "9"], ["0", "1"]]]
    weights += [[["20", "1"], ["1", "4"], ["-1", "1"], ["1", "5"]]]
    settings = {"weights": weights[: 1 if classes == 2 else 3]} if classifier == "logistic" else {}
    model = model_of(classifier, classes, **settings)
    table = columns(image((30, 30)))
    scores = model.discriminant.scores(table)
    labels = np.array(model.values)[scores.argmax(axis=1)]
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)

    write_skops(model, tmp_path / "model.skops")
    assert io.get_untrusted_types(file=tmp_path / "model.skops") == []
    theirs = io.load(tmp_path / "model.skops")
    assert type(theirs) is type(scikit_learn(model))
    assert theirs.__module__.startswith("sklearn.")
    assert np.array_equal(theirs.predict(table), labels)

    write_onnx(model, tmp_path / "model.onnx")
    session = onnx.reference.ReferenceEvaluator(str(tmp_path / "model.onnx"))
    found, shown = session.run(None, {"features": table})
    assert np.array_equal(found, labels)
    assert found.dtype == np.int64
    if classifier == "ridge":
        assert np.allclose(shown, scores, rtol=0, atol=1e-12)
        assert np.allclose(theirs.decision_function(table), scores[:, 1] if classes == 2 else scores, rtol=0, atol=1e-9)
    else:
        assert np.allclose(shown, chances, rtol=0, atol=1e-12)
        assert np.allclose(theirs.predict_proba(table), chances, rtol=0, atol=1e-9)


def test_train_exports(files, tmp_path):
    done = trained(files, "--skops", str(tmp_path / "m.skops"), "--onnx", str(tmp_path / "m.onnx"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "m.skops").stat().st_size
    assert (tmp_path / "m.onnx").stat().st_size
    with pytest.raises(ModelError, match="cannot be written"):
        write_onnx(Model.load(files[2]), tmp_path / "none" / "m.onnx")


def test_three_hospitals_train_what_all_their_voxels_would_in_scikit_learn(tmp_path):
    """From images to labels: totals add up, the result is trained on, and only then are voxels looked at."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
    from sklearn.naive_bayes import GaussianNB

    from voxring.features import class_statistics, feature_maps

    study = study_of(standardise={"method": "rescale", "range": (-1000.0, 3000.0)})
    random = np.random.default_rng(11)
    totals, voxels, table, labels = dict.fromkeys(study.classes, (0,) * 9), dict.fromkeys(study.classes, 0), [], []
    for hospital in range(3):
        truth = np.zeros((4, 24, 25), np.int16)
        for place, label in enumerate((7, 2, 3)):
            truth[:, 8 * place : 8 * place + 7, 2:20] = label
        scan = (random.normal(size=truth.shape) * 60 + truth * 40 + hospital * 10).astype(np.int16)
        for name, sums in class_statistics(scan, truth, study).items():
            totals[name] = tuple(a + b for a, b in zip(totals[name], sums, strict=True))
            voxels[name] += int((truth == study.classes[name]).sum())
        maps = feature_maps(scan, study)
        table.append(columns(maps)[truth.reshape(-1) > 0])
        labels.append(truth[truth > 0])
    answer = {name: Statistics(voxels[name], Fraction(), Fraction(1), totals[name]) for name in study.classes}
    document = json.loads(json.dumps(result_document(answer, study)))
    for classifier, theirs in (
        ("lda", LinearDiscriminantAnalysis()),
        ("qda", QuadraticDiscriminantAnalysis(tol=0)),
        ("gnb", GaussianNB()),
    ):
        model = Model.of(study, Moments.of_result(document, study), classifier)
        expected = theirs.fit(np.concatenate(table), np.concatenate(labels))
        found, chances = model.classify(maps)
        assert np.array_equal(found.reshape(-1), expected.predict(columns(maps)))
        wanted = expected.predict_proba(columns(maps))
        assert np.allclose(chances.reshape(3, -1).T, wanted, rtol=0, atol=2.0**-24)
        slab = model.labels(feature_maps(scan, study, planes=(1, 3)))
        assert np.array_equal(slab, found[1:3])
