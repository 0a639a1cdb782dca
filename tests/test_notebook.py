"""What a notebook uses: results that are saved and loaded, classifiers from them, tables, and the tutorial."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import voxring
from voxring import Classifier, ImageError, Result, Study, StudyError, local_totals, pooled
from voxring.errors import ModelError
from voxring.features import feature_maps
from voxring.learn import Model, Moments

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"
NOISE = {"epsilon": 0.5}
TABLES = {
    "name": "liver",
    "classes": {"lesion": 1, "liver": 2, "bone": 9},
    "window": {"size": 3},
    "standardise": {"method": "none"},
    "feature": [{"kind": "intensity"}, {"kind": "std", "window": 3}],
    "statistics": {
        "gram": True,
        "moments": 4,
        "histogram": {"bins": 8, "range": [0.0, 64.0]},
        "glcm": {"levels": 4, "range": [0.0, 64.0]},
    },
    "party": [{"name": name} for name in ("north", "centre", "south")],
}


@pytest.fixture(scope="module")
def image():
    random = np.random.default_rng(5)
    truth = random.integers(0, 3, (5, 9, 8)).astype(np.uint8)
    return (random.integers(0, 30, truth.shape) + 20 * truth).astype(np.int16), truth


@pytest.fixture(scope="module")
def result(image):
    study = Study.of(**TABLES)
    return Result.of(pooled(local_totals(*image, study), study), study, {"south": 2})


def test_a_result_comes_back_from_its_file(result, tmp_path):
    result.save(tmp_path / "result.json")
    again = Result.load(tmp_path / "result.json", result.study)
    assert again == result
    assert again.answer["lesion"].additive == result.answer["lesion"].additive
    assert again.document["skipped"] == {"south": 2}
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "result.json").read_bytes()


def test_a_result_without_further_statistics_comes_back(image, tmp_path):
    study = Study.of(**{key: value for key, value in TABLES.items() if key not in ("feature", "statistics")})
    result = Result.of(pooled(local_totals(*image, study), study), study)
    result.save(tmp_path / "result.json")
    assert Result.load(tmp_path / "result.json", study) == result
    assert result.statistics == {"lesion": {}, "liver": {}}
    with pytest.raises(ModelError, match="gram = true"):
        result.train()
    document = json.loads(json.dumps(result.document))
    document["classes"]["lesion"]["voxels"] = 1  # of which no sigma follows
    (tmp_path / "result.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ModelError, match="class 'lesion' has numbers that no voxels can have"):
        Result.load(tmp_path / "result.json", study)


def test_statistics_are_those_of_the_file(result):
    assert set(result.statistics) == {"lesion", "liver"}
    assert result.statistics["lesion"] == result.document["classes"]["lesion"]["statistics"]


def changed(document, path, value):
    *way, last = path
    inner = document
    for key in way:
        inner = inner[key]
    inner[last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["study"], "other", "the digest|of the study 'other'"),
        (["digest"], "0" * 64, "the digest is not that of the study"),
        (["classes"], {}, "its classes are not those of the study"),
        (["classes", "lesion", "voxels"], 1, "class 'lesion' has numbers that no voxels can have"),
        (["classes", "lesion", "voxels"], "12", "voxels is no integer"),
        (["classes", "lesion", "sum"], ["2", "4"], "lowest terms"),
        (["classes", "lesion", "sdsum"], ["-1", "1"], "class 'lesion' has numbers"),
        (["classes", "lesion", "statistics"], {}, "lacks numbers"),
        (["classes", "lesion"], 3, "malformed"),
        (["classes", "lesion", "statistics", "histogram", "above"], 1, "class 'lesion' has numbers"),
        (["classes", "lesion", "statistics", "histogram", "above"], 1.5, "a count is no integer"),
        (["classes", "lesion", "statistics", "glcm", "counts"], [[1]], "glcm has 1 numbers, not 16"),
        (["classes", "lesion", "statistics", "gram", 0, 1], ["1", "7"], "not one over"),
        (["classes", "lesion", "statistics", "gram", 0, 1], ["1", "0"], "malformed"),
        (["classes", "lesion", "statistics", "gram", 0, 1], [1.5, 1], "malformed"),
        (["classes", "lesion", "statistics", "moments", "powers", 0], ["99999", "1"], "class 'lesion' has numbers"),
    ],
)
def test_a_changed_result_is_refused(result, tmp_path, path, value, said):
    document = json.loads(json.dumps(result.document))
    changed(document, path, value)
    file = tmp_path / "result.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    if path == ["study"]:
        study = Study.of(**{key: value for key, value in TABLES.items() if key != "party"})
    else:
        study = result.study
    with pytest.raises(ModelError, match=said) as caught:
        Result.load(file, study)
    assert str(caught.value).startswith(str(file))


def test_no_result_can_be_saved_where_there_is_no_folder(result, tmp_path):
    with pytest.raises(StudyError, match="cannot be written"):
        result.save(tmp_path / "none" / "result.json")
    with pytest.raises(ModelError, match="no result can be read there"):
        Result.load(tmp_path / "none", result.study)


def test_a_result_trains_the_classifier_of_its_document(result, tmp_path):
    model = result.train("qda", shrinkage=0.25)
    assert isinstance(model, Classifier)
    moments = Moments.of_result(result.document, result.study)
    assert model.digest == Model.of(result.study, moments, "qda", shrinkage=0.25).digest
    model.save(tmp_path / "model.json")
    assert Classifier.load(tmp_path / "model.json") == model
    assert result.train().classifier == "lda"


@pytest.mark.filterwarnings("ignore:the model's study does not say how many axes")
@pytest.mark.parametrize("flat", [False, True])
def test_predict_is_the_label_map_of_the_features(result, image, tmp_path, monkeypatch, flat):
    model, voxels = result.train(), image[0][2] if flat else image[0]
    expected = model.labels(feature_maps(voxels, result.study))
    monkeypatch.setattr("voxring.features.SLAB", 2 * 9 * 8 * len(result.study.feature))  # 5 planes in slabs of 2
    assert np.array_equal(model.predict(voxels), expected)
    assert np.array_equal(model.predict(voxels - 1000, slope=1, intercept=1000), expected)
    np.save(tmp_path / "image.npy", voxels)
    assert np.array_equal(model.predict(tmp_path / "image.npy"), expected)
    assert np.array_equal(model.predict(str(tmp_path / "image.npy"), threads=1), expected)
    assert set(np.unique(expected)) == {1, 2}


def test_predict_reads_colour_as_the_study_says(tmp_path):
    tables = {"classes": {"a": 1, "b": 2}, "feature": [{"kind": "intensity"}], "standardise": {"colour": "red"}}
    study = Study.of(name="slides", **tables)
    moments = Moments.of_arrays([[0.0], [1.0], [200.0], [201.0]], [1, 1, 2, 2], names=["intensity"])
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 1, 0] = 200
    PIL.Image.fromarray(pixels).save(tmp_path / "slide.tif")
    assert Model.of(study, moments, "lda").predict(tmp_path / "slide.tif").tolist() == [[1, 2, 1], [1, 1, 1]]


@pytest.mark.filterwarnings("ignore:the model's study does not say how many axes")
@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (lambda result: Result.load("result.json", "study.toml"), StudyError, "expected a Study, got str: read a file"),
        (lambda result: voxring.simulate("study.toml", {}), StudyError, "expected a Study, got str"),
        (lambda result: voxring.party_totals("a.csv", None), StudyError, "expected a Study, got NoneType"),
        (lambda result: local_totals(result.study, None, None), StudyError, "expected a Study, got NoneType"),
        (lambda result: voxring.simulate(result.study, {}, timeout=0), StudyError, "timeout: expected seconds above 0"),
        (
            lambda result: pooled([], result.study),
            StudyError,
            r"totals of all parties added up, got list: add them with",
        ),
        (lambda result: voxring.party_totals(".", result.study), StudyError, "no manifest can be read there: Is a dir"),
        (lambda result: feature_maps(np.zeros((2, 2)), {}), StudyError, "expected a Study, got dict"),
        (lambda result: voxring.simulate(result.study, ["a.csv"]), StudyError, "for each party by its name, got list"),
        (
            lambda result: Study(name="s", classes={"a": 1}, window={"size": 3}),
            StudyError,
            r"make a study .* Study\.of",
        ),
        (
            lambda result: local_totals([[1]], [[1]], result.study),
            ImageError,
            "an image as an array of numpy, got list",
        ),
        (
            lambda result: local_totals(np.zeros((2, 2), np.uint8), [[1]], result.study),
            ImageError,
            "a ground truth as an array of numpy, got list",
        ),
        (lambda result: result.train().predict([[1]]), ImageError, "expected an image as an array of numpy, got list"),
        (
            lambda result: result.train(priors="equal"),
            ModelError,
            'of lda: priors: expected numbers in .*, got "equal": ',
        ),
        (
            lambda result: result.train(priors=1),
            ModelError,
            "of lda: priors: expected numbers in brackets, got 1: write",
        ),
        (lambda result: result.train(priors=[1]), ModelError, r"for each of lesion, liver, got \[1\]: give as many"),
        (
            lambda result: result.train("gnb", smoothing=-1),
            ModelError,
            "smoothing: expected a number from 0 to 1, got -1",
        ),
        (
            lambda result: result.train("ridge", alpha="x"),
            ModelError,
            'alpha: expected a number of at least 0, got "x"',
        ),
        (lambda result: result.train(["lda"]), ModelError, r"expected one of gnb, .*, got \['lda'\]"),
    ],
)
def test_what_is_of_another_type_is_named_with_the_remedy(result, wrong, error, said):
    with pytest.raises(error, match=said):
        wrong(result)


class Cells(HTMLParser):
    """Rows of a table, and all tags and attributes."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.tags, self.attributes, self.open = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def table_of(shown):
    page = Cells(shown._repr_html_())
    assert not page.open
    assert set(page.tags) <= {"table", "caption", "thead", "tbody", "tr", "td", "th"}
    assert {name for name, _ in page.attributes} == {"style"}
    colours = {word for _, style in page.attributes for word in re.findall(r"(?:color|background):([^;]+)", style)}
    assert colours <= {"inherit", "transparent"}  # the page's own, be it light or dark
    return page.rows


def test_a_result_shows_its_classes(result):
    titles, *rows = table_of(result)
    assert titles[:4] == ["class", "voxels", "mean", "sigma"]
    assert {"median", "kurtosis", "correlation"} <= set(titles)
    assert [row[0] for row in rows] == ["lesion", "liver", "bone"]
    assert all(len(row) == len(titles) for row in rows)
    lesion = result.answer["lesion"]
    assert rows[0][1:4] == [f"{lesion.voxels}", f"{float(lesion.mean):.6f}", f"{lesion.std:.6f}"]
    median = result.statistics["lesion"]["first_order"]["median"]
    assert rows[0][titles.index("median")] == f"{median:.6g}"
    assert rows[2][1:3] == ["withheld", "fewer than 2 voxels in all (privacy.min_voxels)"]
    liver = result.answer["liver"]
    assert repr(result) == (
        f"Result('liver', lesion: {lesion.voxels} voxels, liver: {liver.voxels} voxels, bone: withheld)"
    )


def test_a_study_shows_what_it_asks_for(result):
    rows = dict(table_of(result.study))
    assert rows["classes"] == "lesion 1, liver 2, bone 9"
    assert rows["features"] == "intensity, std-3"
    assert rows["window"] == "size 3, border reflect"
    assert rows["statistics"] == (
        "gram, moments 4, histogram (bins 8, range [0.0, 64.0]), glcm (levels 4, range [0.0, 64.0], distance 1)"
    )
    assert "differential privacy" not in rows
    assert rows["parties"] == "north, centre, south"
    assert result.study.digest.startswith(rows["digest"])
    assert len(repr(result.study)) < 150
    private = Study.of(name="t", classes={"a": 1}, privacy={"voxels_per_patient": {"a": 9}}, differential_privacy=NOISE)
    rows = dict(table_of(private))
    assert rows["differential privacy"] == "epsilon 0.5, mechanism laplace, unit patient, runs 1"
    assert rows["privacy"].endswith("min_patients 1, voxels_per_patient (a 9)")


def test_a_classifier_shows_its_classes(result):
    model = result.train()
    titles, *rows = table_of(model)
    assert titles == ["class", "label", "voxels", "mean of intensity", "mean of std-3"]
    assert [row[:2] for row in rows] == [["lesion", "1"], ["liver", "2"]]
    assert float(rows[0][3]) == pytest.approx(float(model.moments.mean(0)[0]), rel=1e-5)
    assert repr(model) == "Classifier('lda', classes: lesion, liver; features: intensity, std-3)"


def test_names_are_escaped(image):
    bad = "<script>alert('1')</script>"
    study = Study.of(**TABLES | {"name": bad, "classes": {bad: 1, "<b>": 2}})
    result = Result.of(pooled(local_totals(*image, study), study), study)
    assert table_of(result)[1][0] == bad
    assert table_of(result.train())[2][0] == "<b>"
    assert dict(table_of(study))["classes"] == f"{bad} 1, <b> 2"


def test_the_tutorial_runs_and_stores_no_output(tmp_path, monkeypatch):
    notebook = json.loads(TUTORIAL.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "tutorial"}
    for number, cell in enumerate(notebook["cells"]):
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            exec(compile("".join(cell["source"]), f"tutorial cell {number}", "exec"), space)  # noqa: S102
    assert isinstance(space["result"], Result)
    assert space["result"].answer == space["everything"]
    assert isinstance(space["classifier"], voxring.Classifier)
    assert space["labels"].shape == space["new"].shape
    assert space["agreement"] > 0.8
