"""The study file: what is read, what is refused and in which words."""

import hashlib
import json
import re
from fractions import Fraction
from math import lcm, prod

import pytest

from voxring import Study, StudyError, load_study
from voxring.study import Bins, Party, parse_study

CONTRACT = """
name = "liver lesions, CT"
classes = { lesion = 1, liver = 2 }

[window]
size = 7
border = "reflect"

[standardise]
method = "rescale"
range = [-1000, 3000]
fraction_bits = 16

[privacy]
collusion = 1
min_parties = 3
min_voxels = 50
min_patients = 5

[bounds]
voxels_per_party = 10_000_000_000

[[party]]
name = "st-mary"
address = "tls+tcp://imaging.st-mary.example:7001"
key = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w="
[[party]]
name = "north"
address = "tcp://north.example:7001"
key = "gTl3Dqh9F19WoxJNmuAbh3gNcytWV6cOvO+DU3a7fhs="
[[party]]
name = "south"
address = "tcp://south.example:7001"
key = "7UkoxijR1YZWVrzlPj1wB1vYHhN2pO24W+6eUdF5p74="

[researcher]
key = "ypOsFwUYcHHWe4PHc/g6+gQ7oj4QXXbP9bxxC2XMAj8="
"""
KEYS = dict(zip(("st-mary", "north", "south", "researcher"), re.findall('key = "(.*)"', CONTRACT), strict=True))

PUBLIC = "O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik="


def test_a_whole_study_is_read():
    study = parse_study(CONTRACT)
    assert study.parties == ("st-mary", "north", "south")
    assert study.classes == {"lesion": 1, "liver": 2}
    assert study.standardise.range == (-1000.0, 3000.0)
    assert study.privacy.min_patients == 5
    assert study.denominator == 2**16 * 7**3
    assert study.intensity_bound == 2 * 2**16
    assert study.keys == KEYS


def test_the_digest_is_of_the_canonical_form():
    study = parse_study(CONTRACT)
    canonical = study.canonical()
    assert study.digest == hashlib.sha256(canonical).hexdigest()
    document = json.loads(canonical)
    assert document["window"] == {"border": "reflect", "fill": 0.0, "size": 7}  # defaults are written out
    assert list(document) == sorted(document)
    assert b" " not in canonical.replace(b"liver lesions, CT", b"")
    reordered = parse_study(CONTRACT.replace("size = 7\nborder", 'border = "reflect"\nsize = 7\n#'))
    assert reordered.digest == study.digest
    assert parse_study(CONTRACT.replace("size = 7", "size = 5")).digest != study.digest


def test_the_digest_is_pinned():
    """A change of the canonical form breaks studies under way: it must be meant."""
    study = Study.of(name="pinned", classes={"a": 1})
    assert study.canonical() == (
        b'{"bounds":{"intensity":null,"voxels_per_party":10000000000},"classes":{"a":1},"name":"pinned","party":[],'
        b'"privacy":{"collusion":1,"min_parties":3,"min_patients":1,"min_voxels":2},'
        b'"standardise":{"foreground":"above-mean","fraction_bits":16,"landmarks":null,"method":"none",'
        b'"percentiles":null,"range":null},"window":{"border":"reflect","fill":0.0,"size":7}}'
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "size = 7",
            "size = 0",
            r"s\.toml: window\.size: expected a whole number from 1 .*, got 0: write that, or leave it out for 7",
        ),
        ("size = 7", "size = [3, 0]", r"window\.size\[1\]: expected a whole number from 1 to 65535, got 0: "),
        ("size = 7", "size = [3]", r"window\.size: expected .* or 2 or 3 such in brackets, got \[3\]: "),
        ("size = 7", 'size = "7"', r'window\.size: expected a whole number .*, got "7": '),
        ("size = 7", "size = [2000, 2000, 2000]", r"fewer than 2\^31 voxels"),
        ("size = 7", "size = 7\naxes = 4", r"window\.axes: expected 2 or 3, got 4: write that, or leave it out$"),
        (
            "size = 7",
            "size = [3, 7, 7]\naxes = 2",
            r"window\.axes: expected as many as window\.size has numbers, got 2 for \(3, 7, 7\): leave axes out",
        ),
        ('size = 7\nborder = "reflect"', 'size = 1200\nborder = "clip"', "no common denominator"),
        (
            '"reflect"',
            '"wrap"',
            r'window\.border: expected "clip", .* or "reflect", got "wrap": .* leave it out for "reflect"',
        ),
        ('border = "reflect"', "fill = 2.0", r'window\.fill: only the border "constant" has a fill, got "reflect"'),
        ('border = "reflect"', 'border = "constant"\nfill = inf', r"window\.fill: expected a finite number, got inf"),
        (
            'border = "reflect"',
            'border = "constant"\nfill = 9.0',
            r"window\.fill: expected at most bounds\.intensity, got 9",
        ),
        ("[window]", "[windows]", r"toml: windows: expected name, classes, .*, got windows: did you mean window\?"),
        ("size = 7", "sise = 7", r"window\.sise: expected size, border, fill or axes, got sise: did you mean size\?"),
        ("{ lesion = 1, liver = 2 }", "{}", "classes: expected at least one class, got none"),
        ("{ lesion = 1, liver = 2 }", "{ a = 1, b = 1 }", r"classes\.a: label 1 is given to two classes"),
        ("{ lesion = 1, liver = 2 }", '{ "" = 1 }', "a class needs a name"),
        ("{ lesion = 1, liver = 2 }", "{ a = 5_000_000_000 }", "a label fits 32 bits, got 5000000000"),
        ('name = "liver lesions, CT"', 'name = " "', "name: expected a name, got an empty string"),
        ('name = "liver lesions, CT"\n', "", "name: expected text, got nothing: write name = …"),
        ("range = [-1000, 3000]", "", r"standardise\.range: method \"rescale\" needs it"),
        ("range = [-1000, 3000]", "range = [5, 5]", r"standardise\.range: expected rising numbers"),
        ("range = [-1000, 3000]", "range = [0, nan]", r"standardise\.range: expected finite numbers"),
        ('method = "rescale"', 'method = "zscore"', r"standardise\.range: method \"zscore\" does not use it"),
        ('"rescale"\nrange = [-1000, 3000]', '"percentile"\npercentiles = [1]', "expected two, .* got 1"),
        ('"rescale"\nrange = [-1000, 3000]', '"percentile"\npercentiles = [1, 101]', "from 0 to 100, got 101"),
        (
            '"rescale"\nrange = [-1000, 3000]',
            '"nyul"\npercentiles = [1, 50, 99]\nlandmarks = [0, 1]',
            r"standardise\.landmarks: expected at least two, one for each percentile",
        ),
        (
            "fraction_bits = 16",
            "fraction_bits = 41",
            r"standardise\.fraction_bits: expected a whole number from 0 to 40, got 41: ",
        ),
        (
            "voxels_per_party = 10_000_000_000",
            "intensity = 0",
            r"bounds\.intensity: expected a whole number .*, got 0: write that, or leave it out$",
        ),
        (
            "voxels_per_party = 10_000_000_000",
            "intensity = 100_000_000_000_000",
            r"bounds\.intensity: intensity · 2\^fraction_bits must stay below 2\^62",
        ),
        ("collusion = 1", "collusion = 3", r"privacy\.collusion: .* got 3: the largest reachable is 2"),
        (
            "min_parties = 3",
            "min_parties = 2",
            r"privacy\.min_parties: expected a whole number of at least 3, got 2: .* leave it out for 3",
        ),
        ("min_parties = 3", "min_parties = 4", "party: expected at least 4 parties, got 3"),
        ('name = "north"', 'name = "south"', r"party\.name: 'south' stands twice"),
        ('name = "north"', 'name = "no rth"', r"party\.name: expected letters, digits"),
        ('name = "north"', 'name = "researcher"', "the ring's master: choose another"),
        ("tcp://north.example:7001", "http://north.example", r"party\.address: expected tcp://HOST:PORT"),
        ("tcp://north.example:7001", "tcp://north.example:99999", r"party\.address: expected tcp://HOST:PORT"),
        ("tcp://north.example:7001", "tcp://south.example:7001", "stands twice: each party listens"),
        ("[privacy]", "[privacy", "not TOML"),
        (
            KEYS["north"],
            "AAAA",
            r"party\.key: north: expected the 44 characters of a public key, got 4 that are none: ",
        ),
        (KEYS["north"], "=" * 44, r"party\.key: north: expected the 44 characters .* that are none: paste the line"),
        (KEYS["north"], "é" * 44, r"party\.key: north: expected the 44 characters"),
        (KEYS["north"], KEYS["north"][:-2] + "t=", r"party\.key: north: expected the 44 characters"),  # spare bits
        (KEYS["researcher"], "x", r"researcher\.key: researcher: expected the 44 characters of a public key, got 1"),
        (KEYS["north"], KEYS["south"], r"party\.key: north has the key of another member: each makes its own"),
        (KEYS["north"], "", r"party\.key: north has none, others have: .* `voxring keys new FILE`"),
        (KEYS["researcher"], "", r"researcher\.key: researcher has none, others have"),
        ("[researcher]", "[researcher]\nname = 'x'", r"researcher\.name: expected key, got name: leave it out"),
    ],
)
def test_a_bad_study_gets_one_clear_error(tmp_path, old, new, message):
    assert old in CONTRACT
    path = tmp_path / "s.toml"
    path.write_text(CONTRACT.replace(old, new), encoding="utf-8")
    with pytest.raises(StudyError, match=message) as caught:
        load_study(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_study_is_named(tmp_path):
    with pytest.raises(StudyError, match=r"none\.toml: no such study file"):
        load_study(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(StudyError, match="cannot be read as a study"):
        load_study(tmp_path / "latin.toml")
    with pytest.raises(StudyError, match="cannot be read as a study"):
        load_study(tmp_path)


FEATURES = """
[[feature]]
kind = "intensity"
[[feature]]
kind = "mean"
window = 7
[[feature]]
kind = "std"
window = [3, 7, 7]
[[feature]]
kind = "gradient"
name = "edge"

[statistics]
gram = true
moments = 4
histogram = { bins = 64, range = [0.0, 1.0] }
glcm = { levels = 32, range = [0.0, 1.0] }

[privacy]
"""


def test_features_and_statistics_are_read_and_belong_to_the_digest():
    study = parse_study(CONTRACT.replace("[privacy]", FEATURES))
    assert [feature.label for feature in study.feature] == ["intensity", "mean-7", "std-3x7x7", "edge"]
    assert [feature.along(3) for feature in study.feature] == [(1, 1, 1), (7, 7, 7), (3, 7, 7), (1, 1, 1)]
    assert study.feature[1].along(2) == (1, 7, 7)
    with pytest.raises(StudyError, match="the window of feature 'std-3x7x7' has 3 numbers, the image has 2 axes"):
        study.feature[2].along(2)
    assert study.statistics.glcm.distance == 1
    assert json.loads(study.canonical())["statistics"]["glcm"]["planar"] is False
    assert not {"feature", "statistics"} & set(json.loads(parse_study(CONTRACT).canonical()))
    other = parse_study(CONTRACT.replace("[privacy]", FEATURES.replace("window = 7", "window = 5")))
    assert len({study.digest, other.digest, parse_study(CONTRACT).digest}) == 3


def test_bins_tell_the_integers_apart_at_their_exact_edges():
    bins = Bins(bins=5, range=(-0.1, 0.2))
    assert bins.edges[0] == Fraction(-1, 10)
    assert bins.edges[5] == Fraction(1, 5)
    starts = bins.starts(16)
    for x in range(-5, 9):
        value = Fraction(x, 16)
        among = [
            j for j in range(5) if bins.edges[j] <= value < bins.edges[j + 1] or (j == 4 and value == bins.edges[5])
        ]
        place = sum(start <= x for start in starts)  # 0: below, 1 … 5, 6: above
        assert place == (among[0] + 1 if among else 6 * (value > 0))
    assert Bins(bins=4, range=(0.0, 1.0)).starts(1) == (0, 1, 1, 1, 2)  # bins without an integer, and the right edge


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("window = 7", "", r'feature\.window: kind "mean" needs it, it is missing: write window = 7'),
        ('kind = "gradient"', 'kind = "gradient"\nwindow = 3', r'feature\.window: kind "gradient" has no window'),
        (
            'kind = "mean"',
            'kind = "median"',
            r'feature\[1\]\.kind: expected "contrast", .*, got "median": did you mean "mean"',
        ),
        (
            "window = 7",
            "window = [3]",
            r"feature\[1\]\.window: expected .* or 2 or 3 such in brackets, got \[3\]: .*, or leave it out$",
        ),
        ("window = 7", "window = [2000, 2000, 2000]", r"fewer than 2\^31 voxels"),
        ("window = 7", "window = [7, 7]", r"no image has as many axes as 'std-3x7x7' and also those of \[window\]"),
        ('"edge"', '"mean-7"', "feature: 'mean-7' stands twice: leave one out, or give each a name"),
        ('"edge"', '"an edge"', r"feature\.name: expected letters, digits, .* got 'an edge'"),
        ("moments = 4", "moments = 1", r"statistics\.moments: expected 0, 2, 3 or 4, got 1: "),
        (
            "bins = 64",
            "bins = 0",
            r"statistics\.histogram\.bins: expected a whole number from 1 to 65536, got 0: write that$",
        ),
        ("range = [0.0, 1.0] }\nglcm", "range = [1, 1] }\nglcm", r"statistics\.histogram\.range: expected rising"),
        (
            "levels = 32, range = [0.0, 1.0]",
            "levels = 32, range = [0, inf]",
            r"statistics\.glcm\.range: expected finite",
        ),
        ("levels = 32", "levels = 1", r"statistics\.glcm\.levels: expected a whole number from 2 to 256, got 1"),
        (
            "levels = 32",
            "levels = 32, distance = 0",
            r"statistics\.glcm\.distance: expected .*, got 0: write that, or leave it out for 1",
        ),
        (FEATURES[: FEATURES.index("[statistics]")], "", r"statistics\.gram: the study has no feature"),
    ],
)
def test_a_bad_feature_or_statistic_gets_one_clear_error(old, new, message):
    assert old in FEATURES
    with pytest.raises(StudyError, match=message):
        parse_study(CONTRACT.replace("[privacy]", FEATURES.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"min_voxels": 3}, "min_voxels: expected name, classes, .*: it belongs to [privacy]"),
        ({"study": 1}, "study: expected name, classes, .*, got study: leave it out"),
        ({"window": 3}, "window: expected a table, got 3: write [window] and its keys below, or leave it out"),
        ({"party": {"name": "x"}}, "party: expected tables, got a table: write [[party]], in two brackets"),
        (
            {"party": [{"name": "x"}, {"nam": "x"}]},
            "party[1].nam: expected name, address or key, got nam: did you mean",
        ),
        ({"party": [{"name": "x", "key": 3}]}, "party[0].key: expected text, got something else: write that, or leave"),
        ({"evaluate": {"bins": 64}}, "evaluate.digest: expected text, got nothing: write digest = …"),
        (
            {"evaluate": {"digst": "0"}},
            "evaluate.digst: expected digest, model or bins, got digst: did you mean digest",
        ),
        (
            {"evaluate": {"digest": "0", "bins": 17}},
            "evaluate.bins: .* that is a multiple of 16, got 17: .* out for 64",
        ),
        ({"classes": {"a": 1, "b": True}}, "classes.b: expected a whole number, or text, got true: write that"),
        ({"classes": {"a.b": 1.5}}, "classes.a.b: expected a whole number, or text, got 1.5: write that"),
        ({"classes": ["a"]}, 'classes: expected a table of one for each class, got ["a"]: write that'),
        ({"classes": {1: 2}}, "classes: expected names of text, got others: put them in quotes"),
        ({"standardise": {"range": [1]}}, "standardise.range: expected 2 numbers in brackets, got [1]: write that, or"),
        ({"standardise": {"landmarks": "agreed"}}, 'standardise.landmarks: .*, got "agreed": did you mean "agree"?'),
        ({"standardise": {"landmarks": ["a/b"]}}, 'landmarks[0]: expected a number, or a fraction .*, got "a/b": '),
        ({"standardise": {"landmarks": [{}]}}, "standardise.landmarks[0]: expected a number, .*, got a table: "),
        ({"privacy": {"voxels_per_patient": {"a": 3, "b": 0}}}, "privacy.voxels_per_patient.b: expected .*, got 0: "),
        (
            {"statistics": {"glcm": {"levels": 4, "range": [0, 1], "planar": 1}}},
            "planar: expected true or false, got 1",
        ),
        ({"relay": None}, "relay: expected text, got nothing: write that, or leave it out"),
        ({"name": ["x" * 99]}, f'name: expected text, got ["{"x" * 58}…: write that'),
        ({"na\nme": 1}, "na me: expected name, .*, got na me: did you mean name?"),
    ],
)
def test_what_breaks_a_type_is_named_with_what_came_and_the_remedy(tables, message):
    with pytest.raises(StudyError) as caught:
        Study.of(**({"name": "s", "classes": {"a": 1}} | tables))
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_parties_can_be_given_later():
    study = Study.of(name="s", classes={"a": 1})
    named = study.with_parties([Party(name=n) for n in ("x", "y", "z")])
    assert named.parties == ("x", "y", "z")
    assert named.digest != study.digest
    with pytest.raises(StudyError, match="at least 3 parties, got 2"):
        study.with_parties([Party(name=n) for n in ("x", "y")])


def test_keys_belong_to_the_digest_and_a_study_without_keys_keeps_the_one_it_had():
    study = parse_study(CONTRACT)
    assert json.loads(study.canonical())["researcher"] == {"key": KEYS["researcher"]}
    assert parse_study(CONTRACT.replace(KEYS["north"], PUBLIC)).digest != study.digest
    without = parse_study(re.sub('key = ".*"', "", CONTRACT))
    assert without.keys == {}
    assert not {"researcher", "relay"} & set(json.loads(without.canonical()))
    relayed = parse_study('relay = "tcp://relay.example:7000"\n' + CONTRACT)
    assert json.loads(relayed.canonical())["relay"] == "tcp://relay.example:7000"
    assert without.digest == parse_study(re.sub('key = ".*"', "", CONTRACT).replace("[researcher]", "")).digest


def test_the_researcher_has_a_key_only_beside_parties_that_have():
    with pytest.raises(StudyError, match="the study names no party"):
        Study.of(name="s", classes={"a": 1}, researcher={"key": PUBLIC})


@pytest.mark.parametrize(("size", "ndim", "expected"), [(5, 2, (1, 5, 5)), (5, 3, (5, 5, 5)), ((2, 4), 2, (1, 2, 4))])
def test_the_window_lies_along_planes_rows_columns(size, ndim, expected):
    assert Study.of(name="s", classes={"a": 1}, window={"size": size}).window.along(ndim) == expected


def of_axes(axes=None, size=3, *features):
    window = {"size": size} | ({} if axes is None else {"axes": axes})
    return Study.of(name="s", classes={"a": 1}, window=window, feature=features)


def test_a_study_says_how_many_axes_its_images_have():
    either, volumes, planes = of_axes(), of_axes(3), of_axes(2)
    assert (either.axes, volumes.axes, planes.axes) == ({2, 3}, {3}, {2})
    assert (of_axes(None, (3, 3, 3)).axes, of_axes(None, (1, 3, 3)).axes, of_axes(2, (1, 3, 3)).axes) == (
        {3},
        {2, 3},
        {2},
    )
    assert of_axes(None, 3, {"kind": "mean", "window": [5, 5]}).axes == {2}
    assert volumes.window.along(3) == either.window.along(3)
    assert planes.window.along(2) == either.window.along(2)
    assert volumes.denominator == planes.denominator == either.denominator
    assert len({either.digest, volumes.digest, planes.digest}) == 3
    with pytest.raises(StudyError, match=r"no image has as many axes as 'mean-3x3x3' and also those of \[window\]"):
        of_axes(2, 3, {"kind": "mean", "window": [3, 3, 3]})
    with pytest.raises(
        StudyError, match=r"window\.axes is 3, the image has 2 axes: give a whole volume, or take a study or"
    ):
        volumes.check_axes(2)
    with pytest.raises(
        StudyError, match=r"window\.axes is 2, the image has 3 axes: give one plane at a time, or take a"
    ):
        planes.check_axes(3)
    with pytest.raises(StudyError, match="the window of feature 'mean-3x3x3' has 3 numbers, the image has 2 axes"):
        of_axes(None, 3, {"kind": "mean", "window": [3, 3, 3]}).check_axes(2)


@pytest.mark.parametrize(
    ("axes", "features", "blurs"),
    [
        (None, [{"kind": "gradient"}], True),
        (None, [{"kind": "mean", "window": 3}], True),
        (None, [{"kind": "intensity"}, {"kind": "mean", "window": [1, 3, 3]}], False),
        (None, [{"kind": "gradient"}, {"kind": "mean", "window": [3, 3, 3]}], False),
        (None, [{"kind": "mean", "window": 1}], False),
        (2, [{"kind": "gradient"}], False),
    ],
)
def test_features_blur_axes_where_nothing_says_how_many_there_are(axes, features, blurs):
    assert of_axes(axes, 3, *features).blurs_axes is blurs


@pytest.mark.parametrize("size", [2, 3, 6, (2, 3), (1, 4, 5)])
def test_clip_has_a_common_denominator_of_all_counts_that_occur(size):
    window = Study.of(name="s", classes={"a": 1}, window={"size": size, "border": "clip"}).window
    shapes = [window.along(2), window.along(3)] if isinstance(size, int) else [window.along(len(size))]
    counts = {
        prod((i, j, k))
        for c in shapes
        for i in range(1, c[0] + 1)
        for j in range(1, c[1] + 1)
        for k in range(1, c[2] + 1)
    }
    assert window.denominator == lcm(*counts)
