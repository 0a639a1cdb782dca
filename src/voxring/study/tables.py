"""The tables of a study file: what may stand in each, by type; `voxring.study.faults` knows what types cannot say."""

from __future__ import annotations

import re
from fractions import Fraction
from math import lcm, prod
from typing import Annotated, Literal

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
MOST_STEPS = 40
"""Of a logistic regression."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _along(size: Size, ndim: int, key: str) -> tuple[int, int, int]:
    sizes = (size,) * ndim if isinstance(size, int) else size
    if ndim == 2 and len(sizes) == 3 and sizes[0] == 1:
        sizes = sizes[1:]
    if len(sizes) != ndim:
        raise _other_axes(f"{key} has {len(sizes)} numbers", len(sizes), ndim)
    return (1, *sizes)[-3:]  # type: ignore[return-value]  # 1 + 2 or 1 + 3 numbers, the last 3


def _other_axes(what: str, wanted: int, ndim: int) -> StudyError:
    give = "a whole volume" if wanted == 3 else "one plane at a time"
    return StudyError(
        f"study: {what}, the image has {ndim} axes: give {give}, or take a study or model of images with {ndim} axes"
    )


def fitting(size: Size) -> frozenset[int]:
    """How many axes an image may have for a window of this size."""
    if isinstance(size, int):
        return frozenset((2, 3))
    return frozenset((2, 3) if len(size) == 3 and size[0] == 1 else (len(size),))


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The window of the local mean (Section 3.1: c × c), its size along the axes and what it sees past the border.

    ``size`` is one number for all axes or one per axis, (rows, columns) or (planes, rows, columns); 1 leaves an axis
    out. ``fill`` is what lies outside under ``constant``, in standardised units. ``axes`` is how many all images have,
    2 or 3. Where neither it nor a size says so, images of both kinds are taken, and one number holds along all axes of
    each.
    """

    size: Size = 7
    border: Border = "reflect"
    fill: float = 0.0
    axes: Literal[2, 3] | msgspec.UnsetType = msgspec.UNSET  # is left out of the canonical form, as it came later

    @property
    def fits(self) -> frozenset[int]:
        """How many axes an image may have."""
        return fitting(self.size) if self.axes is msgspec.UNSET else fitting(self.size) & {self.axes}

    def along(self, ndim: int) -> tuple[int, int, int]:
        """Return the size along (planes, rows, columns) of an image with ndim axes; a 2D image is one plane.

        Raises
        ------
        StudyError
            The study is for images with other axes.
        """
        if self.axes is not msgspec.UNSET and self.axes != ndim:
            raise _other_axes(f"window.axes is {self.axes}", self.axes, ndim)
        return _along(self.size, ndim, "window.size")

    @property
    def denominator(self) -> int:
        """Least common multiple L of all window counts that can occur in an image of the study.

        ``axes`` changes no number of an image that it allows, so it does not change L either.
        """
        shapes = [_along(self.size, ndim, "window.size") for ndim in fitting(self.size)]
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


class Logistic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A logistic regression of the classes on the features, by Newton steps among the parties.

    ``steps`` is how many there may be at most; each needs a pass over the images and a secure sum. ``strength`` is
    scikit-learn's C, the inverse of the penalty on squared coefficients.
    """

    steps: Annotated[int, msgspec.Meta(ge=1, le=MOST_STEPS)] = 20
    strength: float = 1.0
