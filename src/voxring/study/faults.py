"""What makes a study impossible that the types of its tables cannot say."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from itertools import pairwise
from math import isfinite, prod
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from voxring.study.bounds import feature_bound
from voxring.study.tables import MOST_LANDMARKS, NAME, Standardise, exact, fitting

if TYPE_CHECKING:
    from voxring.study.study import Study

MOST_FEATURES = 64
"""Of a logistic regression."""
FEATURE_BITS = 40
"""Of its features' integers."""


def faults(study: Study) -> Iterator[tuple[str, str]]:
    """Yield what the types cannot say: (key, what was expected, what came, the remedy)."""
    if not study.name.strip():
        yield "name", "expected a name, got an empty string: say what the study is about"
    if not study.classes:
        yield "classes", "expected at least one class, got none: write classes = { lesion = 1 }"
    for name in study.classes:
        if not name.strip():
            yield "classes", "a class needs a name, got an empty string: write classes = { lesion = 1 }"
    labels = list(study.classes.values())
    for name, label in study.classes.items():
        if labels.count(label) > 1:
            yield (
                f"classes.{name}",
                f"label {label!r} is given to two classes: give each class a label of its own",
            )
        if isinstance(label, int) and not -(2**31) <= label < 2**32:
            yield f"classes.{name}", f"a label fits 32 bits, got {label}: write the value that the ground truth has"
    if not isfinite(study.window.fill):
        yield "window.fill", f"expected a finite number, got {study.window.fill}: write the value outside the image"
    if study.window.fill and study.window.border != "constant":
        yield (
            "window.fill",
            f'only the border "constant" has a fill, got "{study.window.border}": leave one out',
        )
    if abs(study.fill) > study.intensity_bound:
        yield (
            "window.fill",
            f"expected at most bounds.intensity, got {study.window.fill}: raise the bound or lower the fill",
        )
    sizes = study.window.size
    if not study.window.fits:
        yield (
            "window.axes",
            f"expected as many as window.size has numbers, got {study.window.axes} for {sizes}: leave axes out",
        )
    elif prod(sizes if isinstance(sizes, tuple) else (sizes,) * 3) >= 2**31:
        yield "window.size", f"a window must hold fewer than 2^31 voxels, got {sizes}: make it smaller"
    elif study.window.border == "clip" and study.window.denominator.bit_length() > 4096:
        yield (
            "window.size",
            f"under clip, the means of a window of {sizes} have no common denominator of 4096 bits: make it smaller, "
            "or take another border",
        )
    yield from _standardise_faults(study.standardise)
    if study.intensity_bound >= 2**62:
        yield (
            "bounds.intensity",
            f"intensity · 2^fraction_bits must stay below 2^62, got {study.intensity_bound}: lower one of them",
        )
    yield from _feature_faults(study)
    yield from _statistics_faults(study)
    yield from _evaluate_faults(study)
    yield from _logistic_faults(study)
    yield from _party_faults(study)
    yield from _key_faults(study)
    yield from _noise_faults(study)
    if study.relay and not _address_ok(study.relay):
        yield "relay", f"expected tcp://HOST:PORT, got {study.relay!r}: write where `voxring relay` listens"
    if study.relay and not study.keys:
        yield "relay", "only sealed links go through a relay, and the study has no keys: `voxring keys --help`"


def _standardise_faults(standardise: Standardise) -> Iterator[tuple[str, str]]:
    method = standardise.method
    wanted = {"rescale": {"range"}, "percentile": {"percentiles"}, "nyul": {"percentiles", "landmarks"}}
    for key in ("range", "percentiles", "landmarks"):
        given = getattr(standardise, key)
        needed = key in wanted.get(method, set())
        if given is None and needed:
            yield f"standardise.{key}", f'method "{method}" needs it, it is missing: write {key} = [ … ]'
        if given is not None and not needed:
            yield f"standardise.{key}", f'method "{method}" does not use it: leave it out'
        if given is None or given == "agree":
            continue
        if not all(isinstance(number, str) or isfinite(number) for number in given):
            yield f"standardise.{key}", f"expected finite numbers, got {list(given)}: write where the values lie"
        elif any(low >= high for low, high in pairwise(map(exact, given))):
            yield f"standardise.{key}", f"expected rising numbers, got {list(given)}: write the lowest first"
    for percentile in standardise.percentiles or ():
        if not 0 <= percentile <= 100:
            yield "standardise.percentiles", f"expected numbers from 0 to 100, got {percentile}: write per cent"
    count = len(standardise.percentiles or ())
    if method == "percentile" and count != 2:
        yield (
            "standardise.percentiles",
            f"expected two, the ones mapped to 0 and 1, got {count}: write the lowest and the highest",
        )
    if method == "nyul" and standardise.landmarks == "agree":
        if not 3 <= count <= MOST_LANDMARKS:
            yield (
                "standardise.percentiles",
                f'expected 3 to {MOST_LANDMARKS} with landmarks = "agree", since the first and the last become 0 and '
                f"1, got {count}: write them, or the landmarks themselves",
            )
    elif method == "nyul" and (count < 2 or count != len(standardise.landmarks or ())):
        landmarks = len(standardise.landmarks or ())
        yield (
            "standardise.landmarks",
            f"expected at least two, one for each percentile, got {landmarks} for {count}: give each its own",
        )


def _feature_faults(study: Study) -> Iterator[tuple[str, str]]:
    labels = [feature.label for feature in study.feature]
    axes = study.window.fits
    for feature in study.feature:
        if feature.window is None and feature.kind not in _WITHOUT_WINDOW:
            yield "feature.window", f'kind "{feature.kind}" needs it, it is missing: write window = 7'
        if feature.window is not None and feature.kind in _WITHOUT_WINDOW:
            yield "feature.window", f'kind "{feature.kind}" has no window: leave it out'
        if feature.name and not NAME.fullmatch(feature.name):
            yield (
                "feature.name",
                f"expected letters, digits, '.', '_' and '-', at most 64, got {feature.name!r}: shorten it",
            )
        if labels.count(feature.label) > 1:
            yield "feature", f"{feature.label!r} stands twice: leave one out, or give each a name of its own"
        if feature.window is None:
            continue
        sizes = feature.window if isinstance(feature.window, tuple) else (feature.window,) * 3
        if prod(sizes) >= 2**31:
            yield "feature.window", f"a window must hold fewer than 2^31 voxels, got {feature.window}: make it smaller"
        axes &= fitting(feature.window)
        if not axes:
            yield (
                "feature.window",
                f"no image has as many axes as {feature.label!r} and also those of [window] and the features before: "
                "give all windows one number, or one per axis of the images",
            )


_WITHOUT_WINDOW = ("intensity", "gradient")


def _statistics_faults(study: Study) -> Iterator[tuple[str, str]]:
    asked = study.statistics
    if asked.gram and not study.feature:
        yield "statistics.gram", "the study has no feature: write [[feature]] tables, or leave gram out"
    for key, table in (("histogram", asked.histogram), ("glcm", asked.glcm)):
        if table is None:
            continue
        if not all(isfinite(end) for end in table.range):
            yield f"statistics.{key}.range", f"expected finite numbers, got {list(table.range)}: write both ends"
        elif table.range[0] >= table.range[1]:
            yield (
                f"statistics.{key}.range",
                f"expected rising numbers, got {list(table.range)}: write the lower end first",
            )


def _evaluate_faults(study: Study) -> Iterator[tuple[str, str]]:
    if study.evaluate is None:
        return
    if not re.fullmatch("[0-9a-f]{64}", study.evaluate.digest):
        yield (
            "evaluate.digest",
            "expected the 64 digits that `voxring train` prints of a model, got something else: copy them",
        )
    if study.bounds.voxels_per_party * max(len(study.party), study.privacy.min_parties) >= 1 << 43:
        yield (
            "bounds.voxels_per_party",
            f"an evaluation counts fewer than 2^43 voxels in all, got {study.bounds.voxels_per_party} for each party: "
            "lower the bound",
        )


def _logistic_faults(study: Study) -> Iterator[tuple[str, str]]:
    if study.logistic is None:
        return
    if not 1e-12 <= study.logistic.strength <= 1e12:
        yield (
            "logistic.strength",
            f"expected 1e-12 to 1e12, got {study.logistic.strength}: 1 is usual, less keeps coefficients smaller",
        )
    if not study.statistics.gram:
        yield "logistic", "statistics.gram is false, and a model needs these sums: write gram = true under [statistics]"
    if len(study.classes) < 2:
        yield "logistic", "expected at least 2 classes, got 1: name another in classes, such as the tissue around it"
    if len(study.feature) > MOST_FEATURES:
        yield "logistic", f"expected at most {MOST_FEATURES} features, got {len(study.feature)}: leave some out"
    for feature in study.feature:
        bits = feature_bound(feature, study).bit_length()
        if bits > FEATURE_BITS:
            yield (
                "logistic",
                f"expected features of integers below 2^{FEATURE_BITS}, got {bits} bits for {feature.label!r}: lower "
                "standardise.fraction_bits or bounds.intensity, or standardise by another method",
            )


_NOISY_TABLES = {
    "study": (
        *("name", "classes", "window", "standardise", "privacy", "bounds", "party", "researcher", "relay"),
        *("feature", "statistics", "differential_privacy"),
    ),
    "standardise": ("method", "fraction_bits", "range", "percentiles", "landmarks", "foreground", "colour"),
    "statistics": ("gram", "moments", "histogram", "glcm"),
}
"""What may be in a study with differential privacy. What came later, or releases more, has no noise, and is refused
rather than released without."""


def _noise_faults(study: Study) -> Iterator[tuple[str, str]]:
    table, most = study.differential_privacy, study.privacy.voxels_per_patient
    if table is None:
        if most is not msgspec.UNSET:
            yield (
                "privacy.voxels_per_patient",
                "only differential privacy uses it: leave it out, or write [differential_privacy]",
            )
        return
    if not 0.001 <= table.epsilon <= 100:
        yield (
            "differential_privacy.epsilon",
            f"expected 0.001 to 100, got {table.epsilon}: 1 is usual, less tells less of a patient and adds more noise",
        )
    if table.mechanism == "laplace" and table.delta != 0:
        yield "differential_privacy.delta", 'mechanism "laplace" needs none: leave it out, or take "gaussian"'
    if table.mechanism == "gaussian" and not 1e-15 <= table.delta <= 1e-3:
        yield (
            "differential_privacy.delta",
            f'mechanism "gaussian" needs one of 1e-15 to 1e-3, got {table.delta}: write far less than one in all '
            "patients, such as 1e-6",
        )
    if most is msgspec.UNSET:
        yield (
            "privacy.voxels_per_patient",
            "differential privacy needs it, it is missing: write how many voxels of a class one patient may count as",
        )
    elif isinstance(most, dict) and set(most) != set(study.classes):
        yield (
            "privacy.voxels_per_patient",
            f"expected a number for each of {', '.join(study.classes)}, got {', '.join(most) or 'none'}: name each "
            "class of the study once, or write one number for all",
        )
    elif max(most.values() if isinstance(most, dict) else [most]) > study.bounds.voxels_per_party:
        yield (
            "privacy.voxels_per_patient",
            f"a patient cannot have more voxels than bounds.voxels_per_party = {study.bounds.voxels_per_party}: lower "
            "it, or raise the bound",
        )
    if study.agrees:
        yield "standardise.landmarks", "differential privacy does not cover landmarks that are agreed on: write them"
    for where, of in (("study", study), ("standardise", study.standardise), ("statistics", study.statistics)):
        for field in msgspec.structs.fields(of):
            unused = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            if field.name not in _NOISY_TABLES[where] and getattr(of, field.name) != unused:
                name = field.name if where == "study" else f"{where}.{field.name}"
                yield name, "differential privacy does not cover it: leave it out, or leave out [differential_privacy]"


def _party_faults(study: Study) -> Iterator[tuple[str, str]]:
    if not study.party:
        return
    if len(study.party) < study.privacy.min_parties:
        yield (
            "party",
            f"expected at least {study.privacy.min_parties} parties, got {len(study.party)}: "
            "with fewer, a total tells one party the other's number",
        )
    for name in study.parties:
        if not NAME.fullmatch(name):
            yield (
                "party.name",
                f"expected letters, digits, '.', '_' and '-', at most 64, got {name!r}: choose another name",
            )
        if name == "researcher":
            yield "party.name", "'researcher' is the name of the ring's master: choose another"
        if study.parties.count(name) > 1:
            yield "party.name", f"{name!r} stands twice: give each party a name of its own"
    addresses = [party.address for party in study.party if party.address]
    for address in addresses:
        if not _address_ok(address):
            yield (
                "party.address",
                f"expected tcp://HOST:PORT or tls+tcp://HOST:PORT, got {address!r}: write where the party listens",
            )
        if addresses.count(address) > 1:
            yield "party.address", f"{address!r} stands twice: each party listens at an address of its own"
    most = len(study.party) - 1  # in the complete graph over all parties and the researcher
    if study.privacy.collusion > most:
        yield (
            "privacy.collusion",
            f"expected 1 to {most} colluders among {len(study.party)} parties and the researcher, got "
            f"{study.privacy.collusion}: the largest reachable is {most}",
        )


def _key_faults(study: Study) -> Iterator[tuple[str, str]]:
    keys = study.keys
    if keys and not study.party:
        yield "researcher.key", "the study names no party: give each its [[party]] with a key, or leave this one out"
    for name, key in keys.items():
        where = "researcher.key" if name == "researcher" else "party.key"
        if not key:
            yield (
                where,
                f"{name} has none, others have: all parties and the researcher need one, made with "
                "`voxring keys new FILE` where it will be used",
            )
        elif not _key_ok(key):
            # Not quoted: somebody may have pasted what is private.
            yield (
                where,
                f"{name}: expected the 44 characters of a public key, got {len(key)} that are none: paste the line "
                "that `voxring keys show FILE` prints",
            )
        elif list(keys.values()).count(key) > 1:
            yield where, f"{name} has the key of another member: each makes its own with `voxring keys new FILE`"


def _key_ok(key: str) -> bool:
    try:
        raw = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(raw) == 32 and base64.b64encode(raw).decode() == key


def _address_ok(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("tcp", "tls+tcp") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        return False
