"""The report of a finished study: what it says, that it says it safely, and how it looks where a browser is."""

import base64
import hashlib
import re
from datetime import UTC, datetime
from fractions import Fraction
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

import browser
from voxring.errors import StudyError
from voxring.evaluate import Counts
from voxring.evaluate import document as scores
from voxring.report import evaluation_report, result_report
from voxring.report.markup import tag
from voxring.report.style import COLOURS, TEXT_ON
from voxring.ring.order import rings_of
from voxring.study import Study
from voxring.totals import Statistics, result_document

PARTIES = ["north", "centre", "south", "university-hospital-of-the-far-east", "west"]
EVIL = "<script src=//x.example/a.js>\"'&\u202e"
STUDY = Study.of(
    name=f"livers {EVIL}",
    classes={"lesion": 1, EVIL: 2, "rare": 3},
    privacy={"collusion": 3, "min_voxels": 50},
    party=[{"name": name, "address": f"tcp://{name}.example:5000"} for name in PARTIES],
)
ANSWER = {
    "lesion": Statistics(1234567, Fraction(10**200 + 1, 7**200), Fraction(10**9 + 7, 2**16)),
    EVIL: Statistics(98765, Fraction(-1234567, 343), Fraction(1, 3)),
    "rare": "fewer than 50 voxels in all (privacy.min_voxels)",
}
ADDITIVE = {
    "histogram": {
        "edges": [i * 25.0 - 800 for i in range(65)],
        "below": 3,
        "counts": [i * (64 - i) for i in range(64)],
        "above": 90017,
        "quantiles": {"0.5": 12.25},
    },
    "moments": {"mean": 1.5, "skewness": None, "powers": [["1", "2"]]},
    "glcm": {"levels": 32, "counts": [[1]], "haralick": {"sum_average": 0.123456}},
    "feature_means": [1.5, -2.5],
    "covariance": [[1.0, 0.25], [0.25, 3.0]],
}
EVALUATED = Counts.of(
    tuple(STUDY.classes),
    np.array([1, 1, 1, 1, 2, 2]),
    np.array([1, 1, 1, 2, 2, 3]),
    np.array([[0.9, 0.6, 0.6, 0.2, 0.4, 0.0], [0.1, 0.4, 0.4, 0.8, 0.6, 0.3], [0.0, 0.0, 0.0, 0.0, 0.0, 0.7]]),
    16,
)
EVALUATION = {"model": "0123" * 16, **scores(EVALUATED)}
EVALUATION["classes"]["rare"] = {"withheld": ANSWER["rare"]}
STEPS = [("greeting", 0.21), ("computing", 8.4), ("voxels", 0.2)]
VOID = {"meta", "img", "br", "hr", "col", "link", "input", "area", "base", "embed", "source", "track", "wbr"}


def a_report(**more):
    document = result_document(ANSWER, STUDY, {"south": 1204})
    document["features"] = ["mean-7", "std-7"]
    document["classes"]["lesion"]["statistics"] = ADDITIVE
    document["evaluation"] = EVALUATION
    return result_report(
        document,
        STUDY,
        rings=rings_of(bytes(32), STUDY.parties, 3),
        steps=STEPS,
        finished=datetime(2026, 2, 3, 4, 5, tzinfo=UTC),
        **more,
    )


class Page(HTMLParser):
    """Elements, text and nesting of a page."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.open, self.faults = [], [], [], []
        self.feed(page)
        self.close()
        self.faults += self.open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if len(dict(attributes)) != len(attributes):
            self.faults.append(f"doubled attribute of {name}")
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        if not self.open or self.open.pop() != name:
            self.faults.append(name)

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def attributes(self, key):
        return [attributes[key] for _, attributes in self.elements if key in attributes]


@pytest.fixture(scope="module")
def page():
    return Page(a_report())


def test_exact_fractions_withheld_classes_rings_and_digest_stand_in_the_report(page):
    text = "".join(page.text)
    for one in ANSWER.values():
        if not isinstance(one, str):
            for value in (one.sum, one.mean, one.sdsum, one.variance):
                assert f"{value.numerator}/{value.denominator}" in page.text
            assert f"{one.voxels:,}" in page.text
    assert ANSWER["rare"] in page.text
    assert "images left outsouth: 1,204" in text
    assert STUDY.digest in page.text
    for ring in rings_of(bytes(32), STUDY.parties, 3):
        assert " → ".join([*ring.members, "researcher"]) in text
    for words in (
        "What colluders learn",
        "8.40 s",
        "2026-02-03 04:05 UTC",
        "secure sum of n",
        "tcp://west.example:5000",
    ):
        assert words in text, words


def test_an_evaluation_is_shown_with_its_scores_curves_and_confusion(page):
    text = "".join(page.text)
    assert EVALUATION["model"] in text
    # lesion: 3 of 4 found, none of 2 others taken for it; 8 pairs, of which one is in the wrong order.
    assert "lesion40.85710.75001.00001.00000.8750" in text
    assert "rarewithheld" in text
    labels = page.attributes("aria-label")
    for name in ("lesion", EVIL.replace("\u202e", "\ufffd")):
        assert {f"ROC curve of {name}", f"Calibration of {name}"} <= set(labels)
    assert "ROC curve of rare" not in labels
    cells = "".join(page.text[page.text.index("given") :])
    assert "75.0%25.0%0%" in cells  # of the four lesions, one row, no column for none
    assert "0%50.0%50.0%" in cells
    roc = next(i for i, (_, a) in enumerate(page.elements) if a.get("aria-label") == "ROC curve of lesion")
    line = next(a["d"] for _, a in page.elements[roc:] if a.get("class") == "line")
    points = [tuple(map(float, point.split())) for point in line[1:].split("L")]
    # (fp, tp): above 0.9 none, then 1, 3 of 4; both others before the last lesion at 0.2.
    assert points == [(58, 230), (58, 175), (58, 65), (168, 65), (168, 10), (278, 10)]


def test_a_hospitals_own_evaluation_says_that_it_is_its_own():
    made = {"model": "0123" * 16, "classifier": "qda", "images": 2, **scores(EVALUATED, "everywhere")}
    page = Page(evaluation_report(made, finished=datetime(2026, 2, 3, tzinfo=UTC)))
    text = "".join(page.text)
    assert "must not leave it" in text
    assert "Over 6 voxels, also those of no class" in text
    assert not page.faults
    rejected = Counts.of(("a",), np.array([0, 1]), np.array([0, 0]), np.array([[0.5, 0.5]]), 16)
    cells = "".join(Page(evaluation_report(made | scores(rejected, "everywhere"))).text)
    assert "nonea" in cells  # a column and a row for none, where there is something in them
    assert "none100%0%a100%0%" in cells


def test_additive_statistics_are_shown_as_far_as_there_are_any(page):
    text = "".join(page.text)
    for words in (
        "90,017 above",
        "12.25",
        "sum average",
        "0.123456",
        "std-7",
        "−2.5",
        "0.25",
        "undefined",
        "32 levels",
    ):
        assert words in text, words
    document = result_document(ANSWER, STUDY)
    document["classes"]["lesion"]["statistics"] = {}
    assert "Texture" not in result_report(document, STUDY)


def test_every_element_is_closed_and_every_reference_has_its_target(page):
    assert page.faults == []
    ids = page.attributes("id")
    assert len(set(ids)) == len(ids)
    assert set(page.attributes("aria-labelledby")) <= set(ids)
    assert {href.removeprefix("#") for href in page.attributes("href")} <= set(ids)
    names = [name for name, _ in page.elements]
    assert [names.count(name) for name in ("h1", "main", "header", "footer", "nav")] == [1] * 5
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_nothing_is_fetched_run_or_sent(page):
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "use", "image", "foreignobject"}
    for _, attributes in page.elements:
        assert not [
            key for key in attributes if key.startswith("on") or key in ("src", "srcset", "style", "xlink:href")
        ]
    assert all(href.startswith("#") for href in page.attributes("href"))
    report = a_report()
    css = report.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|@font-face|expression|</", css)
    allowed = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    (policy,) = [a["content"] for n, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts == {
        "default-src": "'none'",
        "style-src": f"'sha256-{allowed}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_a_name_is_text_wherever_it_stands(page):
    shown = EVIL.replace("\u202e", "\ufffd")
    assert shown in page.text
    assert f"livers {shown}" in page.text
    assert "\u202e" not in a_report()
    assert tag("a", '<&"', title='"><b>') == '<a title="&quot;&gt;&lt;b&gt;">&lt;&amp;&quot;</a>'


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("which", [0, 1], ids=["light", "dark"])
def test_text_has_contrast(which):
    for text, ground in TEXT_ON:
        low, high = sorted(luminance(COLOURS[name][which]) for name in (text, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_a_report_without_rings_and_times_says_so():
    text = "".join(Page(result_report(result_document(ANSWER, STUDY), STUDY)).text)
    assert "not known here" in text
    assert "Each step" not in text


def test_the_report_goes_beside_the_result_and_never_over_it(tmp_path):
    from voxring.cli.report import report_path

    assert report_path(tmp_path / "r.json", None) == tmp_path / "r.html"
    assert report_path(tmp_path / "r.html", None) == tmp_path / "r.html.html"
    with pytest.raises(StudyError, match="another file"):
        report_path(tmp_path / "r", tmp_path / "r")
    with pytest.raises(StudyError, match="folder that exists"):
        report_path(tmp_path / "r", tmp_path / "none" / "r.html")


# In a browser.

CONTRAST = """
(() => {
  const colour = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = (c) => { const f = c.slice(0, 3).map((v) => { v /= 255; return v <= .04045 ? v / 12.92 :
    ((v + .055) / 1.055) ** 2.4; }); return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
  const ground = (e) => {
    if (e instanceof SVGTextElement) {
      const before = e.previousElementSibling;
      if (e.classList.contains("on")) return colour(getComputedStyle(before).fill);
    }
    for (; e; e = e.parentElement) { const c = colour(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  let seen = 0;
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim()) continue;
    seen++;
    const style = getComputedStyle(e), ink = colour(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(e))].sort((x, y) => x - y), ratio = (b + .05) / (a + .05);
    if (ratio < 4.5) found.push([walk.currentNode.data, ratio]);
  }
  return [seen, found];
})()
"""
OVERFLOW = """
[...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll > *, svg, .exact, .skip")
  && e.getBoundingClientRect().right > innerWidth + .5).map((e) => e.outerHTML.slice(0, 90))
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if browser.CHROMIUM is None:
        pytest.fail(
            "no Chromium here: the tests marked browser were not run; install chromium, or leave -m browser out"
        )
    opened = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "result.html"
    path.write_text(a_report(), encoding="utf-8")
    return path


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_opens_alone_fits_and_can_be_read(chromium, written, width, dark):
    chromium.open(written, width=width, dark=dark)
    assert chromium.requests == [written.as_uri()]
    assert chromium.complaints == []
    assert chromium.run("getComputedStyle(document.querySelector('main')).display") == "grid"  # the style was let in
    assert chromium.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    chromium.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run(OVERFLOW) == []
    seen, faint = chromium.run(CONTRAST)
    assert seen > 200
    assert faint == []


@pytest.mark.browser
def test_the_policy_lets_nothing_else_in(chromium, written):
    chromium.open(written)
    for what in ("new Image().src = 'http://127.0.0.1:9/x.png'", "fetch('http://127.0.0.1:9/').catch(() => 0)"):
        chromium.run(f"{what}; 0")
    chromium.run(
        "document.body.append(Object.assign(document.createElement('style'), {textContent: 'body{width:9px}'}))"
    )
    assert chromium.run("document.body.getBoundingClientRect().width") == 1280
    assert sum("Content Security Policy" in complaint for complaint in chromium.complaints) >= 2


@pytest.mark.browser
def test_the_keyboard_reaches_everything_in_the_order_of_the_page(chromium, written):
    chromium.open(written)
    expected = chromium.run(
        "[...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')]"
        ".filter((e) => e.checkVisibility()).map((e, i) => (e.dataset.order = i))"
    )
    reached = []
    for _ in expected:
        chromium.press_tab()
        reached.append(int(chromium.run("document.activeElement.dataset.order ?? -1")))
        outlined = chromium.run("getComputedStyle(document.activeElement).outlineStyle")
        assert outlined == "solid"
    assert reached == expected
    assert len(expected) > 20


@pytest.mark.browser
def test_a_print_shows_what_is_folded_on_paper_white(chromium, written):
    chromium.open(written, dark=True, print_=True)
    assert chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert chromium.run("document.querySelector('details .exact').getBoundingClientRect().height") > 0
