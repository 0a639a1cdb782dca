"""CPU seconds of a warm command up to its first voxel, and of compiling: python bench/start.py [--runs N] [--cold].

Runs a study of three parties with sealed links, again and again, each party a process of ``voxring party`` with one
image as .nii.gz, int16, and a window of 5³. Each says how much CPU it has used when the first kernel is called, and
when that returns. The first session fills the caches of modules and kernels, and does not count. With --against SRC, a
source tree of another version takes turns with this one. With --cold, instead, each run is one process that reduces
the image with no kernel compiled yet.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import nibabel
import numpy as np

SOURCE = Path(__file__).parents[1] / "src"
PARTIES = ("a", "b", "c")
SHAPE = (32, 256, 256)

# `voxring`, with the first call of `reduce` watched. It imports nothing that the command would not import.
WATCHED = """
import sys, time
from importlib.machinery import PathFinder

class Watch:
    def find_spec(self, name, path, target=None):
        if name != "voxring.kernels.cpu":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            reduce = module.reduce

            def watched(*arguments, **options):
                before = time.process_time()
                answer = reduce(*arguments, **options)
                print("CPU", before, time.process_time(), file=sys.stderr)
                module.reduce = reduce
                return answer

            module.reduce = watched

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Watch())
from voxring.cli import main
sys.exit(main())
"""

COLD = """
import time
import numpy as np
from voxring.kernels import cpu
image, labels = np.load("image.npy"), np.load("truth.npy")
start = time.process_time()
cpu.reduce(image, labels, [1], (5, 5, 5), "reflect")
print(time.process_time() - start)
"""


class Version:
    """A source tree, with caches of its own; its modules are compiled once, as those of an installed package are."""

    def __init__(self, source, folder):
        caches = folder / str(source).replace("/", "-")
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.folder = folder
        self.environment = kept | {
            "PYTHONPATH": str(source),
            "NUMBA_CACHE_DIR": str(caches / "kernels"),
            "PYTHONPYCACHEPREFIX": str(caches / "modules"),
        }

    def start(self, code, *arguments, **environment):
        """Run Python code."""
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def voxring(self, *arguments):
        """What a command of voxring prints."""
        return finished(self.start(WATCHED, *arguments))[0]


def finished(process):
    """What a process has printed, on stdout and on stderr."""
    printed = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


def free_ports():
    """A port for each party, free when it was looked for."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in PARTIES]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def make(folder, version):
    """A study and its images: noise of 5 bits, and a ground truth over 40% in blocks."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 32, SHAPE).astype(np.int16)
    truth = (rng.random([n // 8 for n in SHAPE]) < 0.4).repeat(8, 0).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    for name, array in (("image", image), ("truth", truth)):
        np.save(folder / f"{name}.npy", array)
        nibabel.save(nibabel.Nifti1Image(array.transpose(), np.eye(4)), folder / f"{name}.nii.gz")
    (folder / "manifest.csv").write_text("image,ground_truth\nimage.nii.gz,truth.nii.gz\n")
    keys = {name: version.voxring("keys", "new", f"{name}.key").splitlines()[0] for name in (*PARTIES, "researcher")}
    parties = "".join(
        f'[[party]]\nname = "{name}"\naddress = "tls+tcp://127.0.0.1:{port}"\n{keys[name]}\n'
        for name, port in zip(PARTIES, free_ports(), strict=True)
    )
    (folder / "study.toml").write_text(
        'name = "start"\nclasses = { lesion = 1 }\n[window]\nsize = 5\n[standardise]\nmethod = "rescale"\n'
        f"range = [-1000, 3000]\n[privacy]\nmin_patients = 1\n{parties}[researcher]\n{keys['researcher']}\n"
    )


def session(version):
    """(seconds at the first call, seconds when it returns) of each party."""
    digest = json.loads(version.voxring("study", "check", "study.toml", "--json"))["digest"]
    with tempfile.TemporaryDirectory() as state:
        common = ["study.toml", "--quiet"]
        of_all = [*common, "--manifest", "manifest.csv", "--approve", digest]
        parties = [
            version.start(WATCHED, "party", *of_all, "--name", of, "--key", f"{of}.key", "--state", f"{state}/{of}")
            for of in PARTIES
        ]
        version.voxring("research", *common, "--out", f"{state}/result.json", "--key", "researcher.key")
        said = [finished(party)[1] for party in parties]
    lines = [line.split()[1:] for text in said for line in text.splitlines() if line.startswith("CPU")]
    assert len(lines) == len(PARTIES), said
    return [tuple(map(float, line)) for line in lines]


def cold(version):
    """CPU seconds of the first call of all."""
    with tempfile.TemporaryDirectory() as cache:
        return float(finished(version.start(COLD, NUMBA_CACHE_DIR=cache))[0])


def spread(values):
    return f"{statistics.median(values):.3f} s ({min(values):.3f} … {max(values):.3f}, of {len(values)})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4, help="sessions, of three processes each")
    parser.add_argument("--cold", action="store_true", help="measure compiling instead")
    parser.add_argument("--against", type=Path, metavar="SRC", help="another version's source tree")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        versions = {"this version": Version(SOURCE, folder)}
        if options.against:
            versions["the other"] = Version(options.against.resolve(), folder)
        make(folder, versions["this version"])
        seen = {which: [] for which in versions}
        if not options.cold:
            for version in versions.values():
                session(version)
        for _ in range(options.runs):
            for which, version in versions.items():
                seen[which] += [cold(version)] if options.cold else session(version)
    for which, seconds in seen.items():
        if options.cold:
            print(f"{which}: the first call, compiled {spread(seconds)}")
        else:
            before, after = zip(*seconds, strict=True)
            print(f"{which}: at the first call of a kernel {spread(before)}, when it returns {spread(after)}")


if __name__ == "__main__":
    main()
