"""DICOM files for tests, written by pydicom: slices, multi-frame images, SEG and RTSTRUCT. Affines are RAS+."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

PATIENT = "Doe^Jane"
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
SEG, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"
STUDY, SERIES, FRAME_OF_REFERENCE = "1.2.3.1", "1.2.3.2", "1.2.3.3"


def item(**elements):
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, Sequence(value) if isinstance(value, list) and name.endswith("Sequence") else value)
    return made


def decimals(numbers):
    """Decimal strings of at most 16 characters."""
    return [f"{float(number):.10g}" for number in numbers]


def lps(affine):
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def geometry(affine):
    """PixelSpacing and ImageOrientationPatient."""
    columns, rows = lps(affine)[:3, 0], lps(affine)[:3, 1]
    spacing = np.linalg.norm(rows), np.linalg.norm(columns)
    return decimals(spacing), decimals([*(columns / spacing[1]), *(rows / spacing[0])])


def position(affine, plane):
    return decimals((lps(affine) @ [0, 0, plane, 1])[:3])


def header(sop_class, modality, series, **elements):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = item(
        SOPClassUID=sop_class, SOPInstanceUID=meta.MediaStorageSOPInstanceUID, Modality=modality, PatientName=PATIENT,
        PatientID="4711", StudyInstanceUID=STUDY, SeriesInstanceUID=series, FrameOfReferenceUID=FRAME_OF_REFERENCE,
    )  # fmt: skip
    made.file_meta = meta
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def pixels(made, array, **changes):
    """Add pixels that fill the array's integers; ``changes`` set the header against them."""
    bits = array.dtype.itemsize * 8
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.Rows, made.Columns = array.shape[-2:]
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, bits, bits - 1
    made.PixelRepresentation = int(array.dtype.kind == "i")
    raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
    made.add_new("PixelData", "OW", raw + bytes(len(raw) % 2))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def save(made, path, **how):
    made.save_as(path, enforce_file_format=True, **how)
    return path


def ct_slice(array, affine, plane=0, series=SERIES, **changes):
    spacing, orientation = geometry(affine)
    made = header(CT, "CT", series)
    made.PixelSpacing, made.ImageOrientationPatient = spacing, orientation
    made.ImagePositionPatient = position(affine, plane)
    made.RescaleSlope, made.RescaleIntercept = "1", "0"
    return pixels(made, array, **changes)


def write_series(folder: Path, array, affine, names=None, **changes):
    """Write a volume as one file a plane, under names that say nothing of the order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = names or [f"{(plane * 7919) % 100_003:06d}.dcm" for plane in range(len(array))]
    for plane, (name, one) in enumerate(zip(names, array, strict=True)):
        save(ct_slice(one, affine, plane, **changes), folder / name)
    return folder


def shared(affine, **more):
    spacing, orientation = geometry(affine)
    return item(
        PixelMeasuresSequence=[item(PixelSpacing=spacing)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=orientation)],
        **more,
    )


def multiframe(array, affine, order=None, slope="1", intercept="0", **changes):
    """An enhanced CT whose frames stand in this order."""
    order = list(range(len(array)) if order is None else order)
    made = header(ENHANCED_CT, "CT", SERIES, NumberOfFrames=len(order))
    value = [item(RescaleSlope=slope, RescaleIntercept=intercept)]
    made.SharedFunctionalGroupsSequence = Sequence([shared(affine, PixelValueTransformationSequence=value)])
    made.PerFrameFunctionalGroupsSequence = Sequence(
        item(PlanePositionSequence=[item(ImagePositionPatient=position(affine, plane))]) for plane in order
    )
    return pixels(made, np.ascontiguousarray(array[order]), **changes)


def seg(segments, affine, *, full=None, every=False, series="1.2.3.4"):
    """A SEG of ``{number: (name, mask)}``; only planes with something in them, the highest first, unless ``every``."""
    made = header(SEG, "SEG", series)
    made.SegmentationType = "BINARY" if full is None else "FRACTIONAL"
    if full is not None:
        made.MaximumFractionalValue = full
    made.SegmentSequence = Sequence(item(SegmentNumber=n, SegmentLabel=name) for n, (name, _) in segments.items())
    made.ReferencedSeriesSequence = Sequence([item(SeriesInstanceUID=SERIES)])
    made.SharedFunctionalGroupsSequence = Sequence([shared(affine)])
    groups, frames = [], []
    for number, (_, mask) in segments.items():
        for plane in reversed(range(len(mask))):
            if every or mask[plane].any():
                groups.append(
                    item(
                        PlanePositionSequence=[item(ImagePositionPatient=position(affine, plane))],
                        SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)],
                    )
                )
                frames.append(mask[plane])
    made.PerFrameFunctionalGroupsSequence = Sequence(groups)
    made.NumberOfFrames = len(frames)
    stack = np.array(frames)
    if full is not None:
        return pixels(made, np.where(stack, full, 0).astype("u1") if stack.dtype == bool else stack)
    pixels(made, stack.astype("u1"), BitsAllocated=1, BitsStored=1, HighBit=0)
    packed = np.packbits(stack.ravel(), bitorder="little").tobytes()
    made.PixelData = packed + bytes(len(packed) % 2)
    return made


def rtstruct(regions, *, series="1.2.3.5", kind="CLOSED_PLANAR"):
    """An RTSTRUCT of ``{number: (name, [vertices (n, 3) in RAS])}``."""
    made = header(RTSTRUCT, "RTSTRUCT", series, StructureSetLabel="test")
    made.ReferencedFrameOfReferenceSequence = Sequence([
        item(RTReferencedStudySequence=[item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=SERIES)])])
    ])  # fmt: skip
    made.StructureSetROISequence = Sequence(item(ROINumber=n, ROIName=name) for n, (name, _) in regions.items())
    made.ROIContourSequence = Sequence(
        item(
            ReferencedROINumber=number,
            ContourSequence=[
                item(
                    ContourGeometricType=kind,
                    NumberOfContourPoints=len(points),
                    ContourData=decimals((np.asarray(points) * [-1, -1, 1]).ravel()),
                )
                for points in contours
            ],
        )
        for number, (_, contours) in regions.items()
    )
    return made


def trace(mask):
    """Follow the edges between voxels of a plane: closed loops of (column, row) vertices at half voxels."""
    padded = np.pad(mask, 1)
    out: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, column in np.argwhere(mask):
        ring = [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)]
        beside = [
            padded[row, column + 1],
            padded[row + 1, column + 2],
            padded[row + 2, column + 1],
            padded[row + 1, column],
        ]
        for at, taken in enumerate(beside):
            if not taken:
                out.setdefault(ring[at], []).append(ring[(at + 1) % 4])
    loops = []
    while out:
        start = at = next(iter(out))
        loop = []
        while True:
            ends = out[at]
            loop.append(at)
            at_next = ends.pop()
            if not ends:
                del out[at]
            at = at_next
            if at == start:
                break
        corners = [
            here
            for before, here, after in zip(loop[-1:] + loop[:-1], loop, loop[1:] + loop[:1], strict=True)
            if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1])
        ]
        loops.append(np.array(corners) - 0.5)
    return loops


def contours_of(mask, affine):
    """The contours of a volume, in RAS."""
    found = []
    for plane, one in enumerate(mask):
        for loop in trace(one):
            voxels = np.column_stack([loop, np.full(len(loop), plane), np.ones(len(loop))])
            found.append((voxels @ affine.T)[:, :3])
    return found
