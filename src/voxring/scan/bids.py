"""BIDS: anatomical images, and derivatives of them that end in _dseg or _mask or have an entity label-."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from voxring.images import known_ending
from voxring.scan.found import Found

_NAME = re.compile(r"(sub-[A-Za-z0-9]+(?:_[A-Za-z0-9]+-[A-Za-z0-9.+]+)*)_([A-Za-z0-9]+)")
_TRUTHS = {"dseg", "mask"}
# What derivatives add to the name of what they were made from.
_ADDED = {"desc", "label", "seg", "atlas", "from", "space"}
_OWN_SPACE = {"orig", "individual", "native", "scanner"}
_FOLDERS = {"anat", "ct", "pet"}
_OTHER_FOLDERS = {"func", "dwi", "fmap", "perf", "meg", "eeg", "ieeg", "beh", "micr", "motion", "mrs", "nirs"}


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    entities: dict[str, str]
    suffix: str
    derived: bool

    @property
    def is_truth(self) -> bool:
        return self.suffix in _TRUTHS or ("label" in self.entities and self.suffix != "probseg")


def take(
    files: list[Path], found: Found, image: Callable[[Path], bool], ground_truth: Callable[[Path], bool]
) -> list[Path]:
    """Add the pairs of BIDS data sets; return the files that are in none."""
    rest: list[Path] = []
    by_subject: dict[str, list[_File]] = {}
    truths: list[_File] = []
    for path in files:
        named = _parse(path, found.root)
        if named is None:
            rest.append(path)
        elif named.is_truth:
            truths.append(named)
        elif named.suffix != "probseg":
            by_subject.setdefault(named.entities["sub"], []).append(named)
    images: dict[Path, list[Path]] = {}
    fitting: dict[Path, list[Path]] = {}
    patients: dict[Path, str] = {}
    for truth in truths:
        subject = truth.entities["sub"]
        fits = [one.path for one in by_subject.get(subject, []) if _fits(one, truth)]
        if not fits:
            rest.append(truth.path)
        elif ground_truth(truth.path) and (wanted := [path for path in fits if image(path)]):
            fitting[truth.path] = wanted
            for path in wanted:
                images.setdefault(path, []).append(truth.path)
                patients[path] = f"sub-{subject}"
    # What was made from an image is no image that lacks a ground truth.
    rest += [one.path for ones in by_subject.values() for one in ones if one.path not in images and not one.derived]
    found.pair(images, fitting, patients)
    return sorted(rest)


def _parse(path: Path, root: Path) -> _File | None:
    ending = known_ending(path.name)
    matched = _NAME.fullmatch(path.name[: -len(ending)]) if ending else None
    if matched is None:
        return None
    entities = dict(part.split("-", 1) for part in matched[1].split("_"))
    derived = "derivatives" in path.relative_to(root).parts or not _ADDED.isdisjoint(entities)
    named = _File(path, entities, matched[2], derived)
    folder = path.parent.name
    return named if folder in _FOLDERS or (named.is_truth and folder not in _OTHER_FOLDERS) else None


def _fits(image: _File, truth: _File) -> bool:
    """Whether a ground truth's entities, but for those that derivatives add, are among the image's, in one space."""
    space, own = truth.entities.get("space"), image.entities.get("space")
    if space is None or space in _OWN_SPACE or space == image.suffix:
        # Made from the raw image; one in the same derivative set would be a copy of it.
        if own is not None or image.derived:
            return False
    elif space != own:
        return False
    if image.entities.get("ses") != truth.entities.get("ses"):
        return False
    shared = {key: value for key, value in truth.entities.items() if key not in _ADDED}
    return shared.items() <= image.entities.items()
