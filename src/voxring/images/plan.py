"""How a map is to be written: what comes before its voxels, their type, and what is compressed."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class Plan:
    """A file of a header and voxels after it, in the order of a C array, which can be written plane by plane.

    Parameters
    ----------
    header : bytes
        Up to the first voxel.
    dtype : dtype
        Of the voxels, with the order of their bytes.
    gzip : {"none", "voxels", "whole"}
        What is compressed.
    """

    header: bytes
    dtype: np.dtype[np.generic]
    gzip: Literal["none", "voxels", "whole"]
