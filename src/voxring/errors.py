"""The errors that voxring raises, a small tree with one root.

Every message says what was expected, what came, and the remedy; none holds a value of a hospital's own or a path of a
patient beyond the file name that the operator gave. ``exit_code`` is what the command ends with.
"""


class VoxringError(Exception):
    """Root of all errors raised on purpose."""

    exit_code = 1


class StudyError(VoxringError):
    """A study file, a manifest, or an argument that contradicts them."""

    exit_code = 3


class ImageError(VoxringError):
    """An image or ground truth that cannot be read, or holds what the study does not allow."""

    exit_code = 4


class DeviceError(VoxringError):
    """The device asked for does not answer. Never followed by a silent fall-back."""

    exit_code = 4


class BoundError(VoxringError):
    """A party's value leaves the public bounds of the study; nothing was sent."""

    exit_code = 4


class PeerError(VoxringError):
    """A peer did not answer in time, went away, or ended the study."""

    exit_code = 5


class ProtocolError(VoxringError):
    """A message broke the protocol: wrong, late, doubled, foreign or malformed."""

    exit_code = 6


class LocalProtocolError(ProtocolError):
    """This process asked its own state machine for a step that the state does not allow."""


class RemoteProtocolError(ProtocolError):
    """A peer sent a message that the state does not allow."""


class ModelError(VoxringError):
    """A result or a model that no classifier can be made from: malformed, of another study, or singular."""

    exit_code = 3
