"""A label map as a DICOM SEG, through highdicom: the series' own patient, study and frame of reference stand in it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxring.errors import ImageError
from voxring.images.dicomframes import Frame
from voxring.images.image import Segment

_LABEL_LIMIT = 64  # characters of a Segment Label


class _Gathered:
    """Planes wait until all are there: the frames of a SEG are sorted by segment."""

    def __init__(self) -> None:
        self.planes: list[NDArray[Any]] = []

    def write(self, planes: NDArray[Any]) -> None:
        self.planes.append(planes)


@contextmanager
def opened(path: Path, image: Path, frames: Sequence[Frame], segments: Sequence[Segment]) -> Iterator[_Gathered]:
    """Gather planes, and write them as the segments of the image whose frames these are.

    Raises
    ------
    ImageError
        highdicom is not installed; or the image lacks what a SEG repeats of it, such as its patient and study.
    """
    try:
        import highdicom  # noqa: F401 - before anything is computed
    except ImportError:
        raise ImageError(
            f"{image.name}: labels of a DICOM series are written by highdicom, which is not installed: "
            "pip install 'voxring[dicom-seg]'"
        ) from None
    if len({frame.path for frame in frames}) not in (1, len(frames)):
        raise ImageError(
            f"{image.name}: a DICOM SEG refers to files of one frame each or to one file of many, and the series has "
            "both: convert it to one volume"
        )
    gathered = _Gathered()
    yield gathered
    labels = np.concatenate(gathered.planes)
    numbers = np.zeros(labels.shape, np.uint8 if len(segments) < 256 else np.uint16)
    for number, segment in enumerate(segments, 1):
        numbers[labels == segment.label] = number
    made = _segmentation(image, frames, numbers, segments)
    made.SpecificCharacterSet = "ISO_IR 192"  # names of any alphabet
    made.save_as(path, enforce_file_format=True)


def _segmentation(image: Path, frames: Sequence[Frame], numbers: NDArray[Any], segments: Sequence[Segment]) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    several = len({frame.path for frame in frames}) > 1
    if not several and len(frames) > 1:  # as the file has them
        numbers = numbers[np.argsort([frame.number for frame in frames])]
    paths = [frame.path for frame in frames] if several else [frames[0].path]
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="voxring", version=version("voxring"), family=codes.cid7162.ArtificialIntelligence
    )
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.name[:_LABEL_LIMIT],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, segment in enumerate(segments, 1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they may quote the patient
        try:
            return highdicom.seg.Segmentation(
                source_images=[_dataset(path, frames) for path in paths],
                pixel_array=numbers,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=described,
                series_instance_uid=highdicom.UID(),
                series_number=1,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="voxring",
                manufacturer_model_name="voxring",
                software_versions=version("voxring"),
                device_serial_number="0",
                content_label="VOXRING",
            )
        except AttributeError as error:
            lacking = f"it has no {error.name}" if error.name else "an attribute is missing"
        except (ValueError, TypeError, KeyError):  # its words may quote the patient
            lacking = "an attribute has a value that the standard does not allow"
    raise ImageError(
        f"{image.name}: a DICOM SEG repeats the patient, study and place of its series, and {lacking}: complete the "
        "series' headers, or convert it to NIfTI"
    )


def _dataset(path: Path, frames: Sequence[Frame]) -> Any:
    """A file's header. Where it leaves the thickness of slices out, as it may, it is the step from one to the next."""
    import pydicom

    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    step = math.dist(*(map(float, frame.position or ()) for frame in frames[:2])) if len(frames) > 1 else 1.0
    shared = dataset.get("SharedFunctionalGroupsSequence")
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    groups = [item for group in (*(shared or ()), *own) for item in group.get("PixelMeasuresSequence", ())]
    for place in groups or [dataset]:
        if place.get("SliceThickness") is None:
            place.SliceThickness = f"{step:.10g}"
    return dataset
