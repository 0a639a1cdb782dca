"""The frames of a DICOM file: where each lies in the patient, and what its numbers mean."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from voxring.errors import ImageError
from voxring.images.dicomfile import Dataset
from voxring.images.dicompixels import Layout

Vector = tuple[Fraction, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """One plane: where its pixels stand, and what they mean. Lengths in millimetres, LPS."""

    path: Path
    number: int  # in its file, from 0
    layout: Layout
    position: Vector | None
    orientation: Vector | None  # the directions in which columns and rows rise
    spacing: Vector | None  # between rows, between columns
    slope: Fraction
    intercept: Fraction

    @property
    def name(self) -> str:
        """Name it in messages."""
        return self.path.name if self.layout.frames == 1 else f"frame {self.number + 1} of {self.path.name}"

    @property
    def steps(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the steps from a column to the next, and from a row to the next."""
        between_rows, between_columns = self.spacing or ()
        directions = self.orientation or ()
        return (
            tuple(float(between_columns * part) for part in directions[:3]),
            tuple(float(between_rows * part) for part in directions[3:]),
        )


def frames_of(dataset: Dataset) -> list[Frame]:
    """Read the frames of an image."""
    layout = Layout.of(dataset)
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        if layout.frames > 1:
            raise ImageError(
                f"{dataset.path}: its {layout.frames} frames state no positions (a film?): expected a volume, whose "
                "frames do"
            )
        return [frame_of(dataset.path, 0, layout, [dataset])]
    return [frame_of(dataset.path, number, layout, group) for number, group in enumerate(groups(dataset, layout))]


def groups(dataset: Dataset, layout: Layout) -> list[list[Dataset]]:
    """Return, for each frame, the items that describe it, its own before those shared by all."""
    of_frames = dataset.items("PerFrameFunctionalGroupsSequence")
    if len(of_frames) != layout.frames:
        raise ImageError(
            f"{dataset.path}: it declares {layout.frames} frames and describes {len(of_frames)}: the file is damaged"
        )
    shared = _described(dataset.items("SharedFunctionalGroupsSequence"))
    return [_described([own]) + shared for own in of_frames]


_GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "SegmentIdentificationSequence",
)


def _described(items: list[Dataset]) -> list[Dataset]:
    return [item for source in items for name in _GROUPS for item in source.items(name)]


def frame_of(path: Path, number: int, layout: Layout, sources: list[Dataset]) -> Frame:
    """Gather what the sources say of a frame; the first that says something counts."""

    def decimals(name: str, count: int) -> Vector | None:
        for source in sources:
            if name in source and source.place(name).length:
                return source.decimals(name, count)
        return None

    slope, intercept = decimals("RescaleSlope", 1), decimals("RescaleIntercept", 1)
    return Frame(
        path,
        number,
        layout,
        decimals("ImagePositionPatient", 3),
        decimals("ImageOrientationPatient", 6),
        decimals("PixelSpacing", 2),
        slope[0] if slope else Fraction(1),
        intercept[0] if intercept else Fraction(0),
    )
