"""Who learns what, in sentences, before anything leaves a hospital.

What a coalition C learns beyond the outputs follows one rule: the sums of the honest parties' values over each
connected component of the honest members in the union of the rings, where an edge joins ring neighbours. The
researcher counts as a member with value 0, and as one more possible colluder.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

from voxring.ring.order import RESEARCHER, Ring, rings_of
from voxring.study import Study


def components(rings: Sequence[Ring], coalition: Collection[str]) -> list[frozenset[str]]:
    """Return the connected components of the honest members: the coalition learns each one's sum, and no more.

    Examples
    --------
    >>> ring = Ring(("researcher", "a", "b", "c"))
    >>> [sorted(c) for c in components([ring], {"a", "c"})]
    [['b'], ['researcher']]
    """
    honest = sorted(set(rings[0].members) - set(coalition))
    found: list[frozenset[str]] = []
    while honest:
        reached, edge = {honest[0]}, [honest[0]]
        while edge:
            name = edge.pop()
            near = {neighbour for ring in rings for neighbour in (ring.successor(name), ring.predecessor(name))}
            edge += near & set(honest) - reached
            reached |= near & set(honest)
        found.append(frozenset(reached))
        honest = [name for name in honest if name not in reached]
    return found


def isolated(rings: Sequence[Ring], size: int) -> dict[str, list[tuple[str, ...]]]:
    """Return, for each party, the coalitions of a size that learn that party's own numbers from the ring."""
    found: dict[str, list[tuple[str, ...]]] = {name: [] for name in rings[0].members if name != RESEARCHER}
    for coalition in combinations(rings[0].members, size):
        if RESEARCHER in coalition and len(found) - len(coalition) + 1 < 2:
            continue  # one honest party is left: the results that the researcher is meant to learn tell its numbers
        for component in components(rings, coalition):
            alone = component - {RESEARCHER}
            if len(alone) == 1:
                found[next(iter(alone))].append(coalition)
    return found


def disclosure(study: Study) -> list[str]:
    """Say who learns what when this study runs.

    Raises
    ------
    StudyError
        The study names parties, but fewer than three.

    Examples
    --------
    >>> study = Study.of(name="liver", classes={"lesion": 1}, party=[{"name": n} for n in "abc"])
    >>> disclosure(study)[1]
    'Each party learns n and the mean μ of each released class, and which classes are withheld.'
    """
    privacy = study.privacy
    sentences = [
        "The researcher learns, for each released class, the voxel count n, how many patients have it, sum and sdsum "
        "over all parties together; for a withheld class only n and the patient count, which the decision needs.",
        "Each party learns n and the mean μ of each released class, and which classes are withheld.",
        "Every ring message is uniform in [0, N) whatever the images hold: by itself it tells its receiver nothing.",
    ]
    sentences += _ring_sentences(study) if study.party else ["The study names no parties yet: no ring can be checked."]
    sentences.append(
        "The results themselves tell something: a party can subtract its own numbers and learn the others' total, and "
        "two runs over almost the same images tell the difference."
    )
    if privacy.min_voxels <= 2:
        sentences.append(
            f"privacy.min_voxels is {privacy.min_voxels}: no protection. A class may be released although it has only "
            "a few voxels in all."
        )
    else:
        sentences.append(f"A class with fewer than {privacy.min_voxels} voxels in all is withheld; parties check it.")
    if privacy.min_patients <= 1:
        sentences.append(
            f"privacy.min_patients is {privacy.min_patients}: no protection. A class may be released although all of "
            "it comes from one patient."
        )
    else:
        sentences.append(
            f"A class with fewer than {privacy.min_patients} patients in all is withheld; the researcher checks it, "
            "the parties cannot."
        )
    sentences.append("All of this holds as long as every process follows the protocol (semi-honest model).")
    return sentences


def _ring_sentences(study: Study) -> list[str]:
    rings = rings_of(bytes.fromhex(study.digest), study.parties)
    circles = "; ".join(" → ".join((*ring.members, ring.master)) for ring in rings)
    sentences = [
        f"Messages go round {circles}. The order follows from the study, whose author could have tried several.",
        "Any single one of them, the researcher included, learns nothing beyond the results.",
    ]
    for name, pairs in isolated(rings, 2).items():
        if pairs:
            who = " or ".join(f"{first} and {second}" for first, second in pairs)
            sentences.append(f"Two that put together what they saw learn the numbers of {name}: {who}.")
    sentences.append(
        "Three or more that do so learn the sum over every stretch of the ring between them; a stretch of one party is "
        "that party's numbers."
    )
    return sentences
