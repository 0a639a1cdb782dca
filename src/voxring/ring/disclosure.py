"""Who learns what, in sentences, before anything leaves a hospital.

What a coalition C learns beyond the outputs follows one rule: the sums of the honest parties' values over each
connected component of the honest members in the union of the rings, where an edge joins ring neighbours. A component
that holds the honest researcher is learned only together with the total. The researcher counts as a member with value
0, and as one more possible colluder.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import exp

from voxring.landmarks import inner_landmarks
from voxring.privacy import COUNTED, cost, cost_of_runs, decimal, honest, part, released, voxels_of_patient
from voxring.privacy.intervals import deviations
from voxring.ring.coin import COIN_BYTES
from voxring.ring.order import RESEARCHER, Ring, connectivity, rings_of
from voxring.statistics import Block, layout
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
            near = _neighbours(rings, name) & set(honest)
            edge += near - reached
            reached |= near
        found.append(frozenset(reached))
        honest = [name for name in honest if name not in reached]
    return found


def leaking_coalition(rings: Sequence[Ring], size: int) -> tuple[frozenset[str], str] | None:
    """Return a coalition of that size that learns one party's own numbers from the rings, and whose; None if none does.

    It stands round a party with the fewest neighbours and leaves somebody else honest. Parties come before the
    researcher, who knows more already.

    Examples
    --------
    >>> ring = Ring(("researcher", "a", "b", "c", "d"))
    >>> coalition, of = leaking_coalition([ring], 2)
    >>> sorted(coalition), of
    (['a', 'c'], 'b')
    >>> leaking_coalition([ring], 1) is leaking_coalition([ring], 4) is None
    True
    """
    members = [*rings[0].members[1:], RESEARCHER]
    round_it = {name: _neighbours(rings, name) for name in members if name != RESEARCHER}
    of = min(round_it, key=lambda name: (len(round_it[name]), RESEARCHER in round_it[name]))
    if not len(round_it[of]) <= size <= len(members) - 2:
        return None
    others = [name for name in members if name != of and name not in round_it[of]]
    coalition = round_it[of] | set(others[: size - len(round_it[of])])
    return frozenset(coalition), of


def _neighbours(rings: Sequence[Ring], name: str) -> set[str]:
    return {neighbour for ring in rings for neighbour in (ring.successor(name), ring.predecessor(name))}


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
        *_scale_sentences(study),
        *_additive_sentences(study),
        *_logistic_sentences(study),
        *noise_sentences(study),
        "A party with images that cannot be used ends without sending a number, unless its operator runs it with "
        "--skip-bad: then "
        + (
            "the researcher learns how many images that party left out, and the result says it."
            if study.differential_privacy is None
            else "it goes on without them and tells nobody how many, as no noise would hide that."
        ),
        "Every ring message is uniform in [0, N) whatever the images hold: by itself it tells its receiver nothing.",
    ]
    sentences += _ring_sentences(study) if study.party else ["The study names no parties yet: no ring can be checked."]
    sentences.append(
        "The results themselves tell something: a party can subtract its own numbers and learn the others' total, and "
        "two runs over almost the same images tell the difference, so a party refuses one that its ledger shows to be "
        "too close to an earlier one."
        if study.differential_privacy is None
        else "The results themselves tell something, as little of one patient as epsilon says: a party can subtract "
        "its own numbers and learn the others' noisy total, and several runs tell as much more as they spend together."
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


def _scale_sentences(study: Study) -> list[str]:
    if not study.agrees:
        return []
    return [
        "Before that, the parties agree on a standard scale of intensities: the researcher learns how many images and "
        f"patients there are in all, and the sum over all images of {_count(inner_landmarks(study), 'landmark')}, each "
        "a position between 0 and 1; each party learns their means. They stand in the result."
    ]


def noise_sentences(study: Study) -> list[str]:
    """Say what differential privacy the study has; nothing if it has none.

    Examples
    --------
    >>> study = Study.of(
    ...     name="t", classes={"a": 1}, privacy={"voxels_per_patient": 500}, differential_privacy={"epsilon": 2.0}
    ... )
    >>> noise_sentences(study)[3].partition(",")[0]
    'Noise in class a'
    """
    if study.differential_privacy is None:
        return []
    table, budget, t, numbers = study.differential_privacy, cost(study), study.privacy.collusion, released(study)
    factor = exp(min(table.epsilon, 700))
    times = f"{factor:.2f}" if factor < 100 else f"{factor:.2g}"
    parts = len(numbers) * len(study.classes)
    blocks = [_block_of_noise(block) for block in layout(study)]
    each = f"epsilon {float(part(study)):.3g}" if table.mechanism == "laplace" else f"rho {float(part(study)):.3g}"
    counted = ", ".join(f"{voxels_of_patient(study, name):,} of {name}" for name in study.classes)
    return [
        f"Everything that is released is noisy ({table.mechanism}): differential privacy with {budget}. Whatever "
        f"somebody concludes from the results becomes at most {times} times as likely or as unlikely by one patient "
        "being in the study"
        + (f", but for a chance of {decimal(budget.delta)}" if budget.delta else "")
        + ". A patient is all images that one hospital lists under that patient; without patients in a manifest, one "
        "image.",
        f"Each party adds a share of the noise, so that nobody knows it; shares are so large that those of "
        f"{_count(honest(study), 'party', 'parties')} are enough. So it holds against the researcher, everybody who "
        f"reads the result, and {_count(t, 'member')} who put{'s' * (t == 1)} all they saw together, their own "
        "shares included (privacy.collusion). It does not hold against more.",
        f"A patient counts as at most {counted} voxels (privacy.voxels_per_patient); if there are more, each weighs "
        f"less. The budget is split evenly over {parts} {'releases' if blocks else 'numbers'}, {', '.join(numbers)} "
        f"of each class: each spends {each}."
        + (f" Of the additive statistics, {'; '.join(blocks)}." if blocks else ""),
        *(_noise_of_class(study, name) for name in study.classes),
        "Whether a class is withheld follows from its noisy counts. If noise leaves no possible mean or deviation, the "
        "class is withheld, too.",
        f"Noise is drawn anew in every session. Each in which a party gave a share is charged in full to its ledger, "
        f"also if it failed; a party gives shares in {_count(table.runs, 'session')} of this study at most "
        f"(differential_privacy.runs), which spends {cost_of_runs(study)} in all, and no more than its hospital's own "
        "budget allows.",
        "Not hidden by noise: how long a party computes, and that it ends with an error.",
    ]


def _noise_of_class(study: Study, name: str) -> str:
    off = deviations(study, name)
    of = {quantity: _about(value) for quantity, value in off.items()}
    return (
        f"Noise in class {name}, as standard deviations: {of['voxels']} voxels in n, {of['patients']} in the patient "
        f"count, {of['sum']} in the sum of local means and {of['sdsum']} in the sum of squared deviations. A class of "
        "ten times as many voxels as the first number has a mean that is off by about "
        f"{_about(off['sum'] / (10 * off['voxels']))}, besides what n is off."
    )


def _block_of_noise(block: Block) -> str:
    if block.name in COUNTED:
        return f"the {block.size} counts of {block.name} have noise for the most that a patient adds to all together"
    return f"the {block.size} numbers of {block.name} share theirs evenly"


def _about(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _additive_sentences(study: Study) -> list[str]:
    blocks = layout(study)
    if not blocks:
        return []
    listed = ", ".join(f"{_WORDS[block.name]} ({_count(block.size, 'number')})" for block in blocks)
    return [f"The researcher also learns, of each released class over all parties together: {listed}."]


def _logistic_sentences(study: Study) -> list[str]:
    if study.logistic is None:
        return []
    return [
        "A logistic regression of the released classes is fitted in steps, at most "
        f"{study.logistic.steps}: at each the researcher sends weights to all parties and learns the gradient and the "
        "Hessian at these, summed over all voxels of all parties; the researcher learns the weights at the end.",
    ]


_WORDS = {
    "feature_sums": "the sum of each feature",
    "gram": "the sum of each product of two features",
    "powers": "sums of powers of the intensities",
    "histogram": "the histogram of the intensities",
    "glcm": "counts of neighbours' grey levels",
    "given": "how many voxels a model gave each class",
    "probabilities": "histograms of the probabilities that it gave",
    "promised": "sums of these in each bin",
}


def _ring_sentences(study: Study) -> list[str]:
    # Whatever the coin, the rings look the same but for who stands where.
    rings = rings_of(bytes(COIN_BYTES), study.parties, study.privacy.collusion)
    stands, most = connectivity(rings) - 1, len(study.party) - 1
    sentences = [
        f"Messages go round {_count(len(rings), 'ring')}. Who stands where follows from a coin that the parties draw "
        "together before the first sum and keep, so that every run of this study has the same rings.",
        (
            "No single member, the researcher included, learns anything from all it saw"
            if stands == 1
            else f"No {stands} members, the researcher included, that put together all they saw learn anything"
        )
        + f" beyond the results and what these imply: privacy.collusion asks for {study.privacy.collusion}, and it "
        f"takes {stands + 1} to part the others (computed for these rings).",
    ]
    if stands < most:
        sentences.append(
            f"{stands + 1} that stand round a party in the rings learn that party's own numbers; a coalition that "
            "parts the others learns the sum over each part. Who stands there, the coin decides. The largest threshold "
            f"that {len(study.party)} parties can ask for is {most}."
        )
    return sentences


def _count(number: int, what: str, several: str = "") -> str:
    return f"one {what}" if number == 1 else f"{number} {several or f'{what}s'}"
