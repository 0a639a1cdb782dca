"""What an operator sees of a run, and how it ends when told to: progress, the status page, signals."""

import contextlib
import csv
import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import pytest

from voxring.batch import party_totals
from voxring.cli.progress import LINE_SECONDS, Progress, Standing
from voxring.cli.status import StatusServer
from voxring.devices import device_name
from voxring.errors import ImageError, PeerError
from voxring.session import run_party, run_researcher
from voxring.study import load_study
from voxring.totals import ClassTotals, LocalTotals, pooled

# How far it is.


def test_the_rate_is_of_images_that_were_computed_of_late():
    now = [0.0]
    one = Standing(clock=lambda: now[0])
    assert (one.rate, one.left) == (None, None)
    one.images(0, 1000)
    one.images(900, 1000)  # the journal knew them
    assert (one.rate, one.left) == (None, None)
    for done in range(901, 941):
        now[0] += 10 if done <= 908 else 2
        one.images(done, 1000)
    assert one.rate == 0.5
    assert one.left == 120
    one.images(0, 10)  # another session
    assert (one.rate, one.done, one.total) == (None, 0, 10)


def lines(said):
    return [json.loads(line) for line in said.splitlines()]


def test_elsewhere_than_on_a_terminal_each_step_is_a_line_of_json_that_names_no_file(capsys):
    with Progress(as_json=True) as progress:
        progress.phase("north", "computing local totals")
        progress.bad_row("north", 7, ImageError("/data/meier.nii.gz: expected an image, got 12"))
        for done in range(6):
            progress.images("north", done, 5)
        progress("north", "done")
    said = capsys.readouterr().err
    told = lines(said)
    assert all(line.pop("seconds") >= 0 and line.pop("who") == "north" for line in told)
    assert told[:3] == [
        {"says": "computing local totals"},
        {"line": 7, "bad": "ImageError"},
        {"done": 0, "total": 5, "rate": None, "left": None},
    ]
    assert [line.get("done") for line in told[3:]] == [5, None]  # those between came within a second
    assert "meier" not in said
    assert "expected" not in said


def test_images_are_told_once_a_second(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("voxring.cli.progress.time.monotonic", lambda: now[0])
    progress = Progress(as_json=True)
    for done in range(1, 31):
        now[0] += 0.3
        progress.images("north", done, 1000)
    assert LINE_SECONDS == 1
    told = [line["done"] for line in lines(capsys.readouterr().err)]
    assert told == list(range(1, 31, 4))


def test_quiet_says_nothing_and_people_get_text(capsys):
    for quiet in (True, False):
        with Progress(quiet=quiet) as progress:
            progress("demo", "reading")
            progress.images("demo", 1, 2)
    assert [line[10:] for line in capsys.readouterr().err.splitlines()] == ["demo: reading", "demo: image 1 of 2"]


def test_the_table_shows_phase_images_pace_and_peers():
    from rich.console import Console

    progress = Progress()
    progress.phase("north", "computing [b]local[/b] totals")
    one = progress.standings["north"]
    now = [0.0]
    one.clock = lambda: now[0]
    for done in range(3):
        one.images(done, 125)
        now[0] += 30
    progress.bad_row("north", 3, ImageError("x.npy: truncated"))
    progress.hears("north", "researcher")
    one.heard["south"] = time.monotonic() - 20
    console = Console(width=200, record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    console.print(progress._table())
    console.file.close()
    shown = " ".join(console.export_text().split())
    assert shown == (
        "north computing [b]local[/b] totals 2/125 images, 1 bad 2.0/min 1:01:30 left heard: researcher, south (20 s)"
    )


# The page.


@contextmanager
def serving():
    progress = Progress(quiet=True)
    progress.phase("north", 'waiting "<b>')
    progress("north", "status at somewhere")
    progress.images("north", 0, 4)
    progress.hears("north", "researcher")
    with StatusServer(0, lambda: progress.snapshot("north")) as server:
        yield server, progress


def ask(server, path="/", method="GET", **headers):
    port = int(server.url.split(":")[2].strip("/"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def test_the_status_is_a_page_json_and_metrics():
    with serving() as (server, progress):
        _, body = ask(server, "/status.json")
        told = json.loads(body)
        assert told.pop("seconds") >= 0
        assert told["heard"].pop("researcher") >= 0
        images = {"done": 0, "total": 4, "bad": 0}
        assert told == {"party": "north", "phase": 'waiting "<b>', "images": images, "rate": None, "left": None} | {
            "heard": {}
        }
        answer, page = ask(server)
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "<td>0 of 4</td>" in page
        assert "waiting &quot;&lt;b&gt;" in page
        assert "<script" not in page
        progress.images("north", 1, 4)
        progress.bad_row("north", 2, ImageError("meier.npy"))
        answer, metrics = ask(server, "/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        samples = [line for line in metrics.splitlines() if not line.startswith("#")]
        assert samples[:4] == [
            'voxring_phase{phase="waiting \\"<b>"} 1',
            "voxring_images 4",
            "voxring_images_done 1",
            "voxring_images_bad 1",
        ]
        assert any(line.startswith('voxring_heard_seconds{peer="researcher"} ') for line in samples)
        assert len([line for line in metrics.splitlines() if line.startswith("# TYPE ")]) == len(samples)
        assert "meier" not in metrics + ask(server)[1] + ask(server, "/status.json")[1]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}", ""]
)
def test_a_page_under_another_name_sees_nothing(host):
    with serving() as (server, _):
        port = server.url.split(":")[2].strip("/")
        answer, body = ask(server, "/status.json", Host=host.format(port=port))
        assert (answer.status, "north" in body) == (421, False)
        assert ask(server, "/status.json", Host=f"localhost:{port}")[0].status == 200


def raw(server, request):
    port = int(server.url.split(":")[2].strip("/"))
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(4096):
            answer += part
        return answer


def test_no_host_or_two_are_refused():
    with serving() as (server, _):
        port = server.url.split(":")[2].strip("/").encode()
        own = b"Host: 127.0.0.1:" + port + b"\r\n"
        assert b" 200 " in raw(server, b"GET / HTTP/1.1\r\n" + own + b"\r\n").splitlines()[0]
        for headers in (b"", own + own, own + b"Host: evil.example\r\n"):
            answer = raw(server, b"GET / HTTP/1.1\r\n" + headers + b"\r\n")
            assert b" 421 " in answer.splitlines()[0]
            assert b"north" not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "DELETE", "OPTIONS", "TRACE"])
def test_only_get_is_answered(method):
    with serving() as (server, _):
        answer, body = ask(server, "/status.json", method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET")
        assert "north" not in body


@pytest.mark.parametrize("path", ["/x", "/../etc/passwd", "/status.json?x", "/metrics/"])
def test_nothing_else_is_there(path):
    with serving() as (server, _):
        assert ask(server, path)[0].status == 404


def test_somebody_slow_or_broken_keeps_neither_others_nor_the_end_for_long(monkeypatch, capsys):
    monkeypatch.setattr("voxring.cli.status.REQUEST_SECONDS", 0.3)
    with serving() as (server, _), ThreadPoolExecutor(1) as pool:
        port = int(server.url.split(":")[2].strip("/"))
        stop = threading.Event()

        def drip(connection):
            with contextlib.suppress(OSError):  # hung up
                while not stop.wait(0.05):
                    connection.sendall(b"G")

        with socket.create_connection(("127.0.0.1", port)) as slow:
            dripping = pool.submit(drip, slow)
            time.sleep(0.1)
            try:
                assert ask(server)[0].status == 200
                dripping.result(10)
            finally:
                stop.set()
        assert b"refused" in raw(server, b"nonsense\r\n\r\n")
        assert ask(server)[0].status == 200
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ConnectionRefusedError):
        ask(server)


def test_the_status_listens_on_this_machine_alone_and_says_when_it_cannot():
    with serving() as (server, _):
        assert server._server.server_address[0] == "127.0.0.1"
        port = server._server.server_port
        with pytest.raises(click.BadParameter, match="choose another port"):
            StatusServer(port, dict)


# A real party that is stopped, and goes on.

IMAGES = 12


def hospital(folder):
    """Twelve volumes that take a while, and a study of which this is one party of three."""
    rng = np.random.default_rng(5)
    with (folder / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "ground_truth"])
        for i in range(IMAGES):
            np.save(folder / f"meier{i}.npy", rng.integers(-900, 900, (48, 192, 192)).astype(np.int16))
            np.save(folder / f"truth{i}.npy", rng.integers(0, 2, (48, 192, 192)).astype(np.uint8))
            writer.writerow([f"meier{i}.npy", f"truth{i}.npy"])
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in "abc"]
    tables = "".join(
        f'[[party]]\nname = "{name}"\naddress = "tcp://127.0.0.1:{one.getsockname()[1]}"\n'
        for name, one in zip("abc", sockets, strict=True)
    )
    for one in sockets:
        one.close()
    (folder / "study.toml").write_text(f'name = "t"\nclasses = {{ x = 1 }}\n[window]\nsize = 5\n{tables}')
    return load_study(folder / "study.toml")


OTHERS = LocalTotals({"x": ClassTotals(voxels=100, sum=0, total=0, squares=0, patients=9)})


@contextmanager
def study_runs(study, folder, *options):
    """Party a as a process; b, c and the researcher as threads; yields the process and the researcher's future."""
    command = [sys.executable, "-m", "voxring", "party", folder / "study.toml", "--name", "a", "--insecure"]
    command += ["--manifest", folder / "m.csv", "--state", folder / "a", "--workers", "1", "--approve", study.digest]
    more = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, "CUDA_VISIBLE_DEVICES": ""}}
    # A file takes what it says: nobody has to read a pipe.
    with (folder / "said").open("w") as said, ThreadPoolExecutor(3) as pool:
        process = subprocess.Popen([*command, *options], stderr=said, **more)
        for name in "bc":
            pool.submit(run_party, study, name, lambda: OTHERS, state=folder / name, insecure=True, timeout=40)
        research = pool.submit(run_researcher, study, insecure=True, timeout=40)
        try:
            yield process, research
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def until(what, seconds=40):
    ends = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < ends
        time.sleep(0.02)
    return found


def test_a_party_that_is_terminated_while_it_computes_goes_on_where_it_was(tmp_path):
    study = hospital(tmp_path)
    journal = tmp_path / "a" / "journals"

    def kept():
        return [path.read_bytes().count(b"\n") - 1 for path in journal.glob("*.journal")]

    with study_runs(study, tmp_path, "--status", "0") as (process, research):
        until(lambda: sum(kept()) >= 2)
        told = lines((tmp_path / "said").read_text())
        (url,) = [line["says"].split()[-1] for line in told if "status at" in line.get("says", "")]
        connection = http.client.HTTPConnection(url.split("/")[2], timeout=10)
        connection.request("GET", "/status.json")
        status = json.loads(connection.getresponse().read())
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # impatience changes nothing
        assert process.wait(30) == 143
        with pytest.raises(PeerError, match="a ended the session: it stopped while computing its local totals"):
            research.result(40)
    assert status["phase"] == "computing local totals"
    assert 2 <= status["images"]["done"] < status["images"]["total"] == IMAGES
    assert "researcher" in status["heard"]
    said = (tmp_path / "said").read_text()
    *told, last = said.splitlines()
    assert last == "voxring: stopped; the images done so far are in the journal: give the same command to go on"
    lines("\n".join(told))
    assert "meier" not in said
    assert "Traceback" not in said
    (before,) = kept()
    assert 2 <= before < IMAGES

    with study_runs(study, tmp_path, "--json") as (process, research):
        answer, _ = research.result(60)
        assert process.wait(30) == 0
    told = lines((tmp_path / "said").read_text())
    assert next(line["done"] for line in told if line.get("done")) == before
    assert any(line.get("says") == f"{IMAGES} images used, {before} of them computed earlier" for line in told)
    assert any(line.get("says", "").endswith(f"computed on {device_name('auto')}") for line in told)
    mine = party_totals(tmp_path / "m.csv", study)
    assert answer == pooled(mine + OTHERS + OTHERS, study)
    assert threading.active_count() < 20


# The page for operators.

PAGE = (Path(__file__).parent.parent / "docs/operators.md").read_text(encoding="utf-8")


def test_the_operators_page_names_commands_and_options_that_exist():
    from voxring.cli import voxring

    commands = [line for line in PAGE.splitlines() if line.startswith("voxring ")]
    commands += [line.split("=/opt/voxring/bin/")[1] for line in PAGE.splitlines() if line.startswith("ExecStart")]
    assert len(commands) >= 9
    for line in commands:
        _, *words = shlex.split(line, comments=True)
        command = voxring
        while isinstance(command, click.Group):
            name = words.pop(0) if words[0] in command.list_commands(None) else "run"
            command = command.get_command(None, name)
            assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_operators_page_says_what_every_exit_code_means():
    from voxring.cli import EXIT_CODES

    codes = dict(re.findall(r"^  (\d+) +(.+)$", EXIT_CODES, re.MULTILINE))
    told = dict(re.findall(r"^\| (\d+) \| (.+?) \|", PAGE, re.MULTILINE))
    assert codes.keys() == told.keys()
    for code, meaning in told.items():
        assert meaning.split(",")[0] in codes[code]
