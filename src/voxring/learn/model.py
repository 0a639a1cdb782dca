"""A classifier in a file: what makes its features, what it was made from, and how. No code, no pickle.

The file is JSON with sorted keys and no white space. It holds exact sums, never rounded weights: weights are made
from them whenever it is read (`voxring.learn.discriminant`).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from voxring.devices import Device, takes_gpu
from voxring.errors import ImageError, ModelError, StudyError
from voxring.learn import discriminant as made
from voxring.learn.discriminant import Discriminant
from voxring.learn.moments import Moments, check_class, fraction_of, pair_of, predicted_labels
from voxring.standardise import Scaled
from voxring.study import Study
from voxring.tables import html_table

if TYPE_CHECKING:
    from voxring.features import FeatureStack
    from voxring.kernels.cpu.classify import Weights

FORMAT = "voxring-model"
VERSION = 1
CLASSIFIERS: Mapping[str, Callable[..., Discriminant]] = {
    "gnb": made.naive_bayes,
    "lda": made.linear,
    "logistic": made.logistic,
    "qda": made.quadratic,
    "ridge": made.ridge,
}
_SETTINGS = {
    "gnb": ("priors", "smoothing"),
    "lda": ("priors", "shrinkage"),
    "logistic": ("weights",),
    "qda": ("priors", "shrinkage"),
    "ridge": ("alpha",),
}


class _Settings(msgspec.Struct, forbid_unknown_fields=True):
    priors: tuple[float, ...] | None = None
    smoothing: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    shrinkage: float | str | None = None
    alpha: Annotated[float, msgspec.Meta(ge=0)] | None = None
    weights: tuple[tuple[tuple[str, str], ...], ...] | None = None


EITHER = (
    "the model's study does not say how many axes its images have, so it takes planes and volumes alike, though its "
    "features mean another thing in each: give it such as it was trained on; axes = 3 (or 2) under [window] makes the "
    "next study and its model refuse others"
)
"""Where `Study.blurs_axes`."""

_TABLES = ("name", "classes", "window", "standardise", "bounds", "feature")  # what feature maps depend on

Array = npt.NDArray[Any]
_VOXELS = 1 << 21
"""Voxels that a GPU predicts together, unless a plane alone has more: their maps take some 100 bytes a voxel."""


@dataclass(frozen=True)
class Model:
    """A classifier of voxels, with all that is needed to use it on new images.

    Attributes
    ----------
    study : Study
        Without parties, researcher, privacy and statistics; `voxring.features.feature_maps` takes it.
    moments : Moments
    classifier : {"gnb", "lda", "logistic", "qda", "ridge"}
    settings : mapping
        Those that differ from the defaults of the classifier.

    Examples
    --------
    >>> study = Study.of(name="t", classes={"fat": 3, "liver": 5}, feature=[{"kind": "intensity"}])
    >>> moments = Moments.of_arrays([[0.0], [1.0], [5.0], [6.0]], [3, 3, 5, 5], names=["intensity"])
    >>> model = Model.of(study, moments, "lda")
    >>> model.labels([np.array([[0, 2, 6]]) * study.unit])
    array([[3, 3, 5]], dtype=uint8)
    >>> Model.parse(model.canonical()).digest == model.digest
    True
    """

    study: Study
    moments: Moments
    classifier: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, moments: Moments, classifier: str, **settings: Any) -> Model:
        """Make and check a model.

        Raises
        ------
        ModelError
            The classifier or a setting is unknown, the moments are not those of the study's features, or nothing can
            be made from them, as where a feature is constant.
        """
        if not isinstance(classifier, str) or classifier not in CLASSIFIERS:
            raise ModelError(f"classifier: expected one of {', '.join(CLASSIFIERS)}, got {classifier!r}")
        given = {key: value for key, value in settings.items() if value is not None}
        if isinstance(given.get("priors"), Sequence | np.ndarray) and not isinstance(given["priors"], str):
            given["priors"] = list(given["priors"])
        unknown = sorted(set(given) - set(_SETTINGS[classifier]))
        if unknown:
            raise ModelError(
                f"{classifier} has no setting {unknown[0]!r}: it has {' and '.join(_SETTINGS[classifier])}"
            )
        try:
            msgspec.convert(given, _Settings)
        except msgspec.ValidationError as error:
            from voxring.study.malformed import malformed

            raise ModelError(f"settings of {classifier}: {malformed(error, given, _Settings)}") from None
        features = tuple(feature.label for feature in study.feature)
        if moments.features != features:
            raise ModelError(
                f"expected sums of the study's features {', '.join(features)}, got {', '.join(moments.features)}"
            )
        names = {label: name for name, label in predicted_labels(study).items()}
        if not set(moments.labels) <= set(names) or list(moments.labels) != sorted(moments.labels):
            raise ModelError(
                f"expected sums of the study's classes {', '.join(names.values())} in the order of their labels"
            )
        moments = replace(moments, classes=tuple(names[label] for label in moments.labels))
        kept = {key: value for key, value in msgspec.to_builtins(study).items() if key in _TABLES}
        model = cls(Study.of(**kept), moments, classifier, given)
        _ = model.discriminant
        return model

    @classmethod
    def parse(cls, content: bytes, *, source: str = "model") -> Model:
        """Read a model from the bytes of its file; ``source`` names it in errors.

        Raises
        ------
        ModelError
            It is no model, of a later format, was changed, or nothing can be made from it.
        """
        try:
            document = msgspec.json.decode(content, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            what = _told(content, error)
            raise ModelError(f"{source}: expected a model that `voxring train` wrote, got {what}") from None
        if document.format != FORMAT or document.version != VERSION:
            raise ModelError(
                f"{source}: expected {FORMAT} of version {VERSION}, got {document.format} of version "
                f"{document.version}: a later voxring may read it"
            )
        if document.digest != _digest(msgspec.to_builtins(document)):
            raise ModelError(f"{source}: the digest is not that of the content: the file was changed; fetch it again")
        try:
            study = Study.of(**document.study)
            moments = _moments(document, study)
            return cls.of(study, moments, document.classifier, **document.settings)
        except (ModelError, StudyError) as error:
            raise ModelError(f"{source}: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Model:
        """Read a model file; see `parse`."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: no model can be read there: {error.strerror}") from None
        return cls.parse(content, source=str(path))

    def save(self, path: str | Path) -> None:
        """Write the model file, whole or not at all.

        Raises
        ------
        ModelError
            The folder is missing or cannot be written.
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_bytes(self.canonical() + b"\n")
            partial.replace(path)
        except OSError as error:
            raise ModelError(f"{path}: the model cannot be written: {error.strerror}") from None

    def canonical(self) -> bytes:
        """The file's content: JSON with sorted keys and no white space, its digest among them."""
        document = self._document()
        return msgspec.json.encode(document | {"digest": _digest(document)}, order="sorted")

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form without the digest, in hexadecimal."""
        return _digest(self._document())

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probability maps, which is that of their labels."""
        return self.moments.classes

    @property
    def values(self) -> tuple[int, ...]:
        """What each class is in a label map."""
        return self.moments.labels

    @property
    def probabilistic(self) -> bool:
        """Whether the classifier gives probabilities; ridge does not."""
        return self.discriminant.probabilistic

    @cached_property
    def discriminant(self) -> Discriminant:
        """The rounded numbers that voxels are scored with."""
        return CLASSIFIERS[self.classifier](self.moments, **self.settings)

    def predict(
        self,
        image: Array | str | Path,
        *,
        slope: float | Fraction = 1.0,
        intercept: float | Fraction = 0.0,
        device: Device = "cpu",
        threads: int | None = None,
    ) -> Array:
        """Return the label map of an image: features are computed and scored some planes at a time.

        Parameters
        ----------
        image : (rows, cols) or (planes, rows, cols) array, or path
            Stored intensities, or an image file, which says slope and intercept itself.
        slope, intercept : float or Fraction
            The intensity that a stored v of an array stands for is slope·v + intercept.
        device : {"cpu", "cuda", "auto"}
            Where to compute, as for `stack`; every device gives the same map.
        threads : int, optional
            Threads of this call; they change no result.

        Returns
        -------
        uint8 or uint16 array of the image's shape

        Raises
        ------
        ImageError, StudyError
            The image cannot be read, or its values or axes are not those that the study expects.
        DeviceError
            As for `stack`.

        Warns
        -----
        UserWarning
            The study does not say how many axes its images have, and features mean another thing with each number.
        """
        if self.study.blurs_axes:
            warnings.warn(EITHER, stacklevel=2)
        if isinstance(image, str | Path):
            from voxring.images import read_image

            read = read_image(image, self.study.colour)
            try:
                return self._predict(
                    read.voxels, slope=read.slope, intercept=read.intercept, device=device, threads=threads
                )
            except (ImageError, StudyError) as error:
                raise type(error)(f"{Path(image).name}: {error}") from error
        return self._predict(image, slope=slope, intercept=intercept, device=device, threads=threads)

    def _predict(self, image: Array, **how: Any) -> Array:
        stack = self.stack(image, **how)
        count = len(image) if image.ndim == 3 else 1
        step = max(1, _VOXELS * count // image.size) if stack.on_gpu else count
        slabs = ((first, min(first + step, count)) for first in range(0, count, step))
        parts = [self.classify_planes(stack, slab, probabilities=False)[0] for slab in slabs]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def __repr__(self) -> str:
        features = ", ".join(self.moments.features)
        return f"Classifier({self.classifier!r}, classes: {', '.join(self.classes)}; features: {features})"

    def _repr_html_(self) -> str:
        moments = self.moments
        rows = [
            [name, self.values[k], f"{moments.counts[k]:,}", *(f"{float(mean):.6g}" for mean in moments.mean(k))]
            for k, name in enumerate(moments.classes)
        ]
        titles = ["class", "label", "voxels", *(f"mean of {name}" for name in moments.features)]
        return html_table(f"Classifier {self.classifier} of {self.study.name}", titles, rows)

    def labels(self, maps: Sequence[Array], *, threads: int | None = None) -> Array:
        """Return the label map of an image.

        Parameters
        ----------
        maps : sequence of integer arrays of one shape
            As of `voxring.features.feature_maps`, for the whole image or some planes of it.
        threads : int, optional
            Threads of this call; they change no result.

        Returns
        -------
        uint8 or uint16 array of the maps' shape

        Raises
        ------
        ModelError
            The maps are not as many as the features, of different shapes, or not of integers.
        """
        found: Array = self._classify(maps, threads, labels=True, probabilities=False)[0]
        return found

    def probabilities(self, maps: Sequence[Array], *, threads: int | None = None) -> Array:
        """Return the probability maps of an image, one a class, as float32 of shape ``(classes, *shape)``.

        Raises
        ------
        ModelError
            As of `labels`; or the classifier gives no probabilities.
        """
        found: Array = self._classify(maps, threads, labels=False, probabilities=True)[1]
        return found

    def classify(self, maps: Sequence[Array], *, threads: int | None = None) -> tuple[Array, Array]:
        """Return the label map and the probability maps, scored once."""
        return self._classify(maps, threads, labels=True, probabilities=True)

    def stack(
        self,
        image: Array,
        *,
        slope: float | Fraction = 1.0,
        intercept: float | Fraction = 0.0,
        device: Device = "cpu",
        threads: int | None = None,
        scaled: Scaled | None = None,
    ) -> FeatureStack:
        """Return an image's features, to be made and classified slab by slab where ``device`` says.

        "auto" is the CPU for integers beyond 32 bits, and for more features and classes than a GPU has room for.

        Raises
        ------
        ImageError, StudyError
            The image's values or axes are not those that the study expects.
        DeviceError
            ``device="cuda"`` and no GPU answers, or has no room; or the standardised integers have more than 32 bits.
        """
        from voxring.features import FeatureStack

        if device == "auto" and takes_gpu(device):
            from voxring.kernels import cuda

            if not cuda.has_room(len(self.moments.features), len(self.classes)):
                device = "cpu"
        return FeatureStack(
            image, self.study, slope=slope, intercept=intercept, device=device, threads=threads, scaled=scaled
        )

    def classify_planes(
        self, stack: FeatureStack, planes: tuple[int, int], *, probabilities: bool
    ) -> tuple[Array, Array]:
        """Return the labels and, if wanted, the probabilities of some planes, made where the stack's features are.

        On the processor a thread makes the maps of a few planes and classifies them at once: they are still in a cache,
        no more of them are ever in hand, and threads need not wait for each other after each kind of map.
        """
        self._check_probabilistic(probabilities)
        weights, values = self._weights(), self._label_values()
        if stack.on_gpu:
            return stack.classified(planes, weights, values, labels=True, probabilities=probabilities)
        from voxring.kernels.cpu.boxes import evenly
        from voxring.kernels.cpu.classify import classify_into, room_for
        from voxring.kernels.cpu.threads import in_threads

        (first, stop), shape, workers = planes, stack.shape_of(planes), stack.workers
        into = room_for(prod(shape), values, labels=True, probabilities=probabilities)
        plane, deep, inner = prod(shape) // (stop - first), stack.deep, workers
        if stop - first >= 2 * workers:
            deep, inner = min(deep, -(-(stop - first) // (2 * workers))), 1

        def classify(part: tuple[int, int]) -> None:
            maps = [one.reshape(-1) for one in stack.maps(part, inner)]
            classify_into(into, (part[0] - first) * plane, maps, self.study.unit, weights, values, inner)

        in_threads(classify, evenly(first, stop, deep), workers // inner)
        return into[0].reshape(shape), into[1].reshape(-1, *shape) if probabilities else into[1]

    def _check_probabilistic(self, wanted: bool) -> None:
        if wanted and not self.probabilistic:
            raise ModelError(f"{self.classifier} gives labels alone: use lda, qda, gnb or logistic for probabilities")

    def _weights(self) -> Weights:
        from voxring.kernels.cpu.classify import Weights

        of = self.discriminant
        return Weights(of.centres, of.linear, of.constants, of.whiten, of.offsets)

    def _label_values(self) -> Array:
        return np.array(self.values, np.uint8 if max(self.values) < 256 else np.uint16)

    def _classify(
        self, maps: Sequence[Array], threads: int | None, *, labels: bool, probabilities: bool
    ) -> tuple[Any, Any]:
        from voxring.kernels.cpu.classify import classify

        if len(maps) != len(self.moments.features):
            raise ModelError(f"expected a map of each of {len(self.moments.features)} features, got {len(maps)}")
        if any(one.shape != maps[0].shape or one.dtype.kind not in "iu" for one in maps):
            raise ModelError("expected feature maps of one shape, of integers")
        self._check_probabilistic(probabilities)
        weights, values = self._weights(), self._label_values()
        return classify(
            maps, self.study.unit, weights, values, labels=labels, probabilities=probabilities, threads=threads
        )

    def _document(self) -> dict[str, Any]:
        moments = self.moments
        tables = {key: value for key, value in msgspec.to_builtins(self.study).items() if key in _TABLES}
        return {
            "format": FORMAT,
            "version": VERSION,
            "study": tables,
            "classifier": self.classifier,
            "settings": dict(self.settings),
            "moments": [
                {
                    "class": name,
                    "voxels": moments.counts[k],
                    "feature_sums": [pair_of(value) for value in moments.sums[k]],
                    "gram": [[pair_of(value) for value in row] for row in moments.grams[k]],
                }
                for k, name in enumerate(moments.classes)
            ],
        }


Classifier = Model
"""What a model is called where it is used: ``voxring.Classifier``."""


class _Class(msgspec.Struct, forbid_unknown_fields=True, rename={"name": "class"}):
    name: str
    voxels: int
    feature_sums: list[list[str]]
    gram: list[list[list[str]]]


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    version: int
    study: dict[str, Any]
    classifier: str
    settings: dict[str, Any]
    moments: list[_Class]
    digest: str


def _told(content: bytes, error: Exception) -> str:
    """What a file is that is no model, in the words of somebody who took one file for another."""
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "something that is no JSON: give the model before the images"
    if isinstance(document, dict) and {"study", "digest", "classes"} <= set(document):
        return "a result: make a model of it with `voxring train`"
    if isinstance(document, dict) and document.get("format") == FORMAT:
        return f"one that is damaged: {error}: fetch it again"
    return "other JSON: give the file that --out of `voxring train` named"


def _digest(document: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(msgspec.json.encode(rest, order="sorted")).hexdigest()


def _moments(document: _Document, study: Study) -> Moments:
    labels = predicted_labels(study)
    features = tuple(feature.label for feature in study.feature)
    sums, grams = [], []
    for one in document.moments:
        if one.name not in labels or [other.name for other in document.moments].count(one.name) > 1:
            raise ModelError(f"class {one.name!r} is not of the study, or stands twice")
        sums.append(tuple(fraction_of(pair) for pair in one.feature_sums))
        grams.append(tuple(tuple(fraction_of(pair) for pair in row) for row in one.gram))
        check_class(one.name, one.voxels, sums[-1], grams[-1], len(features))
    names = tuple(one.name for one in document.moments)
    counts = tuple(one.voxels for one in document.moments)
    return Moments(names, tuple(labels[name] for name in names), features, counts, tuple(sums), tuple(grams))
