"""The disclosure sheet of a study: every message, who learns what from it, and why the modulus cannot wrap.

Plain data, made from the study alone, and from the tables and functions that the protocol itself runs on; `voxring.cli`
writes it down as Markdown, JSON or HTML.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import msgspec

from voxring.fixedpoint import modulus
from voxring.landmarks import inner_landmarks, landmark_bound
from voxring.privacy import (
    COUNTED,
    QUANTITIES,
    TAIL_BITS,
    noise_of,
    noises,
    noises_of_statistics,
    part,
    sensitivities,
    sensitivity,
)
from voxring.privacy.intervals import deviation, deviations_of_statistics, scale, scales
from voxring.ring.coin import COIN_BYTES
from voxring.ring.disclosure import disclosure, leaking_coalition
from voxring.ring.message import CARRIERS, MESSAGES, RELAYED, SUMS
from voxring.ring.order import connectivity, rings_of
from voxring.statistics import Block, largest_bound, layout, slots
from voxring.study import AtWeights, Study
from voxring.totals import count_bound, sdsum_bound, sum_bound

Row = tuple[str, ...]


class Section(msgspec.Struct, frozen=True):
    """One part of the sheet: sentences, then a table, whose head is empty when there is none."""

    title: str
    sentences: tuple[str, ...] = ()
    head: Row = ()
    rows: tuple[Row, ...] = ()


class Sheet(msgspec.Struct, frozen=True):
    """A disclosure sheet."""

    study: str
    digest: str
    parties: tuple[str, ...]
    classes: tuple[str, ...]
    collusion: int
    sections: tuple[Section, ...]


def sheet(study: Study) -> Sheet:
    """Return the disclosure sheet of a study.

    Examples
    --------
    >>> study = Study.of(name="liver", classes={"lesion": 1}, party=[{"name": n} for n in "abcde"])
    >>> [section.title for section in sheet(study).sections][:3]
    ['Who learns what', 'Every message', 'What colluders learn']
    """
    return Sheet(
        study.name,
        study.digest,
        study.parties,
        tuple(study.classes),
        study.privacy.collusion,
        (
            Section("Who learns what", tuple(disclosure(study))),
            *_noise(study),
            _messages(study),
            _colluders(study),
            *_scale(study),
            *_additive(study),
            *_logistic(study),
            _implied(study),
            _modulus(study),
            _carriers(study),
            _limits(study),
        ),
    )


def moduli(study: Study) -> dict[str, tuple[int, int]]:
    """Return for each sum the largest value of one party and N; a study without parties is taken to have the fewest.

    That of sdsum depends on μ, and is that of the largest denominator μ can have.
    """
    parties, names = _parties(study), list(study.classes)

    def tail(*quantities: str, means: Mapping[str, Fraction] | None = None) -> int:
        return max((noise.tail for noise in noises(study, quantities, names, means)), default=0)

    voxels = count_bound(study) + tail("voxels", "patients")
    finest = Fraction(1, study.denominator * voxels * parties)
    bounds: dict[str, int] = {}
    if study.agrees:
        bounds = {"images": count_bound(study), "landmarks": landmark_bound(study)}
    bounds |= {
        "voxels": voxels,
        "sum": sum_bound(study) + tail("sum"),
        "sdsum": sdsum_bound(study, finest) + tail("sdsum", means=dict.fromkeys(names, finest)),
    }
    if layout(study):
        tail_of_statistics = max((noise.tail for noise in noises_of_statistics(study, names)), default=0)
        bounds["statistics"] = largest_bound(study) + tail_of_statistics
    if study.logistic is not None:
        bounds["step"] = largest_bound(_first_step(study)) * len(names)
    return {name: (bound, modulus(parties, bound)) for name, bound in bounds.items()}


def _first_step(study: Study) -> AtWeights:
    """What a step of the logistic regression sums if all classes are released; the weights' values do not matter."""
    classes = len(study.classes)
    return study.at([[0] * (len(study.feature) + 1)] * (1 if classes == 2 else classes), study.classes)


def _noise(study: Study) -> Iterator[Section]:
    if study.differential_privacy is None:
        return
    parties, what = _parties(study), "ε" if study.differential_privacy.mechanism == "laplace" else "ρ"

    def row(name: str, quantity: str) -> Row:
        unit = float(scale(study, quantity))
        off = deviation(noise_of(study, quantity, name, Fraction(0)), parties) * unit
        change = sensitivity(study, quantity, name, Fraction(0)) * unit
        return (name, quantity, f"{change:,.6g}", f"{off:,.6g}", f"{what} = {float(part(study)):.4g}")

    def block_row(name: str, block: Block) -> Row:
        units = [float(unit) for unit in scales(study, block)]
        changes = [change * unit for change, unit in zip(sensitivities(study, block, name), units, strict=False)]
        together = f"{changes[0]:,.6g}, all {block.size} together" if block.name in COUNTED else _from_to(changes)
        return (
            name,
            f"{block.name} ({block.size})",
            together,
            _from_to(deviations_of_statistics(study, name)[block.name]),
            f"{what} = {float(part(study)):.4g} together",
        )

    yield Section(
        "Differential privacy",
        (
            "The most that one patient changes each number, by the public bounds of the study, and the standard "
            "deviation of its noise, of all parties together. Intensities count as they are standardised.",
            "The parts add up to what a run spends: of ε by basic composition, of ρ by that of zero-concentrated "
            "differential privacy, which is then turned into ε and δ. docs/differential-privacy.md has the theorems.",
        ),
        ("class", "number", "one patient changes it by at most", "noise, standard deviation", "spends"),
        tuple(
            of
            for name in study.classes
            for of in (
                *(row(name, quantity) for quantity in QUANTITIES),
                *(block_row(name, block) for block in layout(study)),
            )
        ),
    )


def _from_to(values: Sequence[float]) -> str:
    least, largest = f"{min(values):,.6g}", f"{max(values):,.6g}"
    return least if least == largest else f"{least} to {largest}"


def _parties(study: Study) -> int:
    return len(study.party) or study.privacy.min_parties


def _messages(study: Study) -> Section:
    steps = 0 if study.logistic is None else study.logistic.steps
    sums = ("three", "four", "five", "six")[len(moduli(study)) - 3 - bool(steps)]
    more = f", and for each of at most {steps} steps of the logistic regression" if steps else ""
    return Section(
        "Every message",
        (
            "What each kind of message holds, and how that is distributed given the results that its receiver is meant "
            "to learn. Besides, every message holds the digest of the study, the name of the session and the names of "
            f"its sender and receiver. A share goes round each ring once for each of the {sums} sums{more}.",
        ),
        ("message", "from", "to", "holds", "distribution"),
        tuple(_message_rows(study)),
    )


def _message_rows(study: Study) -> Iterator[Row]:
    sent = {"scale": study.agrees, "weights": study.logistic is not None}
    for kind, told in MESSAGES.items():
        if not sent.get(kind, True):
            continue
        if kind != "share":
            yield (kind, told.sender, told.receiver, told.holds, told.distribution)
            continue
        for name in moduli(study):
            yield (f"share of {name}", told.sender, told.receiver, f"{told.holds}: {SUMS[name]}", told.distribution)


def _colluders(study: Study) -> Section:
    title = "What colluders learn"
    if not study.party:
        return Section(title, ("The study names no parties yet: no rings can be checked.",))
    rings = rings_of(bytes(COIN_BYTES), study.parties, study.privacy.collusion)
    kappa, parties = connectivity(rings), len(study.party)
    return Section(
        title,
        (
            f"The {parties} parties and the researcher stand in {len(rings)} ring{'s' * (len(rings) > 1)}. A "
            "coalition, of which the researcher may be one, learns the sum of the honest members' values over each "
            "connected part of the honest members, where ring neighbours are connected, and no more; for a part that "
            "holds the honest researcher, only together with the total.",
            f"The fewest that can part the others are {kappa} (the vertex connectivity of the rings, computed; if no "
            f"set parts them, one less than all members). The study asks for privacy.collusion = "
            f"{study.privacy.collusion}. The table tells the most that a coalition of each size learns; which one it "
            "is, the coin decides.",
        ),
        ("colluders", "from ring messages, beyond the results", "from the results and their own numbers alone"),
        tuple(
            (
                str(size),
                "nothing"
                if (found := leaking_coalition(rings, size)) is None
                else f"{_numbers(study)} of one party, whose {kappa} neighbours are among them"
                + ("; also of every other part into which they part the rest" if len(found[0]) > kappa else ""),
                _from_results(size, study),
            )
            for size in range(1, parties + 1)
        ),
    )


def _numbers(study: Study) -> str:
    if study.differential_privacy is not None:
        more = ", sdsum and additive statistics" if layout(study) else " and sdsum"
        return f"noisy n, patient count, sum{more}"
    first = "landmarks, " if study.agrees else ""
    steps = " and the sums of each step" if study.logistic is not None else ""
    more = ", sdsum and additive statistics" + steps if layout(study) else " and sdsum"
    return f"{first}n, patient count, sum{more}"


def _from_results(size: int, study: Study) -> str:
    parties = len(study.party)

    def left(count: int) -> str:
        return "the one party left" if count == 1 else f"the {count} other parties together"

    with_researcher = f"with the researcher among them, {_numbers(study)} of {left(parties - size + 1)}"
    if size == parties:
        return with_researcher
    noisy = "noisy " if study.differential_privacy is not None else ""
    return f"{noisy}n and sum (n·μ) of {left(parties - size)}; {with_researcher}"


def _scale(study: Study) -> Iterator[Section]:
    if not study.agrees:
        return
    inner, least = inner_landmarks(study), study.privacy.min_patients
    yield Section(
        "The standard scale",
        (
            "Before anything of a class is summed, the parties agree on the standard scale of the intensities: where "
            f"{inner} percentile{'s' * (inner > 1)} of an image's foreground stand{'s' * (inner == 1)} between the "
            "lowest and the highest percentile, on the mean over all images of all parties.",
            "The researcher learns how many images and patients there are in all, and the sum of each of these "
            "landmarks; each party learns their means, exactly, whose denominators may tell how many images there are. "
            "The scale stands in the result.",
            "These are positions between 0 and 1: of the images they tell the mean shape of the intensities' "
            "distribution, and no intensity as it was measured. All images count, also those without a voxel of any "
            "class.",
            f"With fewer than {max(least, 1)} patient{'s' * (least > 1)} in all (privacy.min_patients) the session "
            "ends before a landmark is opened; the researcher checks it, the parties cannot. If all images of a "
            "hospital are one patient's, its landmarks are that patient's.",
            "Should a session fail afterwards and start over, the landmarks are summed again.",
        ),
    )


def _additive(study: Study) -> Iterator[Section]:
    blocks = layout(study)
    if not blocks:
        return
    numbers, privacy = slots(study), study.privacy
    yield Section(
        "Additive statistics",
        (
            f"Of each released class the researcher also learns {numbers} number{'s' * (numbers > 1)} over all parties "
            "together, which go round the rings as one vector in a sum of their own. Parties learn none of them.",
            "The more numbers there are for a voxel, the more they tell of single voxels: a class is released from "
            f"privacy.min_voxels = {privacy.min_voxels} voxels and privacy.min_patients = {privacy.min_patients} "
            f"patient{'s' * (privacy.min_patients > 1)} on. No single number of it is withheld, however small a count "
            "is.",
            *(
                ()
                if study.differential_privacy is None
                else (
                    "Under differential privacy each number has noise, and what the table says of single voxels holds "
                    "for numbers without noise. The blocks tell no more of a patient than epsilon allows.",
                )
            ),
            *_evaluated(study),
            *(f"{warning[0].upper()}{warning[1:]}." for warning in additive_warnings(study)),
        ),
        ("block", "numbers", "what they are", "what they reveal"),
        tuple((block.name, str(block.size), *_REVEALS[block.name]) for block in blocks),
    )


def _evaluated(study: Study) -> tuple[str, ...]:
    if study.evaluate is None:
        return ()
    return (
        f"Each party applies the model with the digest {study.evaluate.digest} to its own labelled images; no map that "
        "it makes leaves its walls. The last three blocks are counted of the voxels of each released class apart, so "
        "that voxels of withheld classes, and those without a class, are in no number.",
    )


def _logistic(study: Study) -> Iterator[Section]:
    if study.logistic is None:
        return
    steps, at = study.logistic.steps, _first_step(study)
    blocks = {block.name: block.size for block in layout(at)}
    yield Section(
        "Logistic regression",
        (
            f"At most {steps} times (logistic.steps) the researcher sends weights to all parties, and learns, over all "
            f"parties and all released classes together, the {slots(at)} numbers of the table: as many as "
            f"{steps * slots(at)} numbers in all, which go round the rings in a sum of their own at each step. It ends "
            "earlier once another step would change nothing; how many steps there were, all learn. Parties learn the "
            "weights of each step but the last, and none of the sums.",
            "The first step is at weights of 0 and tells no more than the sums of features and of their products do. "
            "Later ones weigh each voxel by how much the classes are in doubt there, p(1 − p): voxels near the border "
            "between two classes count most. Where few voxels are in doubt, the sums tell nearly their features, up to "
            "a rotation; the more steps, and the fewer voxels for each number, the more.",
            "The weights follow from the sums by fixed rules, but parties cannot check that they do: a researcher who "
            "does not follow the protocol could choose weights that leave a single voxel in doubt, and learn its "
            "features. A party checks that the first weights are 0, that none leave their bounds, and that there are "
            "no more steps than agreed; its ledger keeps a SHA-256 of the weights of each, against which the "
            "researcher's can be held afterwards.",
            *(f"{warning[0].upper()}{warning[1:]}." for warning in logistic_warnings(study)),
        ),
        ("block", "numbers", "what they are", "what they reveal"),
        tuple((name, str(size), *_REVEALS[name]) for name, size in blocks.items()),
    )


def logistic_warnings(study: Study) -> list[str]:
    """Say where the steps of a logistic regression may tell more numbers than there are voxels."""
    if study.logistic is None:
        return []
    least, numbers = 2 * study.privacy.min_voxels, study.logistic.steps * slots(_first_step(study))
    if least >= numbers:
        return []
    return [
        f"two classes of {least} voxels together may be released, and the steps tell {numbers} numbers: raise "
        "privacy.min_voxels, or lower logistic.steps"
    ]


_REVEALS = {
    "gradient": (
        "for each score, the sum over all voxels of p − [the voxel has the class], and of that times each feature",
        "how far the probabilities are off, at these weights",
    ),
    "hessian": (
        "for each two scores, the sum over all voxels of p times one less the other p, and of that times each two "
        "features",
        "how many voxels are in doubt at these weights, and means and covariances of their features",
    ),
    "feature_sums": ("Σf of each feature f", "the mean of each feature"),
    "gram": (
        "Σ f·g of each two features",
        "variances and covariances of the features, exactly; of a class of few voxels, their feature values up to a "
        "rotation",
    ),
    "powers": (
        "Σx, Σx², … of the intensities",
        "mean, variance, skewness and kurtosis of the intensities themselves; a class of no more voxels than there are "
        "powers is told voxel by voxel",
    ),
    "histogram": (
        "how many voxels lie in each bin, below and above",
        "the distribution of intensities; a bin with a count of 1 tells the intensity of one voxel, and the outermost "
        "occupied bins the least and the largest intensity, as finely as bins are wide",
    ),
    "glcm": (
        "how often neighbours have each two levels",
        "texture; a small count tells of a few pairs of neighbours, and how many pairs there are in all tells how "
        "compact the regions are",
    ),
    "given": (
        "how many voxels the model gave no class of the study, and each",
        "which classes the model takes this one for; a count of 1 tells of a single voxel that it is mistaken",
    ),
    "probabilities": (
        "for each class of the study, how many voxels lie in each bin of the probability that the model gives it",
        "how sure the model is; who holds the model, which maps intensities to probabilities, learns from a bin with a "
        "count of 1 in which range of probability one voxel's surroundings lie",
    ),
    "promised": (
        "these probabilities added up in each bin, each rounded to a multiple of 2^-20",
        "calibration; where a bin holds one voxel, its probability to 20 bits",
    ),
}


def additive_warnings(study: Study) -> list[str]:
    """Say where a study asks for more than its privacy thresholds may protect.

    Examples
    --------
    >>> study = Study.of(name="t", classes={"a": 1}, statistics={"moments": 4}, privacy={"min_voxels": 4})
    >>> for warning in additive_warnings(study):
    ...     print(warning)
    a class of 4 voxels may be released and its powers tell the intensity of each: raise privacy.min_voxels
    all of them may come from one patient: raise privacy.min_patients
    """
    blocks = {block.name: block.size for block in layout(study)}
    least, found = study.privacy.min_voxels, []
    if least <= blocks.get("powers", 0):
        found.append(
            f"a class of {least} voxels may be released and its powers tell the intensity of each: raise "
            "privacy.min_voxels"
        )
    elif least < slots(study):
        found.append(
            f"a class of {least} voxels may be released with {slots(study)} numbers, more than it has voxels: raise "
            "privacy.min_voxels, or ask for fewer bins and levels"
        )
    if blocks and study.privacy.min_patients <= 1:
        found.append("all of them may come from one patient: raise privacy.min_patients")
    return found


def _implied(study: Study) -> Section:
    parties, least = _parties(study), study.privacy.min_patients
    return Section(
        "What the results themselves imply",
        (
            f"No protocol can hide what follows from the results. {parties - 1} of {parties} parties that put their "
            "numbers together learn n and sum of the last one, whatever the rings are.",
            "A hospital whose images of a class come from a single patient gives numbers that are that patient's. If "
            "no other hospital has the class, the result is that patient's, and privacy.min_patients = "
            f"{least} {'does not withhold' if least <= 1 else 'withholds'} it.",
            "Two runs of which one has a patient or a hospital more tell, by their difference, the numbers of that one "
            "(differencing)"
            + (
                f". {_guard(study)}"
                if study.differential_privacy is None
                else ": of a patient, as little as the two spend together; of a hospital, more."
            ),
            f"A class is released from {study.privacy.min_voxels} voxels in all (privacy.min_voxels). The researcher "
            "learns n and the patient count of withheld classes too, and parties learn that they are withheld.",
            "Means and deviations are exact: their last digits tell more than rounded numbers would, about all images "
            "together."
            if study.differential_privacy is None
            else "What this section says of single patients holds for numbers without noise. With it, a hospital with "
            "one patient, or a class that one patient has, tells no more of that patient than epsilon allows.",
        ),
    )


def _guard(study: Study) -> str:
    parties, patients = study.privacy.min_parties, study.privacy.min_patients
    few = f", or in which its own images of a class are those of then but for fewer than {patients} patients"
    refused = f"{few} (privacy.min_patients)." if patients > 1 else "."
    none = "" if patients > 1 else " With privacy.min_patients = 1 it refuses none for its patients."
    return (
        "Each party keeps a ledger of the runs it took part in. It refuses a run whose hospitals are those of an "
        f"earlier one but for fewer than {parties} (privacy.min_parties){refused}{none} Its operator can overrule "
        "that, with a reason that the ledger keeps. A party does not see what changes at the others, holds runs "
        "against each other two by two, and knows of those alone that its ledger holds."
    )


def _modulus(study: Study) -> Section:
    parties = _parties(study)
    which = f"{parties} parties" if study.party else f"the fewest parties allowed, {parties}"
    return Section(
        "The modulus, and why it cannot wrap",
        (
            "A party holds each of its numbers against the public bound B of the study before it sends anything, and "
            f"ends the session if one is larger. With {which}, the total lies in −{parties}·B … {parties}·B, and N is "
            "a power of 2 that is larger than that range. So its residue tells the total, exactly, and no sum can "
            "wrap.",
            "Every sum has one number more, a checksum: the party's own numbers times public weights, added up mod N. "
            "That of all parties together follows from the totals and tells nothing more. N is at least 2^64 times as "
            "large as the range, so that numbers which were changed by accident inside a party are found.",
            *(
                ()
                if study.differential_privacy is None
                else (
                    "Under differential privacy B has room for a share of noise, and a share leaves that room with a "
                    f"probability of at most 2^-{TAIL_BITS}. No party looks at how large its noisy number is, since "
                    "that would tell something: such a share goes round like any other. The researcher then "
                    "refuses the total; it would have to be 2^64 times as large to wrap.",
                )
            ),
            "B and N follow from bounds.voxels_per_party, the bound of the intensities and the window. Those of sdsum "
            "follow from μ too; the table has the largest that they can be.",
        ),
        ("sum", "of", "bits of B", "N"),
        tuple(
            (name, SUMS[name], str(bound.bit_length()), f"2^{n.bit_length() - 1}")
            for name, (bound, n) in moduli(study).items()
        ),
    )


def _carriers(study: Study) -> Section:
    table = CARRIERS | (RELAYED if study.relay else {})
    return Section(
        "What carries the messages",
        (
            "Every message travels as a question or as its answer between two members; a vector of more than 256 KiB "
            "goes in chunks over streams."
            + (
                " All of it passes the relay, in mailboxes; what a relay is told is in the last rows."
                * bool(study.relay)
            ),
        ),
        ("what", "from", "to", "holds", "distribution"),
        tuple((name, told.sender, told.receiver, told.holds, told.distribution) for name, told in table.items()),
    )


def _limits(study: Study) -> Section:
    return Section(
        "What this takes for granted",
        (
            "Every process follows the protocol and may only look at what it sees (the semi-honest model). A process "
            "that sends other numbers can make the result wrong.",
            "Blinds and shares come from the operating system's random numbers and are used once.",
            *_links(study),
        ),
    )


def _links(study: Study) -> tuple[str, ...]:
    if not study.keys:
        return (
            "The study gives no keys: links are in the clear, and whoever says hello first is taken for the "
            "researcher. Somebody who reads every link learns what all members together would see of the messages, "
            "and with that each party's numbers.",
        )
    relay = (
        "Messages go through a relay. It sees what somebody who reads every link sees, and which member asks which "
        "under names that change every day; it can hold back messages, which ends a session.",
    )
    return (
        "The study gives each member's public key. Every message and every answer is encrypted and authenticated "
        "between its two members (a TLS 1.3 handshake in which both prove that they hold their keys, then "
        "AES-256-GCM). Somebody who reads every link sees network addresses, times and the number and length of "
        "messages, not what they hold; somebody who changes or holds back messages can end a session, not change its "
        "result.",
        "Each private key is in the hands of its member alone, and each member has compared the fingerprints of the "
        "others' public keys. Whoever takes a private key can stand in for its member in later sessions; what was "
        "recorded of earlier ones stays closed.",
        *(relay if study.relay else ()),
    )
