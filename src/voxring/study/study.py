"""A study as a whole: read, checked once, frozen; its canonical form and digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import msgspec

from voxring.errors import StudyError
from voxring.study.faults import faults
from voxring.study.tables import (
    Additive,
    Bounds,
    Colour,
    DifferentialPrivacy,
    Evaluate,
    Feature,
    Logistic,
    Party,
    Privacy,
    Researcher,
    Standardise,
    Window,
    fitting,
)

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
    logistic: Logistic | None = None
    differential_privacy: DifferentialPrivacy | None = None

    def __post_init__(self) -> None:
        if any(isinstance(table, dict) for table in (self.window, self.standardise, self.privacy, self.statistics)):
            raise StudyError("study: expected checked tables, got dicts: make a study of them with Study.of(…)")

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
    def axes(self) -> frozenset[int]:
        """How many axes an image of the study may have, 2 or 3 or either."""
        windows = [feature.window for feature in self.feature if feature.window is not None]
        return self.window.fits.intersection(*map(fitting, windows))

    def check_axes(self, ndim: int) -> None:
        """Refuse an image with so many axes, if a window of the study does not have them.

        Raises
        ------
        StudyError
            Says what to give instead.
        """
        windows: tuple[Window | Feature, ...] = (self.window, *self.feature)
        for one in windows:
            one.along(ndim)

    @property
    def blurs_axes(self) -> bool:
        """Whether its features mean one thing in planes and another in volumes, and it does not say which it takes."""
        return len(self.axes) > 1 and any(
            feature.kind == "gradient" or (isinstance(feature.window, int) and feature.window > 1)
            for feature in self.feature
        )

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
        if self.logistic is None:
            del tables["logistic"]
        if self.differential_privacy is None:
            del tables["differential_privacy"]
        return msgspec.json.encode(tables, order="sorted")

    def __repr__(self) -> str:
        return f"Study({self.name!r}, classes={self.classes}, parties={len(self.party)}, digest={self.digest[:12]!r})"

    def _repr_html_(self) -> str:
        from voxring.tables import html_table

        tables = msgspec.to_builtins(self)
        shown = ("window", "standardise", "privacy", "differential_privacy", "bounds", "statistics")
        rows = [("classes", _shown(self.classes))]
        rows += [(key.replace("_", " "), _shown(tables[key] or {})) for key in shown]
        if self.feature:
            rows.insert(3, ("features", ", ".join(feature.label for feature in self.feature)))
        if self.evaluate is not None:
            rows.append(("evaluates", f"model {self.evaluate.digest[:12]}"))
        if self.logistic is not None:
            rows.append(("logistic regression", f"at most {self.logistic.steps} steps"))
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

    def at(self, rows: Sequence[Sequence[int]], classes: Iterable[str]) -> AtWeights:
        """Return what is computed at a step of the logistic regression: these classes, and nothing else of them.

        Parameters
        ----------
        rows : sequence of rows of int
            Weights, as `voxring.learn.logistic` has them.
        classes : iterable of str
            Those that are released.
        """
        kept = {field.name: getattr(self, field.name) for field in msgspec.structs.fields(self)}
        kept |= {"classes": {name: self.classes[name] for name in classes}, "statistics": Additive(), "evaluate": None}
        return AtWeights(**kept, weights=tuple(tuple(map(str, row)) for row in rows))


class AtWeights(Study, frozen=True, kw_only=True):
    """A study at the weights of a step of its logistic regression (`Study.at`); no study file has weights.

    ``weights`` are decimal strings, since JSON has no integers as large.
    """

    weights: tuple[tuple[str, ...], ...]

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """The weights."""
        return tuple(tuple(map(int, row)) for row in self.weights)


def expect_study(given: object) -> None:
    """Refuse what is no study, such as the path of its file.

    Raises
    ------
    StudyError
        Says how to make one.
    """
    if not isinstance(given, Study):
        raise StudyError(
            f"expected a Study, got {type(given).__name__}: read a file with voxring.load_study(path), or make one "
            "with Study.of(name=…, classes=…)"
        )


def _shown(table: Mapping[str, object]) -> str:
    """What stands in a table, in one line, without what is off."""
    found = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            found.append(f"{key} ({_shown(value)})")
        elif isinstance(value, list | tuple):
            found.append(f"{key} [{', '.join(map(str, value))}]")
        elif value is True:
            found.append(key)
        elif value not in (None, False, 0, 0.0):
            found.append(f"{key} {value}")
    return ", ".join(found)


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
        raise StudyError(f"{path}: no such study file: check the path") from None
    except OSError as error:
        raise StudyError(f"{path}: cannot be read as a study: {error.strerror}: give the path of a TOML file") from None
    except UnicodeDecodeError:
        raise StudyError(f"{path}: cannot be read as a study: expected TOML, got something that is no text") from None
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
        from voxring.study.malformed import malformed

        raise StudyError(f"{source}: {malformed(error, tables, Study)}") from None
    for key, fault in faults(study):
        raise StudyError(f"{source}: {key}: {fault}")
    return study
