"""What README and the docstrings show is run."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import voxring
from voxring.cli.demo import make_demo
from voxring.net import PrivateKey
from voxring.study import parse_study

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
MODULES = sorted(m.name for m in pkgutil.walk_packages(voxring.__path__, "voxring.") if not m.name.endswith("__main__"))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_readmes_study_is_a_study():
    text, members, more = blocks("toml")
    assert parse_study(text).window.size == 7
    relay, party, researcher = members.split("\n\n")
    keys = iter([PrivateKey.new().public for _ in range(4)])
    parties = [party.replace("north", name) for name in ("north", "centre", "south")]
    tables = [re.sub("…", lambda _: next(keys), table) for table in (*parties, researcher)]
    asked = parse_study("\n".join([text, more]))
    assert [feature.label for feature in asked.feature] == ["mean-7", "gradient"]
    assert asked.statistics.gram
    whole = parse_study("\n".join([relay, text, *tables]))
    assert whole.relay == "tcp://relay.example:7000"
    assert len(set(whole.keys.values())) == 4


def test_readmes_python_runs(tmp_path, monkeypatch):
    make_demo(tmp_path)
    script = tmp_path / "readme.py"
    body = "".join(f"    {line}\n" if line else "\n" for line in "\n".join(blocks("python")).splitlines())
    script.write_text(f"if __name__ == '__main__':\n{body}", encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "right lung" in done.stdout


def test_readmes_simulate_runs(tmp_path):
    make_demo(tmp_path)
    (command,) = (block for block in blocks("sh") if "voxring simulate" in block)
    words = command.replace("\\\n", " ").split()
    assert words[0] == "voxring"
    done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "equal to pooled, bit for bit: yes" in done.stdout
    assert (tmp_path / "result.json").exists()


def test_readmes_commands_exist():
    from voxring.cli import voxring as group

    for name in set(re.findall(r"voxring ([a-z]+)", " ".join(blocks("sh")) + " ".join(re.findall(r"`(.*?)`", README)))):
        assert group.get_command(None, name) is not None, name


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_public_names_are_there_and_documented():
    for name in voxring.__all__:
        assert name == "__version__" or getattr(voxring, name).__doc__
    assert set(dir(voxring)) == set(voxring.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        voxring.nothing  # noqa: B018
