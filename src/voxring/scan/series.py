"""DICOM trees: series of images, and the SEG and RTSTRUCT that refer to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from voxring.errors import ImageError
from voxring.images import known_ending
from voxring.images.dicom import slices
from voxring.images.dicomfile import Dataset, is_dicom
from voxring.scan.found import Found

_SEGMENTS = {"SEG", "RTSTRUCT"}


@dataclass(slots=True)
class _Series:
    """An image series: its files by folder, its study, and whom it shows."""

    study: str
    patients: set[str] = field(default_factory=set)
    files: dict[Path, list[Path]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Segments:
    """A SEG or RTSTRUCT: the series it refers to, its study, and whom it shows."""

    path: Path
    study: str
    patient: str
    refers: frozenset[str]


def take(
    files: list[Path], found: Found, image: Callable[[Path], bool], ground_truth: Callable[[Path], bool]
) -> list[Path]:
    """Add the pairs of DICOM files; return the files that are none."""
    rest: list[Path] = []
    series: dict[str, _Series] = {}
    segments: list[_Segments] = []
    damaged: set[Path] = set()
    for path in files:
        if known_ending(path.name) not in (None, ".dcm"):
            rest.append(path)
            continue
        try:
            if not is_dicom(path):
                rest.append(path)
                continue
            dataset = Dataset.read(path)
            modality = dataset.text("Modality") or ""
            if modality not in _SEGMENTS and "PixelData" not in dataset:  # reports, plans, DICOMDIR
                continue
            study, own = dataset.text("StudyInstanceUID"), dataset.text("SeriesInstanceUID")
            if study is None or own is None:
                found.leave(path, "names no study or series")
                continue
            patient = dataset.text("PatientID") or ""
            if modality in _SEGMENTS:
                if ground_truth(path):
                    segments.append(_Segments(path, study, patient, frozenset(_references(dataset))))
            elif modality != "RTDOSE":
                one = series.setdefault(own, _Series(study))
                one.patients.add(patient)
                one.files.setdefault(path.parent, []).append(path)
        except ImageError as error:
            damaged.add(path.parent)
            found.leave(path, str(error).removeprefix(f"{path}: "))
        except OSError as error:
            found.leave(path, f"cannot be read: {error.strerror}")
    _match(series, segments, damaged, found, image)
    return rest


def _references(dataset: Dataset) -> Iterable[str]:
    """Yield the series that a SEG or an RTSTRUCT names."""
    items = dataset.items("ReferencedSeriesSequence")
    for frame in dataset.items("ReferencedFrameOfReferenceSequence"):
        for study in frame.items("RTReferencedStudySequence"):
            items += study.items("RTReferencedSeriesSequence")
    for item in items:
        uid = item.text("SeriesInstanceUID")
        if uid is not None:
            yield uid


def _match(
    series: dict[str, _Series],
    segments: list[_Segments],
    damaged: set[Path],
    found: Found,
    image: Callable[[Path], bool],
) -> None:
    crowded: dict[Path, int] = {}
    for one in series.values():
        for folder in one.files:
            crowded[folder] = crowded.get(folder, 0) + 1
    places = {
        uid: place for uid, one in series.items() if (place := _place(one, crowded, damaged, found)) and image(place)
    }
    images: dict[Path, list[Path]] = {place: [] for place in places.values()}
    truths: dict[Path, list[Path]] = {}
    patients: dict[Path, str] = {}
    for segment in segments:
        referred = [uid for uid in segment.refers if uid in series]
        if not referred and not segment.refers:
            referred = [uid for uid, other in series.items() if other.study == segment.study]
        fitting = [uid for uid in referred if uid in places]
        if referred and not fitting:
            found.leave(segment.path, "the series that it belongs to was left out")
            continue
        if any(series[uid].patients != {segment.patient} for uid in fitting):
            found.leave(segment.path, "it and the series that it refers to are of different patients")
            continue
        truths[segment.path] = sorted(places[uid] for uid in fitting)
        for uid in fitting:
            images[places[uid]].append(segment.path)
            patients[places[uid]] = segment.patient
    found.pair(images, truths, patients)


def _place(series: _Series, crowded: dict[Path, int], damaged: set[Path], found: Found) -> Path | None:
    """Return what names a series in a manifest: its file, or its folder if it is alone in there."""
    if len(series.files) > 1:
        for folder in series.files:
            found.leave(folder, f"a series lies in {len(series.files)} folders: put its slices in one")
        return None
    ((folder, paths),) = series.files.items()
    if len(series.patients) > 1:
        found.leave(folder, "a series has slices of different patients")
        return None
    if len(paths) == 1:
        return paths[0]
    if crowded[folder] > 1:
        found.leave(folder, f"{crowded[folder]} series lie in this folder: give each a folder of its own")
        return None
    if folder in damaged:
        found.leave(folder, "a DICOM file in this folder is damaged")
        return None
    try:
        slices(folder)
    except ImageError as error:  # what reading it would say
        found.leave(folder, str(error).removeprefix(f"{folder}: ").replace(str(found.root), "."))
        return None
    return folder
