"""The study: what all parties agree on. Read from ``study.toml``, checked once, frozen; its digest is everywhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import isfinite, lcm, prod
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from voxring.errors import StudyError

Border = Literal["reflect", "mirror", "nearest", "constant", "clip"]
Kind = Literal["intensity", "mean", "variance", "std", "gradient", "skewness", "contrast"]
Colour = Literal["luminance", "red", "green", "blue"]
Exact = float | Annotated[str, msgspec.Meta(pattern=r"^-?[0-9]{1,400}/[1-9][0-9]{0,399}$")]
"""A number of a study; a fraction such as "355/113" where no decimal number is it."""
Axis = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
Size = Axis | Annotated[tuple[Axis, ...], msgspec.Meta(min_length=2, max_length=3)]
MOST_LANDMARKS = 256  # that parties agree on: their sum goes round in one message
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _along(size: Size, ndim: int, key: str) -> tuple[int, int, int]:
    sizes = (size,) * ndim if isinstance(size, int) else size
    if ndim == 2 and len(sizes) == 3 and sizes[0] == 1:
        sizes = sizes[1:]
    if len(sizes) != ndim:
        raise StudyError(f"study: {key} has {len(sizes)} numbers, the image has {ndim} axes: give one number per axis")
    return (1, *sizes)[-3:]  # type: ignore[return-value]  # 1 + 2 or 1 + 3 numbers, the last 3


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The window of the local mean (Section 3.1: c × c), its size along the axes and what it sees past the border.

    ``size`` is one number for all axes or one per axis, (rows, columns) or (planes, rows, columns); 1 leaves an axis
    out. ``fill`` is what lies outside under ``constant``, in standardised units.
    """

    size: Size = 7
    border: Border = "reflect"
    fill: float = 0.0

    def along(self, ndim: int) -> tuple[int, int, int]:
        """Return the size along (planes, rows, columns) of an image with ndim axes; a 2D image is one plane.

        Raises
        ------
        StudyError
            The size names axes that the image does not have.
        """
        return _along(self.size, ndim, "window.size")

    @property
    def denominator(self) -> int:
        """Least common multiple L of all window counts that can occur in an image of the study."""
        shapes = [self.along(n) for n in (2, 3)] if isinstance(self.size, int) else [self.along(len(self.size))]
        if self.border == "clip":
            return lcm(*(prod(lcm(*range(1, c + 1)) for c in shape) for shape in shapes))
        return lcm(*(prod(shape) for shape in shapes))


class Standardise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How intensities become comparable between images (Algorithm 1, line 1).

    ``colour`` says which intensity a colour image has. A study that does not say it takes greyscale images alone.
    ``landmarks`` are what the percentiles are mapped to, or "agree": then the parties find them before the main pass,
    as the mean over all their images (`voxring.landmarks`).
    """

    method: Literal["none", "rescale", "zscore", "percentile", "nyul"] = "none"
    fraction_bits: Annotated[int, msgspec.Meta(ge=0, le=40)] = 16
    range: tuple[float, float] | None = None
    percentiles: tuple[float, ...] | None = None
    landmarks: tuple[Exact, ...] | Literal["agree"] | None = None
    foreground: Literal["all", "nonzero", "above-mean"] = "above-mean"
    colour: Colour | msgspec.UnsetType = msgspec.UNSET  # is left out of the canonical form, as it came later

    @property
    def targets(self) -> tuple[Fraction, ...]:
        """The landmarks, exactly; none where the parties have yet to agree on them."""
        given = () if self.landmarks is None or self.landmarks == "agree" else self.landmarks
        return tuple(exact(number) for number in given)


def exact(number: float | str) -> Fraction:
    """Return a number of a study as it was written.

    Examples
    --------
    >>> exact(0.1), exact("355/113")
    (Fraction(1, 10), Fraction(355, 113))
    """
    return Fraction(number if isinstance(number, str) else repr(number))


class Privacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be learned, and by whom.

    ``collusion`` is how many members, parties or the researcher, may put together all they saw and still learn nothing
    beyond the results; rings are added until that holds. ``voxels_per_patient``, for each class or for all, is how many
    voxels of a class one patient counts as at most, which differential privacy needs.
    """

    collusion: Annotated[int, msgspec.Meta(ge=1)] = 1
    min_parties: Annotated[int, msgspec.Meta(ge=3)] = 3
    min_voxels: Annotated[int, msgspec.Meta(ge=2)] = 2
    min_patients: Annotated[int, msgspec.Meta(ge=1)] = 1
    voxels_per_patient: (
        Annotated[int, msgspec.Meta(ge=1)] | dict[str, Annotated[int, msgspec.Meta(ge=1)]] | msgspec.UnsetType
    ) = msgspec.UNSET  # is left out of the canonical form, as it came later


class DifferentialPrivacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How little the results may tell of one patient: noise is added in shares, and everything released is noisy.

    Results of images that differ by one patient are told apart no better than ``epsilon`` and ``delta`` allow
    (docs/differential-privacy.md). ``runs`` is how often a party may run the study, each time for as much again.
    """

    epsilon: float
    delta: float = 0.0
    mechanism: Literal["laplace", "gaussian"] = "laplace"
    unit: Literal["patient"] = "patient"
    runs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Public bounds; the modulus is made from them, and a party that breaks one refuses before it sends.

    ``intensity`` bounds the size of a standardised value; when left out it follows from the method.
    """

    voxels_per_party: Annotated[int, msgspec.Meta(ge=1, le=10**18)] = 10_000_000_000
    intensity: Annotated[int, msgspec.Meta(ge=1, le=2**47)] | None = None


class Party(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One hospital: its name, where it listens, its public key (Ed25519, the 32 bytes in base64)."""

    name: str
    address: str = ""
    key: str = ""


class Researcher(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The researcher's public key."""

    key: str = ""


class Feature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One map that is computed from the image, in the order of the file; `voxring.features` defines the kinds.

    ``window`` is its size, as ``window.size``, for the kinds that have one; the border is that of the study's window.
    """

    kind: Kind
    window: Size | None = None
    name: str = ""

    @property
    def label(self) -> str:
        """The name, or kind and window, such as ``mean-7`` or ``mean-3x7x7``."""
        if self.name or self.window is None:
            return self.name or self.kind
        sizes = (self.window,) if isinstance(self.window, int) else self.window
        return f"{self.kind}-{'x'.join(map(str, sizes))}"

    def along(self, ndim: int) -> tuple[int, int, int]:
        """Return the window's size along (planes, rows, columns) of an image with ndim axes; ones without a window.

        Raises
        ------
        StudyError
            The size names axes that the image does not have.
        """
        return (1, 1, 1) if self.window is None else _along(self.window, ndim, f"the window of feature {self.label!r}")


class Bins(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Public bins of equal width over a range of standardised values."""

    bins: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    range: tuple[float, float]

    @property
    def edges(self) -> tuple[Fraction, ...]:
        """The bins + 1 edges. Bin j holds edges[j] <= value < edges[j + 1], the last one its right edge too."""
        low, high = (Fraction(repr(end)) for end in self.range)
        return tuple(low + (high - low) * j / self.bins for j in range(self.bins + 1))

    def starts(self, unit: int) -> tuple[int, ...]:
        """The least standardised integer x of each bin, and of what lies above all: bins + 1 numbers that never fall.

        Examples
        --------
        >>> Bins(bins=2, range=(0.0, 0.5)).starts(10)
        (0, 3, 6)
        """
        *lower, last = (edge * unit for edge in self.edges)
        return (*(-(-edge.numerator // edge.denominator) for edge in lower), last.numerator // last.denominator + 1)


class Cooccurrence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A grey-level co-occurrence matrix: levels are public bins; values beyond the range go to the first or last level.

    Pairs lie ``distance`` voxels apart along each of the 13 directions of a volume (4 of an image with 2 axes, or
    within the planes of a volume when ``planar``), as the Chebyshev distance of IBSI.
    """

    levels: Annotated[int, msgspec.Meta(ge=2, le=256)]
    range: tuple[float, float]
    distance: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    planar: bool = False

    @property
    def bins(self) -> Bins:
        """The levels as bins."""
        return Bins(bins=self.levels, range=self.range)


class Additive(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Further statistics of each class that are sums over voxels, and so go round the ring as one vector.

    ``gram``: Σf and Σf fᵀ of the features; ``moments``: power sums of the intensity up to this order, or 0.
    """

    gram: bool = False
    moments: Literal[0, 2, 3, 4] = 0
    histogram: Bins | None = None
    glcm: Cooccurrence | None = None


class Evaluate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model that every party applies to its own labelled images, to count how that meets their ground truth.

    ``model`` is its file, relative to the study file, and ``digest`` what `voxring.Classifier.digest` says of it; the
    file may lie elsewhere at each party, so the digest alone is part of the study's. ``bins`` are those of probability.
    """

    digest: str
    model: str = ""
    bins: Annotated[int, msgspec.Meta(ge=16, le=4096, multiple_of=16)] = 64


_INTENSITY = {"none": 2**32, "rescale": 2, "zscore": 2**10, "percentile": 2, "nyul": 2**10}


class Study(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen, checked study. Make one with `load_study`, `parse_study` or `Study.of`.

    Examples
    --------
    >>> study = Study.of(name="liver", classes={"lesion": 1}, window={"size": 7})
    >>> study.denominator == 2**16 * 7**3
    True
    """

    name: str
    classes: dict[str, int | str]
    window: Window = Window()
    standardise: Standardise = Standardise()
    privacy: Privacy = Privacy()
    bounds: Bounds = Bounds()
    party: tuple[Party, ...] = ()
    researcher: Researcher = Researcher()
    relay: str = ""
    feature: tuple[Feature, ...] = ()
    statistics: Additive = Additive()
    evaluate: Evaluate | None = None
    differential_privacy: DifferentialPrivacy | None = None

    @classmethod
    def of(cls, **tables: object) -> Study:
        """Make a study from the tables of ``study.toml`` given as keywords.

        Raises
        ------
        StudyError
            A key is unknown, missing or impossible.
        """
        return _checked(tables, "study")

    @property
    def parties(self) -> tuple[str, ...]:
        """Names of the parties, in the order of the file."""
        return tuple(party.name for party in self.party)

    @property
    def keys(self) -> dict[str, str]:
        """Public key of every member, the researcher last; empty if the study gives none."""
        keys = {party.name: party.key for party in self.party} | {"researcher": self.researcher.key}
        return keys if any(keys.values()) else {}

    @property
    def unit(self) -> int:
        """2^p; a standardised integer x stands for x / unit."""
        return 1 << self.standardise.fraction_bits

    @property
    def colour(self) -> Colour | None:
        """Which intensity a colour image has; None refuses colour."""
        colour = self.standardise.colour
        return None if colour is msgspec.UNSET else colour

    @property
    def agrees(self) -> bool:
        """Whether the parties have yet to agree on the landmarks of the standardisation."""
        return self.standardise.landmarks == "agree"

    @property
    def denominator(self) -> int:
        """D = 2^p · L; local means are integers over it."""
        return self.unit * self.window.denominator

    @property
    def intensity_bound(self) -> int:
        """Largest size of a standardised integer x."""
        bound = self.bounds.intensity
        return (bound if bound is not None else _INTENSITY[self.standardise.method]) * self.unit

    @property
    def fill(self) -> int:
        """The fill of the ``constant`` border as a standardised integer."""
        return round(Fraction(repr(self.window.fill)) * self.unit)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form, in hexadecimal."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """The study as JSON with every default written out, keys sorted, no white space.

        What came to the format later is left out when it is not used, so that older studies keep their digest, and
        with it their coin.
        """
        tables = msgspec.to_builtins(self)
        if self.researcher == Researcher():
            del tables["researcher"]
        if not self.relay:
            del tables["relay"]
        if not self.feature:
            del tables["feature"]
        if self.statistics == Additive():
            del tables["statistics"]
        if self.evaluate is None:
            del tables["evaluate"]
        else:
            del tables["evaluate"]["model"]  # where it lies is each party's own affair
        if self.differential_privacy is None:
            del tables["differential_privacy"]
        return msgspec.json.encode(tables, order="sorted")

    def __repr__(self) -> str:
        return f"Study({self.name!r}, classes={self.classes}, parties={len(self.party)}, digest={self.digest[:12]!r})"

    def _repr_html_(self) -> str:
        from voxring.tables import html_table

        tables = msgspec.to_builtins(self)
        rows = [("classes", _shown(self.classes))]
        rows += [(key, _shown(tables[key])) for key in ("window", "standardise", "privacy", "bounds", "statistics")]
        if self.feature:
            rows.insert(3, ("features", ", ".join(feature.label for feature in self.feature)))
        if self.evaluate is not None:
            rows.append(("evaluates", f"model {self.evaluate.digest[:12]}"))
        rows += [("parties", ", ".join(self.parties) or "named when it is run"), ("digest", self.digest[:12])]
        return html_table(f"Study {self.name}", [], [row for row in rows if row[1]])

    def with_parties(self, parties: Sequence[Party]) -> Study:
        """Return the same study with these parties."""
        return _checked(
            {**msgspec.to_builtins(self), "party": [msgspec.to_builtins(party) for party in parties]}, "study"
        )

    def with_landmarks(self, scale: Sequence[Fraction]) -> Study:
        """Return the same study with these landmarks: what is computed once the parties have agreed on them.

        Raises
        ------
        StudyError
            They do not rise, or are not one for each percentile.
        """
        tables = msgspec.to_builtins(self)
        landmarks = [f"{landmark.numerator}/{landmark.denominator}" for landmark in scale]
        return _checked({**tables, "standardise": {**tables["standardise"], "landmarks": landmarks}}, "study")


def _shown(table: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in table.items() if value not in (None, False, 0, 0.0))


def load_study(path: str | Path) -> Study:
    """Read and check a study file.

    Raises
    ------
    StudyError
        The file is missing, is no TOML, or a key is unknown, missing or impossible.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError(f"{path}: no such study file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as a study: {error}") from None
    study = parse_study(text, source=str(path))
    if study.evaluate is None or not study.evaluate.model:
        return study
    beside = str(path.parent / study.evaluate.model)
    return msgspec.structs.replace(study, evaluate=msgspec.structs.replace(study.evaluate, model=beside))


def parse_study(text: str, *, source: str = "study") -> Study:
    """Check a study given as TOML text; ``source`` names it in errors."""
    try:
        tables = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        raise StudyError(f"{source}: not TOML: {error}") from None
    return _checked(tables, source)


def _checked(tables: object, source: str) -> Study:
    try:
        study = msgspec.convert(tables, Study)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        place = place.rstrip("`").lstrip(".")
        raise StudyError(f"{source}: {place + ': ' if place else ''}{message[0].lower()}{message[1:]}") from None
    for key, fault in _faults(study):
        raise StudyError(f"{source}: {key}: {fault}")
    return study


def _faults(study: Study) -> Iterator[tuple[str, str]]:
    """Yield what the types cannot say: (key, what was expected, what came, the remedy)."""
    if not study.name.strip():
        yield "name", "expected a name, got an empty string: say what the study is about"
    if not study.classes:
        yield "classes", "expected at least one class, got none: write classes = { lesion = 1 }"
    for name in study.classes:
        if not name.strip():
            yield "classes", "a class needs a name, got an empty string"
    labels = list(study.classes.values())
    for name, label in study.classes.items():
        if labels.count(label) > 1:
            yield (
                f"classes.{name}",
                f"label {label!r} is given to two classes: give each class a label of its own",
            )
        if isinstance(label, int) and not -(2**31) <= label < 2**32:
            yield f"classes.{name}", f"a label fits 32 bits, got {label}"
    if not isfinite(study.window.fill):
        yield "window.fill", f"expected a finite number, got {study.window.fill}"
    if study.window.fill and study.window.border != "constant":
        yield (
            "window.fill",
            f'only the border "constant" has a fill, got "{study.window.border}": leave one out',
        )
    if abs(study.fill) > study.intensity_bound:
        yield "window.fill", "the fill leaves bounds.intensity: raise the bound or lower the fill"
    sizes = study.window.size
    if prod(sizes if isinstance(sizes, tuple) else (sizes,) * 3) >= 2**31:
        yield "window.size", "a window must hold fewer than 2^31 voxels: make it smaller"
    elif study.window.border == "clip" and study.window.denominator.bit_length() > 4096:
        yield "window.size", "under clip, the means of a window this large have no common denominator of 4096 bits"
    yield from _standardise_faults(study.standardise)
    if study.intensity_bound >= 2**62:
        yield "bounds.intensity", "intensity · 2^fraction_bits must stay below 2^62: lower one of them"
    yield from _feature_faults(study)
    yield from _statistics_faults(study)
    yield from _evaluate_faults(study)
    yield from _party_faults(study)
    yield from _key_faults(study)
    yield from _noise_faults(study)
    if study.relay and not _address_ok(study.relay):
        yield "relay", f"expected tcp://HOST:PORT, got {study.relay!r}"
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
            yield f"standardise.{key}", "expected finite numbers"
        elif any(low >= high for low, high in pairwise(map(exact, given))):
            yield f"standardise.{key}", f"expected rising numbers, got {list(given)}"
    for percentile in standardise.percentiles or ():
        if not 0 <= percentile <= 100:
            yield "standardise.percentiles", f"expected numbers from 0 to 100, got {percentile}"
    count = len(standardise.percentiles or ())
    if method == "percentile" and count != 2:
        yield "standardise.percentiles", f"expected two, the ones mapped to 0 and 1, got {count}"
    if method == "nyul" and standardise.landmarks == "agree":
        if not 3 <= count <= MOST_LANDMARKS:
            yield (
                "standardise.percentiles",
                f'expected 3 to {MOST_LANDMARKS} with landmarks = "agree", since the first and the last become 0 and '
                f"1, got {count}",
            )
    elif method == "nyul" and (count < 2 or count != len(standardise.landmarks or ())):
        yield "standardise.landmarks", "expected at least two, one for each percentile"


def _feature_faults(study: Study) -> Iterator[tuple[str, str]]:
    labels = [feature.label for feature in study.feature]
    axes = _fitting(study.window.size)
    for feature in study.feature:
        if feature.window is None and feature.kind not in _WITHOUT_WINDOW:
            yield "feature.window", f'kind "{feature.kind}" needs it, it is missing: write window = 7'
        if feature.window is not None and feature.kind in _WITHOUT_WINDOW:
            yield "feature.window", f'kind "{feature.kind}" has no window: leave it out'
        if feature.name and not _NAME.fullmatch(feature.name):
            yield "feature.name", f"expected letters, digits, '.', '_' and '-', at most 64, got {feature.name!r}"
        if labels.count(feature.label) > 1:
            yield "feature", f"{feature.label!r} stands twice: leave one out, or give each a name of its own"
        if feature.window is None:
            continue
        sizes = feature.window if isinstance(feature.window, tuple) else (feature.window,) * 3
        if prod(sizes) >= 2**31:
            yield "feature.window", "a window must hold fewer than 2^31 voxels: make it smaller"
        axes &= _fitting(feature.window)
        if not axes:
            yield (
                "feature.window",
                f"no image has as many axes as {feature.label!r} and also those of the windows before it: "
                "give all windows one number, or one per axis of the images",
            )


_WITHOUT_WINDOW = ("intensity", "gradient")


def _fitting(size: Size) -> set[int]:
    """How many axes an image may have for a window of this size."""
    if isinstance(size, int):
        return {2, 3}
    return {2, 3} if len(size) == 3 and size[0] == 1 else {len(size)}


def _statistics_faults(study: Study) -> Iterator[tuple[str, str]]:
    asked = study.statistics
    if asked.gram and not study.feature:
        yield "statistics.gram", "the study has no feature: write [[feature]] tables, or leave gram out"
    for key, table in (("histogram", asked.histogram), ("glcm", asked.glcm)):
        if table is None:
            continue
        if not all(isfinite(end) for end in table.range):
            yield f"statistics.{key}.range", "expected finite numbers"
        elif table.range[0] >= table.range[1]:
            yield f"statistics.{key}.range", f"expected rising numbers, got {list(table.range)}"


def _evaluate_faults(study: Study) -> Iterator[tuple[str, str]]:
    if study.evaluate is None:
        return
    if not re.fullmatch("[0-9a-f]{64}", study.evaluate.digest):
        yield "evaluate.digest", "expected the 64 digits that `voxring train` prints of a model, got something else"
    if study.bounds.voxels_per_party * max(len(study.party), study.privacy.min_parties) >= 1 << 43:
        yield "bounds.voxels_per_party", "an evaluation counts fewer than 2^43 voxels in all: lower the bound"


_NOISY_TABLES = {
    "study": ("name", "classes", "window", "standardise", "privacy", "bounds", "party", "researcher", "relay"),
    "standardise": ("method", "fraction_bits", "range", "percentiles", "landmarks", "foreground", "colour"),
}
"""What may be in a study with differential privacy. What came later, or releases more than n, patients, sum and sdsum,
has no noise, and is refused rather than released without."""


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
        yield "differential_privacy.epsilon", f"expected 0.001 to 100, got {table.epsilon}"
    if table.mechanism == "laplace" and table.delta != 0:
        yield "differential_privacy.delta", 'mechanism "laplace" needs none: leave it out, or take "gaussian"'
    if table.mechanism == "gaussian" and not 1e-15 <= table.delta <= 1e-3:
        yield (
            "differential_privacy.delta",
            f'mechanism "gaussian" needs one of 1e-15 to 1e-3, far less than one in all patients, got {table.delta}',
        )
    if most is msgspec.UNSET:
        yield (
            "privacy.voxels_per_patient",
            "differential privacy needs it, it is missing: write how many voxels of a class one patient may count as",
        )
    elif isinstance(most, dict) and set(most) != set(study.classes):
        yield "privacy.voxels_per_patient", "expected a number for each class of the study, and for no other"
    elif max(most.values() if isinstance(most, dict) else [most]) > study.bounds.voxels_per_party:
        yield "privacy.voxels_per_patient", "a patient cannot have more voxels than bounds.voxels_per_party"
    if study.agrees:
        yield "standardise.landmarks", "differential privacy does not cover landmarks that are agreed on: write them"
    for where, of in (("study", study), ("standardise", study.standardise)):
        for field in msgspec.structs.fields(of):
            known = field.name in (*_NOISY_TABLES[where], "feature", "differential_privacy")
            unused = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            if not known and getattr(of, field.name) != unused:
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
        if not _NAME.fullmatch(name):
            yield "party.name", f"expected letters, digits, '.', '_' and '-', at most 64, got {name!r}"
        if name == "researcher":
            yield "party.name", "'researcher' is the name of the ring's master: choose another"
        if study.parties.count(name) > 1:
            yield "party.name", f"{name!r} stands twice: give each party a name of its own"
    addresses = [party.address for party in study.party if party.address]
    for address in addresses:
        if not _address_ok(address):
            yield "party.address", f"expected tcp://HOST:PORT or tls+tcp://HOST:PORT, got {address!r}"
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
