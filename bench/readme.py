"""Write the tables that pages quote from bench/results: python bench/readme.py [--check].

README's of CPU timings, and the counted costs of the CUDA kernels in kernels/cuda/PROOF.md.
"""

import json
import sys
from pathlib import Path

import gpu_cost

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


def quoted(page, made):
    """The page with a table between its markers."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + made + END + after


def main():
    results = ROOT / "bench" / "results"
    pages = ((ROOT / "README.md", "cpu", table), (ROOT / "kernels" / "cuda" / "PROOF.md", "gpu_cost", gpu_cost.table))
    for page, name, table_of in pages:
        made = quoted(page, table_of(json.loads((results / f"{name}.json").read_text(encoding="utf-8"))))
        if "--check" not in sys.argv:
            page.write_text(made, encoding="utf-8")
        elif made != page.read_text(encoding="utf-8"):
            sys.exit(f"{page.name} does not quote bench/results/{name}.json: run python bench/readme.py")


if __name__ == "__main__":
    main()
