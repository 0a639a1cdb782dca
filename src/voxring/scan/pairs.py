"""Pairs by name: a ground truth named as its image with an ending such as _seg, or alike in a folder beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from voxring.images import known_ending
from voxring.scan.found import Found

_TRUTH = re.compile(
    r"(.+?)[ ._-](?:d?seg|segmentation|label|labels|labelmap|mask|gt|groundtruth|ground_truth)", re.I | re.S
)
_IMAGE = re.compile(r"(.+?)[ ._-](?:image|img|0000)", re.I | re.S)
_MODALITY = re.compile(
    r"(.+?)[ ._-](?:ct|cta|cbct|mra?|mri|pet|pt|us|t1w?|t1c[ew]?|t2w?|flair|dwi|adc|scan|vol(?:ume)?)", re.I | re.S
)
_CHANNEL = re.compile(r"(.+)_\d{4}", re.S)
# Folders that stand beside each other, as images and labels, or nnU-Net's imagesTr and labelsTr.
_IMAGE_FOLDER = re.compile(r"(?:images?|imgs?)(|tr|ts|va|_?train|_?test|_?val)", re.I | re.S)
_TRUTH_FOLDER = re.compile(
    r"(?:labels?|masks?|gts?|segs?|segmentations?|ground_?truths?)(|tr|ts|va|_?train|_?test|_?val)", re.I | re.S
)
_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?:_.*)?")

Key = tuple[Path, str, str]  # the folder that both stand in, the half (train or test), the stem


def take(
    files: list[Path], found: Found, image: Callable[[Path], bool], ground_truth: Callable[[Path], bool]
) -> list[Path]:
    """Add the pairs of names; return no files, since this is the last that looks."""
    images: dict[Path, list[Path]] = {}
    truths: dict[Path, list[Path]] = {}
    by_key: dict[Key, list[Path]] = {}
    by_modality: dict[Key, list[Path]] = {}
    keys: dict[Path, Key] = {}
    for path in files:
        ending = known_ending(path.name)
        if ending is None:
            continue
        stem = path.name[: -len(ending)]
        key = _truth_key(path, stem)
        if key is not None:
            if ground_truth(path):
                keys[path] = key
                truths[path] = []
            continue
        if image(path):
            images[path] = []
            for own in _image_keys(path, stem):
                by_key.setdefault(own, []).append(path)
            if matched := _MODALITY.fullmatch(stem):
                for own in _image_keys(path, matched[1]):
                    by_modality.setdefault(own, []).append(path)
    for truth, key in keys.items():
        truths[truth] = by_key.get(key) or by_modality.get(key, [])
        for one in truths[truth]:
            images[one].append(truth)
    found.pair(images, truths, {path: _subject(path, found.root) for path in images})
    return []


def _truth_key(path: Path, stem: str) -> Key | None:
    matched = _TRUTH.fullmatch(stem)
    folder = _TRUTH_FOLDER.fullmatch(path.parent.name)
    if folder is not None:
        return path.parent.parent, folder[1].lower(), matched[1] if matched else stem
    return (path.parent, "", matched[1]) if matched else None


def _image_keys(path: Path, stem: str) -> set[Key]:
    """Return what ground truths of an image may be called: its whole stem, or without _image or nnU-Net's channel."""
    shortened = _IMAGE.fullmatch(stem)
    keys = {(path.parent, "", one) for one in (stem, shortened[1] if shortened else stem)}
    folder = _IMAGE_FOLDER.fullmatch(path.parent.name)
    if folder:
        shortened = shortened or _CHANNEL.fullmatch(stem)
        keys |= {(path.parent.parent, folder[1].lower(), one) for one in (stem, shortened[1] if shortened else stem)}
    return keys


def _subject(path: Path, root: Path) -> str:
    """Return the sub-XX that a path names, where it names one."""
    for part in path.relative_to(root).parts:
        matched = _SUBJECT.fullmatch(part.split(".")[0])
        if matched:
            return matched[1]
    return ""
