"""Fair timing on shared machines: everything in one run, in turn, medians."""

import argparse
import gc
import json
import math
import os
import platform
import statistics
import time

ROUNDS = 7
LEAST_SECONDS = 0.02


def interleaved(functions, *, rounds=ROUNDS, budget=60.0):
    """Time functions in turn, A B C A B C …, and return the median seconds of each.

    A sample repeats a quick function until it takes LEAST_SECONDS. After ``budget`` seconds no further round starts,
    but never before the third.
    """
    repeats = {}
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        function()
        repeats[name] = max(1, math.ceil(LEAST_SECONDS / max(time.perf_counter() - start, 1e-7)))
    samples = {name: [] for name in functions}
    began = time.perf_counter()
    gc.disable()
    try:
        for done in range(rounds):
            for name, function in functions.items():
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    function()
                samples[name].append((time.perf_counter() - start) / repeats[name])
            if time.perf_counter() - began > budget and done >= 2:
                break
    finally:
        gc.enable()
    return {name: statistics.median(times) for name, times in samples.items()}


def once(functions):
    """Seconds of one call of each, for what takes many seconds; each has been called before."""
    times = {}
    for name, function in functions.items():
        start = time.perf_counter()
        function()
        times[name] = time.perf_counter() - start
    return times


def measure_all(description, results, workloads, measure, show):
    """Measure workloads as the command line asks: each is a name and a function that makes it.

    ``measure`` makes a row of one, which ``show`` prints; all go to the file ``results``.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="only the quick peers")
    parser.add_argument("--only", default="", help="only workloads whose name holds this text; writes no file")
    options = parser.parse_args()
    rows = []
    results.parent.mkdir(exist_ok=True)
    for name, make in workloads:
        if options.only in name:
            rows.append(measure(make(), quick=options.quick))
            show(rows[-1])
        if not options.only:  # after each, so that a run cut short leaves what it measured
            results.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def machine():
    """Processor, cores and versions, as the tables state them."""
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
    versions = {"python": platform.python_version()}
    for package in ("numpy", "numba", "scipy", "cv2", "SimpleITK", "skimage", "torch"):
        try:
            module = __import__(package)
        except ModuleNotFoundError:
            continue
        version = getattr(module, "__version__", None) or module.Version.VersionString()
        versions[package] = str(version)
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "versions": versions}
