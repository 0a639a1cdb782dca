"""The command as a user runs it: real sockets, exit codes and words; real processes where that is the point."""

import contextlib
import io
import json
import os
import re
import resource
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from fractions import Fraction
from hashlib import sha256
from itertools import product
from xml.etree import ElementTree

import numpy as np
import pytest

from voxring import load_study, simulation
from voxring.cli import main
from voxring.cli.demo import make_demo

BORDERS = ["reflect", "mirror", "nearest", "constant", "clip"]
NUMPY_PAD = {"reflect": "symmetric", "mirror": "reflect", "nearest": "edge", "constant": "constant"}


def run(*arguments, check=None, cwd=None, stdin=""):
    """The command in this process, from the words of its line to its exit code: a process takes a second to start."""
    given = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
    said = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(cwd or "."):
        patch.setattr(sys, "argv", ["voxring", *map(str, arguments)])
        for name, stream in zip(("stdin", "stdout", "stderr"), (given, *said), strict=True):
            patch.setattr(sys, name, stream)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, handler)
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in said)
    done = subprocess.CompletedProcess(arguments, ended.value.code, stdout, stderr)
    return checked(done, check)


def run_process(*arguments, check=None, cwd=None):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "voxring", *map(str, arguments)]
    return checked(subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd), check)


def checked(done, code):
    if code is not None:
        assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's CT and ground truth, whole, and its folder with three hospitals."""
    import nrrd

    folder = tmp_path_factory.mktemp("demo")
    study, manifests = make_demo(folder)
    parts = [nrrd.read(str(path.parent / "ct.nrrd"), index_order="C")[0] for path in manifests.values()]
    labels = [nrrd.read(str(path.parent / "ground_truth.nrrd"), index_order="C")[0] for path in manifests.values()]
    return folder, study, manifests, parts, labels


def write_study(folder, window, border, standardise):
    path = folder / f"study-{border}.toml"
    classes = ", ".join(f"t{label} = {label}" for label in range(1, 8))
    path.write_text(
        f'name = "test"\nclasses = {{ {classes} }}\n[window]\nsize = {window}\nborder = "{border}"\n'
        f"[standardise]\n{standardise}\n",
        encoding="utf-8",
    )
    return path


def party_options(manifests):
    return [f"--party={name}={path}" for name, path in manifests.items()]


def pairwise_sums(image, window, border):
    """Window sums and counts through numpy's padding and sliding windows; nothing of voxring's."""
    sizes = (window,) * 3 if isinstance(window, int) else window
    pad = [(c // 2, c - 1 - c // 2) for c in sizes]
    mode = NUMPY_PAD.get(border, "constant")
    values = np.pad(image.astype(np.int64), pad, mode=mode)
    ones = np.pad(np.ones(image.shape, np.int64), pad, mode=mode if border == "clip" else "edge")
    for axis, c in enumerate(sizes):
        values = np.lib.stride_tricks.sliding_window_view(values, c, axis).sum(-1)
        ones = np.lib.stride_tricks.sliding_window_view(ones, c, axis).sum(-1)
    return values, ones


def standardised(image, standardise, bits=16):
    """x of one image, an integer over 2^bits, from the definition."""
    v = image.astype(np.int64)
    if "none" in standardise:
        return v << bits
    if "rescale" in standardise:
        a = round(Fraction(2**bits, 4000))
        return a * (np.clip(v, -1000, 3000) + 1000)
    if "zscore" in standardise:
        kept = v[v * v.size > v.sum()]
        n, total, squares = kept.size, int(kept.sum()), int((kept * kept).sum())
        target = Fraction(4**bits * n * n, n * squares - total * total)
        a = int(float(target) ** 0.5)
        while Fraction(2 * a + 1, 2) ** 2 < target:
            a += 1
        return a * v + round(Fraction(-a * total, n))
    kept = np.sort(v[v * v.size > v.sum()])
    percentiles, landmarks = ((1, 50, 99), (0, 40, 100)) if "nyul" in standardise else ((1, 99), (0, 1))
    knots = [int(kept[max(1, -(-q * kept.size // 100)) - 1]) for q in percentiles]
    inside = np.clip(v, knots[0], knots[-1])
    x = np.zeros_like(v)
    for left, right, low, high in zip(knots, knots[1:], landmarks, landmarks[1:], strict=False):
        step = round(Fraction((high - low) * 2**bits, right - left))
        piece = (inside >= left) & ((inside < right) | (right == knots[-1]))
        x[piece] = step * (inside[piece] - left) + (low << bits)
    return x


OPTIONS = {
    "none": 'method = "none"',
    "rescale": 'method = "rescale"\nrange = [-1000, 3000]',
    "zscore": 'method = "zscore"',
    "percentile": 'method = "percentile"\npercentiles = [1, 99]',
    "nyul": 'method = "nyul"\npercentiles = [1, 50, 99]\nlandmarks = [0, 40, 100]',
}
WINDOWS = (7, (1, 5, 5), 4)
# Every combination under the marker; in every run each border, each window and each standardisation, two of them by
# processes and all by what these compute.
BY_PROCESSES = ("reflect", "clip")
SHORT = {("reflect", 7, "rescale"), ("clip", 4, "zscore"), ("mirror", (1, 5, 5), "percentile"), ("nearest", 7, "nyul")}
SHORT |= {("constant", 4, "none")}
CASES = [
    pytest.param(*case, marks=() if case in SHORT else pytest.mark.soak) for case in product(BORDERS, WINDOWS, OPTIONS)
]


@pytest.mark.parametrize(("border", "window", "method"), CASES)
def test_simulate_equals_an_independent_computation(demo, tmp_path, border, window, method, request):
    _, _, manifests, parts, labels = demo
    study = write_study(tmp_path, list(window) if isinstance(window, tuple) else window, border, OPTIONS[method])
    if border in BY_PROCESSES or request.node.get_closest_marker("soak"):
        run("simulate", study, *party_options(manifests), "--out", tmp_path / "r.json", "--quiet", check=0)
        document = json.loads((tmp_path / "r.json").read_text())
    else:
        checked = simulation.with_parties(load_study(study), list(manifests))
        document = simulation.pooled_result(checked, manifests).document
    n, total = dict.fromkeys(range(1, 8), 0), dict.fromkeys(range(1, 8), Fraction(0))
    intensities = {label: [] for label in range(1, 8)}
    for image, truth in zip(parts, labels, strict=True):
        x = standardised(image, method)
        sums, counts = pairwise_sums(x, window, border)
        for label in n:
            here = truth == label
            n[label] += int(here.sum())
            intensities[label].append(x[here])
            for count in np.unique(counts[here]):
                total[label] += Fraction(int(sums[here & (counts == count)].sum()), int(count) * 2**16)
    for label in n:
        got = document["classes"][f"t{label}"]
        mean = total[label] / n[label]
        x = np.concatenate(intensities[label]).astype(object)
        squares, plain = int((x * x).sum()), int(x.sum())
        sdsum = Fraction(squares, 4**16) - 2 * mean * Fraction(plain, 2**16) + n[label] * mean * mean
        assert got["voxels"] == n[label]
        assert Fraction(*map(int, got["sum"])) == total[label]
        assert got["mean"] == [str(mean.numerator), str(mean.denominator)]
        assert got["sdsum"] == [str(sdsum.numerator), str(sdsum.denominator)]
        variance = sdsum / (n[label] - 1)
        assert got["variance"] == [str(variance.numerator), str(variance.denominator)]
        assert got["mean_float"] == float(mean)
        assert abs(got["std_float"] - float(variance) ** 0.5) <= 1e-15 * got["std_float"]


def test_the_demo_says_what_happened():
    start = time.monotonic()
    done = run_process("demo", check=0)
    assert time.monotonic() - start < 60
    assert "equal to pooled, bit for bit: yes" in done.stdout
    for word in ("right lung", "north", "centre", "south", "researcher", "uniform"):
        assert word in done.stdout
    assert "compiling the kernels" in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_is_a_live_table_on_a_terminal(demo, tmp_path):
    import pty
    import threading

    folder, _, manifests, _, _ = demo
    ours, theirs = pty.openpty()
    seen = bytearray()

    def read():
        with contextlib.suppress(OSError):  # how the end of a terminal looks
            while part := os.read(ours, 4096):
                seen.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    options = [*party_options(manifests), "--out", str(tmp_path / "r.json")]
    command = [sys.executable, "-m", "voxring", "simulate", str(folder / "study.toml"), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, timeout=60)
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    assert done.returncode == 0
    assert b"researcher" in seen
    assert b"\x1b[" in seen
    assert b"done" in seen


def test_simulate_pooled_and_json(demo, tmp_path):
    folder, _, manifests, _, _ = demo
    out = tmp_path / "r.json"
    done = run(
        "simulate", folder / "study.toml", *party_options(manifests), "--out", out, "--pooled", "--json", check=0
    )
    assert json.loads(done.stdout) == json.loads(out.read_text())
    assert "equal to pooled, bit for bit: yes" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json"]


def test_a_bad_image_ends_the_study_with_its_reason_and_no_result(demo, tmp_path):
    folder, _, manifests, _, _ = demo
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "ct.nrrd").write_bytes((manifests["south"].parent / "ct.nrrd").read_bytes()[:900])
    (bad / "m.csv").write_text(f"image,ground_truth\nct.nrrd,{manifests['south'].parent / 'ground_truth.nrrd'}\n")
    out = tmp_path / "r.json"
    done = run(
        "simulate",
        folder / "study.toml",
        *party_options({**manifests, "south": bad / "m.csv"}),
        "--out",
        out,
        "--timeout",
        20,
        check=4,
    )
    assert "ct.nrrd" in done.stderr.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing"], 2, "No such command 'nothing'"),
        (["simulate"], 2, "Missing argument 'STUDY'"),
        (["simulate", "s.toml", "--party", "a", "--out", "r"], 2, "expected NAME=MANIFEST, got 'a'"),
        (["simulate", "s.toml", "--party", "a=m", "--party", "a=m", "--out", "r"], 2, "'a' is given twice"),
        (["simulate", "none.toml", "--party", "a=m", "--out", "r"], 3, "none.toml: no such study file"),
        (["simulate", "s.toml", "--party", "a=m", "--party", "b=m", "--out", "r"], 3, "at least 3 parties, got 2"),
        (["simulate", "s.toml", "--party=a=m", "--party=b=m", "--party=c=m", "--out", "x/r"], 3, "make the folder"),
        (["simulate", "s.toml", "--party=a=m", "--party=b=m", "--party=c=m", "--out", "r"], 3, "no such manifest"),
        (["party", "p.toml", "--name", "a", "--manifest", "m.csv"], 3, "no such manifest"),
        (["research", "p.toml", "--out", "r"], 3, "--insecure"),
        (
            ["research", "p.toml", "--out", "r", "--insecure", "--key", "none"],
            3,
            "none: cannot be read as a private key",
        ),
        (
            ["research", "p.toml", "--out", "r", "--relay", "tcp://h:1", "--insecure"],
            3,
            "a relay carries sealed frames",
        ),
        (["relay", "--listen", "h:1"], 3, "--listen: expected an address like tcp://HOST:PORT"),
        (["keys", "show", "s.toml"], 3, "the study has no keys: `voxring keys --help` says how"),
        (["keys", "show", "m.csv"], 3, "m.csv: cannot be read as a private key"),
        (["keys", "new", "p.toml"], 3, "p.toml: expected a name for a key, got that of a study"),
        (["relay", "--listen", "tcp://192.0.2.1:9"], 5, "expected an address of this machine"),
        (["study", "disclose", "p.toml", "--out", "p.toml"], 3, "expected another file than one that is read"),
        (["research", "p.toml", "--out", "p.toml"], 3, "expected another file than one that is read"),
        (["study", "check", "none.toml"], 3, "no such study file"),
    ],
)
def test_misuse_is_told_in_one_line_with_its_exit_code(tmp_path, arguments, code, words):
    (tmp_path / "s.toml").write_text('name = "s"\nclasses = { a = 1 }\n')
    parties = "".join(f'[[party]]\nname = "{p}"\naddress = "tcp://127.0.0.1:{i}"\n' for i, p in enumerate("abc", 9))
    (tmp_path / "p.toml").write_text('name = "s"\nclasses = { a = 1 }\n' + parties)
    done = (run_process if arguments == ["simulate"] else run)(*arguments, check=code, cwd=tmp_path)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


def test_study_check_says_who_learns_what(demo, tmp_path):
    path = write_study(tmp_path, 7, "clip", OPTIONS["rescale"])
    done = run("study", "check", path, check=0)
    for words in ("digest   ", "moduli   voxels", "Who learns what", "rounded by 2.3%", "min_voxels"):
        assert words in done.stdout
    document = json.loads(run("study", "check", path, "--json", check=0).stdout)
    assert len(document["digest"]) == 64
    assert document["warnings"]
    assert document["disclosure"]
    assert document["statistics"] == {}


def test_study_check_says_how_long_the_vector_of_additive_statistics_is(tmp_path):
    path = write_study(tmp_path, 3, "clip", OPTIONS["rescale"])
    with path.open("a") as file:
        file.write('[[feature]]\nkind = "mean"\nwindow = 3\n[statistics]\ngram = true\nmoments = 4\n')
    shown = run("study", "check", path, check=0).stdout
    assert "features mean-3\n" in shown
    assert "vector   6 numbers of each class, 1 kB: feature_sums 1, gram 1, powers 4\n" in shown
    assert "powers tell the intensity of each" in shown
    document = json.loads(run("study", "check", path, "--json", check=0).stdout)
    assert (document["features"], document["statistics"]) == (["mean-3"], {"feature_sums": 1, "gram": 1, "powers": 4})
    assert "statistics" in document["modulus_bits"]


def test_study_disclose_writes_the_sheet_in_three_formats(tmp_path):
    path = tmp_path / "s.toml"
    parties = "".join(f'[[party]]\nname = "{name}"\n' for name in "abcd")
    path.write_text(f'name = "<script>x|y"\nclasses = {{ "a&b" = 1 }}\n[privacy]\ncollusion = 2\n{parties}')
    digest = json.loads(run("study", "check", path, "--json", check=0).stdout)["digest"]
    shown = {form: run("study", "disclose", path, "--format", form, check=0).stdout for form in ("md", "json", "html")}
    for form, text in shown.items():
        assert digest in text
        assert "share of sdsum" in text
        assert run("study", "disclose", path, "--format", form, "--out", tmp_path / form, check=0).stdout == ""
        assert (tmp_path / form).read_text() == text
    assert run("study", "disclose", path, check=0).stdout == shown["md"]
    assert "# Disclosure sheet: \\<script\\>x\\|y\n" in shown["md"]
    columns = {line.replace("\\|", "").count("|") for line in shown["md"].splitlines() if line.startswith("| 1 |")}
    assert columns == {4}
    document = json.loads(shown["json"])
    assert document["classes"] == ["a&b"]
    assert [section["title"] for section in document["sections"]][1:3] == ["Every message", "What colluders learn"]
    assert "&lt;script&gt;x|y" in shown["html"]
    for active in ("<script", "src=", "href=", "http://", "https://", "url(", "@import"):
        assert active not in shown["html"]
    ElementTree.fromstring(re.sub(r"<!doctype html>|<meta[^>]*>", "", shown["html"]))  # noqa: S314  # it closes every tag
    assert (
        "expected a file in a folder" in run("study", "disclose", path, "--out", tmp_path / "no" / "x", check=3).stderr
    )


def test_separate_processes_run_a_study(demo, tmp_path):
    """`voxring party` three times and `voxring research`, in the order in which things go wrong in life."""
    folder, _, manifests, _, _ = demo
    study = with_addresses(folder / "study.toml", manifests, tmp_path)
    digest = json.loads(run("study", "check", study, "--json", check=0).stdout)["digest"]
    command = [sys.executable, "-m", "voxring"]
    research = subprocess.Popen(
        [*command, "research", study, "--out", tmp_path / "r.json", "--insecure", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    parties = [
        subprocess.Popen(
            [*command, "party", study, "--name", name, "--manifest", path, "--insecure", "--json", "--approve", digest],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, path in manifests.items()
    ]
    answer, said = research.communicate(timeout=90)
    assert research.returncode == 0, said
    document = json.loads(answer)
    for name in manifests:
        told = [line.get("says") for line in map(json.loads, said.splitlines()) if line["who"] == name]
        assert told[0] == "not connected yet"
        assert "connected, has approved the study" in told
        assert "has its totals" in told
    report = (tmp_path / "r.html").read_text(encoding="utf-8")
    for words in (
        document["digest"],
        "/".join(document["classes"]["tissue"]["mean"]),
        "Ring 1: researcher → ",
        "secure sum of sdsum",
    ):
        assert words in report
    for party in parties:
        learned, said = party.communicate(timeout=30)
        assert party.returncode == 0, said
        assert json.loads(learned)["mean"]["tissue"] == document["classes"]["tissue"]["mean"]
        assert " entries, head " in said
    for name in manifests:
        verified = run("ledger", "verify", "--name", name, check=0).stdout
        assert verified.startswith(f"whole: ledger of {name}: 7 entries")
        table = run("ledger", "show", "--name", name, check=0).stdout
        for words in ("session", "brought", "outcome done", "given voxels sum sdsum", "messages", "tissue="):
            assert words in " ".join(table.split())


@pytest.fixture
def named(tmp_path):
    """A study with the parties a, b and c, and its digest."""
    path = tmp_path / "s.toml"
    path.write_text('name = "s"\nclasses = { a = 1 }\n' + "".join(f'[[party]]\nname = "{name}"\n' for name in "abc"))
    return path, json.loads(run("study", "check", path, "--json", check=0).stdout)["digest"]


def test_party_approve_shows_the_sheet_and_asks_for_the_digest(named, tmp_path):
    study, digest = named
    state = ["--state", tmp_path / "state"]
    shown = run("study", "disclose", study, check=0).stdout
    assert "say with --name which this is" in run("party", "approve", study, *state, "--yes", digest, check=3).stderr
    assert (
        "'z' is none of them" in run("party", "approve", study, *state, "--name", "z", "--yes", digest, check=3).stderr
    )
    for typed, words in (("0" * 64, "got another"), (digest[:11], "got another"), ("", "give --yes DIGEST")):
        done = run("party", "approve", study, *state, "--name", "a", check=3, stdin=f"{typed}\n" if typed else "")
        assert done.stdout.startswith(shown)
        assert words in done.stderr
        assert f"digest of the study: {digest}" in done.stdout
        assert "approved for" not in done.stdout
    assert not (tmp_path / "state").exists()
    done = run("party", "approve", study, *state, "--name", "a", check=0, stdin=digest[:12].upper() + "\n")
    assert done.stdout.startswith(shown)
    assert "approved for a; ledger of a: 2 entries, head " in done.stdout
    assert run("party", "approve", study, *state, "--yes", digest, check=0).stdout.startswith(shown)
    entries = json.loads(run("ledger", "show", *state, "--json", check=0).stdout)
    assert [entry["content"].get("how") for entry in entries] == [None, "party approve", "party approve --yes"]
    assert entries[1]["content"]["sheet"] == entries[2]["content"]["sheet"] == sha256(shown.encode()).hexdigest()


@pytest.mark.parametrize("run_or_not", [[], ["run"]])
def test_party_runs_nothing_that_was_not_approved(named, tmp_path, run_or_not):
    study, digest = named
    for file in ("i.npy", "t.npy"):
        (tmp_path / file).touch()
    (tmp_path / "m.csv").write_text("image,ground_truth\ni.npy,t.npy\n")
    options = ["--name", "a", "--manifest", tmp_path / "m.csv", "--state", tmp_path / "my state"]
    for arguments in ([study, *options], [*options, study]):
        done = run("party", *run_or_not, *arguments, check=3)
        command = done.stderr.splitlines()[-1].partition("approve it: voxring ")[2]
        assert command == f"party approve {study} --name a --state '{tmp_path / 'my state'}'"
    assert (
        "expected the study's digest"
        in run("party", *run_or_not, study, *options, "--approve", "0" * 12, check=3).stderr
    )
    assert not (tmp_path / "my state").exists()
    run(*shlex.split(command), "--yes", digest[:12], check=0)
    assert "expected an address" in run("party", *run_or_not, study, *options, check=3).stderr
    study.write_text(study.read_text().replace("a = 1", "a = 2"))  # changed after approval
    assert "has not approved study" in run("party", *run_or_not, study, *options, check=3).stderr
    changed = json.loads(run("study", "check", study, "--json", check=0).stdout)["digest"]
    done = run("party", *run_or_not, study, *options, "--approve", changed, check=3)
    assert "expected an address" in done.stderr


def test_party_help_shows_both_ways():
    text = run("party", "--help", check=0).stdout
    for words in ("party [run] STUDY --name NAME", "party approve STUDY", "run may be left out"):
        assert words in " ".join(text.split())
    assert "--allow-differencing" in run("party", "run", "--help", check=0).stdout
    assert "--yes" in run("party", "approve", "-h", check=0).stdout
    assert "Missing argument 'STUDY'" in run("party", check=2).stderr


def test_ledger_show_and_verify_say_what_is_there_and_what_is_broken(named, tmp_path):
    study, digest = named
    state = ["--state", tmp_path]
    assert "found none" in run("ledger", "show", *state, check=3).stderr
    for name in "ab":
        run("party", "approve", study, *state, "--name", name, "--yes", digest, check=0)
    assert "found those of a, b: say which with --name" in run("ledger", "verify", *state, check=3).stderr
    assert "no such ledger" in run("ledger", "verify", *state, "--name", "c", check=3).stderr
    state += ["--name", "a"]
    table = run("ledger", "show", *state, check=0).stdout
    for words in ("opened", "approval", digest[:12]):
        assert words in table
    said = run("ledger", "verify", *state, check=0).stdout
    head = json.loads(run("ledger", "show", *state, "--json", check=0).stdout)[-1]["hash"]
    assert said == f"whole: ledger of a: 2 entries, head {head}\n"
    run("party", "approve", study, *state, "--yes", digest, check=0)
    assert "3 entries" in run("ledger", "verify", *state, "--head", head.upper(), check=0).stdout
    assert "copy it whole" in run("ledger", "verify", *state, "--head", head[:12], check=3).stderr
    later = json.loads(run("ledger", "show", *state, "--json", check=0).stdout)[-1]["hash"]
    with contextlib.closing(sqlite3.connect(tmp_path / "ledgers" / "a.sqlite", isolation_level=None)) as db:
        db.execute("DROP TRIGGER no_update")
        db.execute("DROP TRIGGER no_delete")
        db.execute("DELETE FROM ledger WHERE sequence = 3")
        run("ledger", "verify", *state, check=0)  # a cut tail shows only against a noted head
        assert (
            "no entry has the hash that was noted" in run("ledger", "verify", *state, "--head", later, check=3).stderr
        )
        db.execute("UPDATE ledger SET content = 'no JSON' WHERE sequence = 2")
    assert "the chain is broken at entry 2" in run("ledger", "verify", *state, check=3).stderr
    assert "not what an entry of this kind holds" in " ".join(run("ledger", "show", *state, check=0).stdout.split())
    assert json.loads(run("ledger", "show", *state, "--json", check=0).stdout)[1]["content"] == "no JSON"


def test_keys_are_made_shown_and_seal_a_study_also_through_a_relay(demo, tmp_path):
    """All that `voxring keys --help` says, with separate processes."""
    folder, _, manifests, _, _ = demo
    study = with_addresses(folder / "study.toml", manifests, tmp_path)
    text, shown = study.read_text().replace("tcp://", "tls+tcp://"), {}
    for name in (*manifests, "researcher"):
        made = run("keys", "new", tmp_path / name, check=0)
        assert "stays on this machine" in made.stderr
        line, fingerprint = made.stdout.splitlines()
        shown[name] = [line.split('"')[1], fingerprint.removeprefix("fingerprint ")]
        assert run("keys", "show", tmp_path / name, check=0).stdout == made.stdout
        table = f'name = "{name}"\n'
        text = text.replace(table, table + line + "\n") if name in manifests else f"{text}[researcher]\n{line}\n"
    study.write_text(text)
    listed = [line.split(maxsplit=2) for line in run("keys", "show", study, check=0).stdout.splitlines()]
    assert {name: rest for name, *rest in listed} == shown
    assert "sealed" in run("study", "check", study, check=0).stdout

    without = run("research", study, "--out", tmp_path / "r.json", "--insecure", check=3)
    assert "links are sealed: give this member's private key with --key FILE" in without.stderr
    (tmp_path / "researcher").chmod(0o644)
    open_key = run("research", study, "--out", tmp_path / "r.json", "--key", tmp_path / "researcher", check=3)
    assert "chmod 600" in open_key.stderr
    (tmp_path / "researcher").chmod(0o600)

    def key_of(name):
        return ["--key", tmp_path / name]

    approved = ["--approve", json.loads(run("study", "check", study, "--json", check=0).stdout)["digest"]]
    command = [sys.executable, "-m", "voxring"]
    relay = subprocess.Popen([*command, "relay", "--listen", "tcp://127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    try:
        through = ["--relay", relay.stdout.readline().split()[-1]]
        results = []
        for how in ([], through):
            parties = [
                subprocess.Popen(
                    [*command, "party", study, "--name", name, "--manifest", path, *approved, *key_of(name), *how],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for name, path in manifests.items()
            ]
            out = ["--out", tmp_path / "r.json", "--json"]
            done = run("research", study, *out, *key_of("researcher"), *how, check=0)
            for party in parties:
                _, said = party.communicate(timeout=30)
                assert party.returncode == 0, said
                assert ("listening through the relay" in said) == bool(how)
            results.append(json.loads(done.stdout)["classes"])
        assert results[0] == results[1]
        assert results[0]["tissue"]["voxels"] > 0
    finally:
        relay.send_signal(signal.SIGINT)
    assert relay.wait(timeout=10) == 0
    relay.stdout.close()


def approval(study):
    """Options with which a party approves a study as it runs."""
    return ["--approve", json.loads(run("study", "check", study, "--json", check=0).stdout)["digest"]]


def with_addresses(study, names, folder):
    """The study with a party at a free port of this machine for each name."""
    tables = "".join(
        f'[[party]]\nname = "{name}"\naddress = "tcp://127.0.0.1:{port}"\n'
        for name, port in zip(names, free_ports(len(names)), strict=True)
    )
    path = folder / "study.toml"
    path.write_text(study.read_text() + tables)
    return path


def free_ports(count):
    import socket

    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_killing_a_party_ends_everybody_without_a_result(demo, tmp_path):
    folder, _, manifests, _, _ = demo
    study = with_addresses(folder / "study.toml", manifests, tmp_path)
    digest = json.loads(run("study", "check", study, "--json", check=0).stdout)["digest"]
    command, timeout = [sys.executable, "-m", "voxring"], 10
    options = ["--insecure", "--timeout", str(timeout)]
    names = list(manifests)
    # One party is killed once it computes: the others and the researcher must end by themselves.
    running = {
        name: subprocess.Popen(
            [*command, "party", study, "--name", name, "--manifest", manifests[name], "--approve", digest, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        for name in names
    }
    running["researcher"] = subprocess.Popen(
        [*command, "research", study, "--out", tmp_path / "r.json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    victim = running.pop(names[1])
    assert "computes on CPU" in victim.stderr.readline()
    while "computing" not in (line := victim.stderr.readline()):
        assert line
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    killed = time.monotonic()
    for process in running.values():
        _, said = process.communicate(timeout=timeout + 20)
        assert process.returncode == 5, said
        assert "Traceback" not in said
        assert said.splitlines()[-1].startswith("voxring: ")
    assert time.monotonic() - killed < 2 * timeout + 5  # the researcher waits once for it to come back
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_party_that_is_stopped_says_how_to_go_on(demo, tmp_path, number, code):
    folder, _, manifests, _, _ = demo
    study = with_addresses(folder / "study.toml", manifests, tmp_path)
    name, manifest = next(iter(manifests.items()))
    options = ["--name", name, "--manifest", manifest, "--insecure", *approval(study)]
    party = subprocess.Popen(
        [sys.executable, "-m", "voxring", "party", study, *options], stderr=subprocess.PIPE, text=True
    )
    while "waiting" not in (line := party.stderr.readline()):
        assert line
    party.send_signal(number)
    _, said = party.communicate(timeout=60)
    assert party.returncode == code
    assert said.splitlines()[-1].endswith("give the same command to go on")
    assert "Traceback" not in said


def test_a_party_with_bad_rows_sends_nothing_unless_told_to(demo, tmp_path):
    """One image of a hospital is damaged: its run ends before a number leaves; the others are told."""
    folder, _, manifests, _, _ = demo
    study = with_addresses(folder / "study.toml", manifests, tmp_path)
    names, command = list(manifests), [sys.executable, "-m", "voxring"]
    shared = ["--insecure", *approval(study)]
    rows = [manifests[names[0]].read_text().splitlines()[1].split(","), ["bad.npy", "worse.npy"]]
    for file in ("bad.npy", "worse.npy"):
        (tmp_path / file).write_bytes(b"no")
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        "\n".join(["image,ground_truth", *(",".join(str(manifests[names[0]].parent / p) for p in rows[0][:2]),)])
        + "\nbad.npy,worse.npy\n"
    )
    for options, code in (([], 4), (["--strict"], 4), (["--skip-bad", "--workers", "2"], 0)):
        running = [
            subprocess.Popen([*command, *map(str, of)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for of in (
                ["party", study, "--name", names[0], "--manifest", manifest, "--quiet", *shared, *options],
                *(["party", study, "--name", name, "--manifest", manifests[name], *shared] for name in names[1:]),
                ["research", study, "--out", tmp_path / "r.json", "--insecure", "--quiet", "--timeout", "20"],
            )
        ]
        said = [process.communicate(timeout=120)[1] for process in running]
        assert running[0].returncode == code, said
        assert (running[-1].returncode == 0) == (code == 0), said
        assert ("line 3" in said[0]) == (code != 0)
        assert (tmp_path / "r.json").exists() == (code == 0)
    assert said[0].strip() == f"voxring: {names[0]}: 1 image used, 1 of them computed earlier; 1 skipped, of 1 patient"
    assert json.loads((tmp_path / "r.json").read_text())["skipped"] == {names[0]: 1}
    assert "skipped 1" in " ".join(run("ledger", "show", "--name", names[0], check=0).stdout.split())


@pytest.mark.parametrize("windows", [1, pytest.param(None, marks=pytest.mark.soak)])
def test_warm_fills_the_chosen_cache(tmp_path, windows):
    """For the first of its windows alone, as each compiles kernels of its own; for all under soak. Not measured, which
    takes a third of the time: numba's compiler is slow under it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path)
    code = f"from voxring.cli import warm; warm._WINDOWS = warm._WINDOWS[:{windows}]; warm.warm(['--type', 'uint8'])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ready for uint8")
    kept = set(tmp_path.rglob("*.nbc"))
    assert kept
    subprocess.run(command, check=True, env=environment, timeout=200, stdout=subprocess.DEVNULL)
    assert set(tmp_path.rglob("*.nbc")) == kept  # the second time compiles nothing


def test_help_is_instant():
    """Less than 0.15 s of CPU beyond the interpreter's own start; the least of several, as machines are noisy."""

    def cpu(*command):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    bare = min(cpu(sys.executable, "-c", "pass") for _ in range(5))
    voxring = min(cpu(sys.executable, "-m", "voxring", "--help") for _ in range(5))
    assert voxring - bare < 0.15
    code = "import sys, voxring.cli; sys.exit(any(m in sys.modules for m in ('numpy', 'numba', 'rich', 'pynng')))"
    subprocess.run([sys.executable, "-c", code], check=True)
