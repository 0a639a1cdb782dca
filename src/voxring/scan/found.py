"""What a scan found, and what it left out and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its ground truth. ``patient`` is who the files say; it is written nowhere as it is."""

    image: Path
    ground_truth: Path
    patient: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that is in no pair, by its path below the scanned folder, and the reason."""

    path: str
    reason: str


@dataclass(slots=True)
class Found:
    """Pairs and what was left out, below a folder."""

    root: Path
    pairs: list[Pair] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def name(self, path: Path) -> str:
        """Return a path as it stands in messages: below the root where it is."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()

    def leave(self, path: Path, reason: str) -> None:
        """Leave a file or folder out."""
        self.left_out.append(LeftOut(self.name(path), reason))

    def pair(self, images: dict[Path, list[Path]], truths: dict[Path, list[Path]], patients: dict[Path, str]) -> None:
        """Pair images with ground truths where either fits one alone, and leave out the others.

        Parameters
        ----------
        images : dict
            The ground truths that fit each image.
        truths : dict
            The images that fit each ground truth; the same relation, seen from there.
        patients : dict
            Who an image is of, where that is known.
        """
        for image, fitting in images.items():
            if not fitting:
                self.leave(image, "no ground truth found for this image")
            elif len(fitting) > 1:
                self.leave(image, f"{len(fitting)} ground truths fit: choose one with --ground-truth PATTERN")
            elif len(truths[fitting[0]]) > 1:
                self.leave(image, f"its ground truth fits {len(truths[fitting[0]])} images")
            else:
                self.pairs.append(Pair(image, fitting[0], patients.get(image, "")))
        for truth, fitting in truths.items():
            if not fitting:
                self.leave(truth, "no image found for this ground truth")
            elif len(fitting) > 1:
                self.leave(truth, f"{len(fitting)} images fit: choose one with --image PATTERN")
            elif len(images[fitting[0]]) > 1:
                self.leave(truth, f"one of {len(images[fitting[0]])} ground truths of its image")

    def arrange(self) -> None:
        """Put all in the order of paths, and leave out pairs that a manifest cannot hold."""
        kept: list[Pair] = []
        seen: set[tuple[Path, Path]] = set()
        for pair in sorted(self.pairs, key=lambda pair: (pair.image, pair.ground_truth)):
            files = (pair.image.resolve(), pair.ground_truth.resolve())
            bad = next((path for path in (pair.image, pair.ground_truth) if not _fits_a_cell(path)), None)
            if bad is not None:
                self.leave(bad, "a name on its path begins or ends with a blank, or is no plain text: rename it")
            elif files in seen:
                self.leave(pair.image, "a link to an image that is in the manifest with the same ground truth")
            else:
                kept.append(pair)
            seen.add(files)
        self.pairs = kept
        self.left_out.sort(key=lambda one: (one.path, one.reason))


def _fits_a_cell(path: Path) -> bool:
    return str(path).isprintable() and all(part == part.strip() for part in path.parts)
