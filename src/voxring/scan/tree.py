"""The files below a folder, in the order of their names."""

from __future__ import annotations

import os
from pathlib import Path

from voxring.errors import StudyError
from voxring.scan.found import Found


def files_below(root: Path, found: Found) -> list[Path]:
    """List files, links followed and each folder entered once; what cannot be read is left out.

    Raises
    ------
    StudyError
        The root itself cannot be read.
    """
    files: list[Path] = []
    entered: set[tuple[int, int]] = set()
    waiting, links = [root], list[Path]()
    while waiting or links:
        # Folders before links to folders, so that a link, not what it leads to, is what was already seen.
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                found.leave(folder, "a link to a folder that was already looked through")
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise StudyError(f"{root}: cannot be read: {error.strerror}: check permissions") from None
            found.leave(folder, f"cannot be read: {error.strerror}")
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else waiting).append(path)
                elif entry.is_file():
                    files.append(path)
                elif entry.is_symlink():
                    found.leave(path, "a link to nothing")
            except OSError as error:  # a link to itself
                found.leave(path, f"cannot be read: {error.strerror}")
    return sorted(files)
