"""The study file: what is read, what is refused and in which words."""

import hashlib
import json
import re
from math import lcm, prod

import pytest

from voxring import Study, StudyError, load_study
from voxring.study import Party, parse_study

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
        ("size = 7", "size = 0", r"s\.toml: window\.size: expected `int` >= 1"),
        ("size = 7", "size = [3, 0]", r"window\.size\[1\]: expected `int` >= 1"),
        ("size = 7", "size = [3]", r"window\.size: expected `array` of length >= 2"),
        ("size = 7", 'size = "7"', r"window\.size: expected `int \| array`, got `str`"),
        ("size = 7", "size = [2000, 2000, 2000]", r"fewer than 2\^31 voxels"),
        ('size = 7\nborder = "reflect"', 'size = 1200\nborder = "clip"', "no common denominator"),
        ('"reflect"', '"wrap"', r"window\.border: invalid enum value 'wrap'"),
        ('border = "reflect"', "fill = 2.0", r'window\.fill: only the border "constant" has a fill, got "reflect"'),
        ('border = "reflect"', 'border = "constant"\nfill = inf', r"window\.fill: expected a finite number, got inf"),
        ('border = "reflect"', 'border = "constant"\nfill = 9.0', r"window\.fill: the fill leaves bounds\.intensity"),
        ("[window]", "[windows]", "unknown field `windows`"),
        ("size = 7", "sise = 7", r"window: object contains unknown field `sise`"),
        ("{ lesion = 1, liver = 2 }", "{}", "classes: expected at least one class, got none"),
        ("{ lesion = 1, liver = 2 }", "{ a = 1, b = 1 }", r"classes\.a: label 1 is given to two classes"),
        ("{ lesion = 1, liver = 2 }", '{ "" = 1 }', "a class needs a name"),
        ("{ lesion = 1, liver = 2 }", "{ a = 5_000_000_000 }", "a label fits 32 bits, got 5000000000"),
        ('name = "liver lesions, CT"', 'name = " "', "name: expected a name, got an empty string"),
        ('name = "liver lesions, CT"\n', "", "missing required field `name`"),
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
        ("fraction_bits = 16", "fraction_bits = 41", r"standardise\.fraction_bits: expected `int` <= 40"),
        ("voxels_per_party = 10_000_000_000", "intensity = 0", r"bounds\.intensity: expected `int` >= 1"),
        (
            "voxels_per_party = 10_000_000_000",
            "intensity = 100_000_000_000_000",
            r"bounds\.intensity: intensity · 2\^fraction_bits must stay below 2\^62",
        ),
        ("collusion = 1", "collusion = 3", r"privacy\.collusion: .* got 3: the largest reachable is 2"),
        ("min_parties = 3", "min_parties = 2", r"privacy\.min_parties: expected `int` >= 3"),
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
        ("[researcher]", "[researcher]\nname = 'x'", "researcher: object contains unknown field `name`"),
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
