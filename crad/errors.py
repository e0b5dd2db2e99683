"""The errors that a user can cause; each message names the thing and the way out."""


class CradError(Exception):
    """The base of all of them: a command prints it in one line and exits with code 1."""


class UsageError(CradError, ValueError):
    """An option or argument that makes no sense; a command exits with code 2."""


class BackboneError(CradError, ValueError):
    """A backbone that cannot be made, or cannot take these images."""


class CheckpointError(CradError, ValueError):
    """A checkpoint that is missing, damaged, or of another version."""


class DataError(CradError, ValueError):
    """Data that are not what they should be, or cannot be had."""


class DeviceError(CradError, ValueError):
    """A device, or a compiler for it, that this machine does not have."""


class ExportError(CradError, RuntimeError):
    """A detector that cannot be exported, or whose file says something else."""


class ImageError(CradError, ValueError):
    """An image that cannot be read."""


class MaskError(ImageError):
    """A mask that cannot be read."""


class MissingPackageError(CradError, ImportError):
    """An optional package that is not installed."""


class OutputError(CradError):
    """An output file or folder that cannot be used, or holds what must not be lost."""


class StorageError(CradError, OSError):
    """A file that cannot be written, for lack of space, for instance."""


class TrainingError(CradError, RuntimeError):
    """Training that cannot start or continue."""


class LaunchError(CradError):
    """Processes that were started together but cannot work together."""


class PeerError(CradError):
    """Another process has ended, so that nothing can be exchanged with it."""
