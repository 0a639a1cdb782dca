"""A row that notes how many threads whoever takes it up may use, for worker processes, which import it by name."""

import os
from dataclasses import dataclass
from pathlib import Path

from voxring.batch import Row


@dataclass(frozen=True)
class Looking(Row):
    """Notes it in the file ``notes`` whenever it is unpickled, but by the process that made it."""

    notes: Path
    made_by: int

    def __reduce__(self):
        return look, (self.line, self.image, self.ground_truth, self.patient, self.notes, self.made_by)


def look(line, image, ground_truth, patient, notes, made_by):
    if os.getpid() != made_by:
        from voxring.kernels.cpu.threads import threads_here

        with notes.open("a") as file:
            file.write(f"{threads_here()} {os.environ.get('NUMBA_NUM_THREADS')}\n")
    return Looking(line, image, ground_truth, patient, notes, made_by)


def notes_of_a_share(workers):
    """What each of so many workers on this machine may use of it, as noted."""
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    return {f"{share} {share}"}
