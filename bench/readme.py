"""Write README's table of CPU timings from bench/results/cpu.json: python bench/readme.py [--check]."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- bench: begin -->\n", "<!-- bench: end -->\n"


def table(results):
    """The rows that README shows: ours, the best peer, scipy, and the streaming limit."""
    lines = [
        "| workload | voxring, ns a voxel | best peer | scipy f32 | against one masked pass | speed of 2 threads |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        one, two = row["ns"]["1"], row["ns"]["2"]
        us = one["voxring"]
        peers = {name: one[name] for name in row["error"]}
        best = min(peers, key=peers.get)
        cells = [
            row["workload"],
            f"{us:.3f}",
            f"{best}: {peers[best] / us:.1f}× slower",
            f"{one['scipy f32'] / us:.0f}× slower",
            f"{us / one['masked pass']:.1f}×",
            f"{us / two['voxring']:.2f}×",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    said = "One thread unless said; medians of one interleaved run."
    lines.append(f"\n{said} {machine['processor']}, {machine['cores']} cores; {versions}.")
    return "\n".join(lines) + "\n"


def main():
    results = json.loads((ROOT / "bench" / "results" / "cpu.json").read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = before + BEGIN + table(results) + END + after
    if "--check" in sys.argv:
        sys.exit("README.md does not quote bench/results/cpu.json: run python bench/readme.py" if made != text else 0)
    readme.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
