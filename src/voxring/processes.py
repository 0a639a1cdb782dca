"""Processes of our own, started without running the caller's script again."""

from __future__ import annotations

import sys
import threading
from multiprocessing.process import BaseProcess
from types import ModuleType

_STARTING = threading.Lock()


def start(process: BaseProcess) -> None:
    """Start a spawned process that runs a function of voxring, and so needs nothing of the main module.

    ``spawn`` has a new process import the main module first: a script, or a notebook's cells saved as one, would begin
    anew in each, and fail unless all of it stands under ``if __name__ == "__main__":``.
    """
    with _STARTING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            process.start()
        finally:
            sys.modules["__main__"] = main
