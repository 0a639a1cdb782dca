"""voxring: exact statistics over many hospitals' labelled images, with nobody showing a number of its own."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "BoundError": "errors",
    "ClassTotals": "totals",
    "Classifier": "learn.model",
    "DeviceError": "errors",
    "ImageError": "errors",
    "LocalTotals": "totals",
    "PeerError": "errors",
    "ProtocolError": "errors",
    "Result": "result",
    "Statistics": "totals",
    "Study": "study",
    "StudyError": "errors",
    "VoxringError": "errors",
    "local_landmarks": "standardise",
    "local_mean": "maps",
    "local_sum": "maps",
    "local_totals": "engine",
    "local_variance": "maps",
    "load_study": "study",
    "open_image": "images",
    "party_totals": "batch",
    "pooled": "totals",
    "read_ground_truth": "images",
    "read_image": "images",
    "simulate": "simulation",
    "standard_scale": "landmarks",
}
__all__ = [
    "BoundError",
    "ClassTotals",
    "Classifier",
    "DeviceError",
    "ImageError",
    "LocalTotals",
    "PeerError",
    "ProtocolError",
    "Result",
    "Statistics",
    "Study",
    "StudyError",
    "VoxringError",
    "__version__",
    "load_study",
    "local_landmarks",
    "local_mean",
    "local_sum",
    "local_totals",
    "local_variance",
    "open_image",
    "party_totals",
    "pooled",
    "read_ground_truth",
    "read_image",
    "simulate",
    "standard_scale",
]

if TYPE_CHECKING:
    from voxring.batch import party_totals
    from voxring.engine import local_totals
    from voxring.errors import (
        BoundError,
        DeviceError,
        ImageError,
        PeerError,
        ProtocolError,
        StudyError,
        VoxringError,
    )
    from voxring.images import open_image, read_ground_truth, read_image
    from voxring.landmarks import standard_scale
    from voxring.learn.model import Classifier
    from voxring.maps import local_mean, local_sum, local_variance
    from voxring.result import Result
    from voxring.simulation import simulate
    from voxring.standardise import local_landmarks
    from voxring.study import Study, load_study
    from voxring.totals import ClassTotals, LocalTotals, Statistics, pooled


def __getattr__(name: str) -> object:
    """Import public names when they are first used: numpy and numba would make ``voxring --help`` slow."""
    if name not in _HOMES:
        raise AttributeError(f"module 'voxring' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"voxring.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
