"""Write the tables that pages quote from bench/results: python bench/readme.py [--check].

README's of CPU timings, of maps, of new images and of secure sums, and the counted costs of the CUDA kernels in
kernels/cuda/PROOF.md.
"""

import json
import sys
from pathlib import Path

import gpu_cost

ROOT = Path(__file__).parent.parent


def table(results):
    """The rows that README shows: ours, the best peer with its error, scipy, and the limit of the ground truth."""
    lines = [
        "| workload | voxring, ns a voxel | best peer | error | scipy f32 | against the limit | speed of 2 threads |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        one, two = row["ns"]["1"], row["ns"]["2"]
        us = one["voxring"]
        peers = {name: one[name] for name in row["error"]}
        best = min(peers, key=peers.get)
        limit = limit_of(row["workload"])
        cells = [
            row["workload"],
            f"{us:.3f}",
            f"{best}: {peers[best] / us:.1f}× slower",
            f"{row['error'][best]:.0e}" if row["error"][best] else "0",
            f"{one['scipy f32'] / us:.0f}× slower",
            f"{us / one[limit]:.1f}× {limit}",
            f"{us / two['voxring']:.2f}×",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + said(results["machine"])


def limit_of(workload):
    """What no program can beat: to read what must be read."""
    kind = workload.split(", ")[-1]
    return {"full": "plain read", "lesions": "mask alone", "lesion": "mask alone", "specks": "mask alone"}.get(
        kind, "masked pass"
    )


def maps_table(results):
    """The rows of maps that README shows."""
    lines = [
        "| float32 map | voxring, ns a voxel | OpenCV | scipy f32 | against one read and write | speed of 2 threads |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        one, two = row["ns"]["1"], row["ns"]["2"]
        us = one["voxring"]
        cells = [
            row["workload"],
            f"{us:.3f}",
            f"{one['OpenCV box'] / us:.1f}× slower",
            f"{one['scipy f32'] / us:.0f}× slower",
            f"{us / one['read and write']:.1f}×",
            f"{us / two['voxring']:.2f}×",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + said(results["machine"])


def classify_table(results):
    """How long labels of a new image take, against a segmenter with the same features and classifier."""
    lines = [
        "| classifier | threads | labels, ns a voxel | with probabilities | segmenter | its labels that are equal |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        labels, segmenter = row["labels"], row["segmenter"]
        cells = [
            row["classifier"],
            str(row["threads"]),
            f"{labels:.1f}",
            f"{row['and probabilities']:.1f}",
            f"{segmenter:.1f}: {segmenter / labels:.1f}× slower",
            f"{row['equal_on_scipys_features']:.4%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    what = f"{results['voxels']:,} voxels of int16, {results['features']} features, {results['classes']} classes; "
    return "\n".join(lines) + said(results["machine"], f"{what}medians of one interleaved run. ")


def said(machine, how="One thread unless said; medians of one interleaved run. "):
    """How, where and with what it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"\n\n{how}{machine['processor']}, {machine['cores']} cores; {versions}.\n"


def ring_table(results):
    """What a secure sum of a long vector costs, against plain sockets, one link and peers."""
    lines = ["| secure sum | measured |", "| --- | --- |"]
    for row in results["plain"]:
        plain, clear, sealed = (row[mode]["cpu_ns"] for mode in ("plain sockets", "clear", "sealed"))
        what = f"{row['parties']} parties, {row['slots']:,} slots of {row['bits']} bits, processor time of all"
        told = f"{sealed:.0f} ns a slot sealed, {clear:.0f} in the clear: {clear / plain:.2f}× plain sockets"
        lines.append(f"| {what} | {told}; sealed {sealed / clear:.2f}× clear |")
    for row in results["paced"]:
        what = f"{row['parties']} parties, {row['slots']:,} slots, links of 25 MB/s and 10 ms, sealed"
        lines.append(f"| {what} | {row['seconds'] / row['one_link_seconds']:.2f}× the time of one link |")
    for row in results["peers"]:
        ours = row["cpu"]["voxring, sealed"]
        peers = [f"{NAMES[name]} {cpu / ours:.0f}×" for name, cpu in row["cpu"].items() if name in NAMES]
        what = f"{row['parties']} parties, {row['slots']:,} slots: processor time against ours, sealed"
        lines.append(f"| {what} | {', '.join(peers)} |")
    for row in results["slots"]:
        if row["slots"] >= 10**6:
            beyond = f"{row['chunks_beyond_the_vector']:.0f} chunks beyond the vector"
            told = f"{row['cpu'] / row['slots'] * 1e9:.0f} ns a slot, memory {beyond}"
            lines.append(f"| {row['parties']} parties, {row['slots']:,} slots in the clear | {told} |")
    return "\n".join(lines) + said(results["machine"], "")


NAMES = {"mpyc": "MPyC", "tenseal": "TenSEAL BFV", "flower": "Flower SecAgg+"}


def quoted(text, mark, made):
    """The page with a table between its markers."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->\n"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return before + begin + made + end + after


def main():
    results = ROOT / "bench" / "results"
    readme, proof = ROOT / "README.md", ROOT / "kernels" / "cuda" / "PROOF.md"
    tables = (
        (readme, "bench", "cpu", table),
        (readme, "maps", "maps", maps_table),
        (readme, "classify", "classify", classify_table),
        (readme, "ring", "ring", ring_table),
        (proof, "bench", "gpu_cost", gpu_cost.table),
    )
    for page, mark, name, table_of in tables:
        if not (results / f"{name}.json").exists():
            print(f"bench/results/{name}.json was not measured: its table stays as it is")
            continue
        text = page.read_text(encoding="utf-8")
        made = quoted(text, mark, table_of(json.loads((results / f"{name}.json").read_text(encoding="utf-8"))))
        if "--check" not in sys.argv:
            page.write_text(made, encoding="utf-8")
        elif made != text:
            sys.exit(f"{page.name} does not quote bench/results/{name}.json: run python bench/readme.py")


if __name__ == "__main__":
    main()
