"""Machine code on disk: processes that start together, versions, and what is lost when they collide."""

import fcntl
import os
import subprocess
import sys

from voxring.kernels.cpu import kept, labels
from voxring.kernels.cpu.kept import Files, Kept, turn

SCRIPT = """
import sys
import numpy as np
from voxring.kernels.cpu.labels import class_numbers, number_classes
for name in sys.argv[1:]:
    assert class_numbers(np.array([7, 1, 7], name), [7]).tolist() == [1, 0, 1]
misses = sum(number_classes.stats.cache_misses.values())
# What compiles is not imported for code that is there.
assert misses or not {"numba.np.arraymath", "scipy.linalg"} & set(sys.modules)
print(misses)
"""


def started(folder, *types):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *types],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def compiled(process):
    answer, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return int(answer)


def test_processes_that_start_together_share_an_empty_folder_and_compile_once(tmp_path):
    """Two of each type: all are right, together they compile each type once, and nothing is left to later ones."""
    together = [started(tmp_path, kind) for kind in ("uint8", "int16", "uint8", "int16")]
    assert sum(compiled(process) for process in together) == 2
    assert compiled(started(tmp_path, "uint8", "int16")) == 0


def test_code_is_never_found_under_the_types_of_another(tmp_path, monkeypatch):
    """Two processes save at once: both have read the index before either wrote, and the second is the first to end."""
    mine, others = Files(str(tmp_path), "kernel"), Files(str(tmp_path), "kernel")
    write = mine._save_data

    def late(name, data):
        others.save("b", "code of b")
        write(name, data)

    with monkeypatch.context() as patch:
        patch.setattr(mine, "_load_index", dict)
        patch.setattr(others, "_load_index", dict)
        patch.setattr(mine, "_save_data", late)
        mine.save("a", "code of a")
    for key in "ab":
        assert others.load(key) in (f"code of {key}", None)


def test_what_is_kept_is_found_until_the_version_changes_and_then_goes(tmp_path, monkeypatch):
    files = Files(str(tmp_path), "kernel")
    files.save("a", "code of a")
    files.save("b", "code of b")
    assert [files.load(key) for key in "abc"] == ["code of a", "code of b", None]
    monkeypatch.setattr(kept, "SOURCES", "changed")
    changed = Files(str(tmp_path), "kernel")
    assert [changed.load(key) for key in "ab"] == [None, None]
    changed.save("a", "new code of a")
    assert (changed.load("a"), changed.load("b"), files.load("a")) == ("new code of a", None, None)
    assert len(list(tmp_path.glob("*.nbc"))) == 1


def test_a_process_that_hangs_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "PATIENCE", 0.02)
    with turn(tmp_path / "lock"):
        assert turn(tmp_path / "lock") is None
    with turn(tmp_path / "lock") as mine:
        assert mine is not None


def test_where_nothing_can_be_locked_every_process_compiles(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert turn(tmp_path / "file" / "lock") is None

    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert turn(tmp_path / "folder" / "lock") is None


def test_the_lock_is_free_again_once_code_was_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(Kept, "_look_up", lambda *_: None)
    monkeypatch.setattr(kept.FunctionCache, "save_overload", lambda *_: None)
    monkeypatch.setattr(kept, "PATIENCE", 0.0)
    cache = Kept(labels.number_classes.py_func)
    assert cache.load_overload("types", None) is None
    (lock,) = tmp_path.rglob("*.lock")
    assert turn(lock) is None
    assert cache.load_overload("other types", None) is None  # as after code that did not compile
    cache.save_overload("types", None)
    with turn(lock) as mine:
        assert mine is not None
