"""The errors a user can cause. Each message names the file, row, task or config key and says what to do."""


class MTLError(Exception):
    """Base of every error that the command line prints as one message, without a traceback."""


class ConfigError(MTLError):
    """The configuration cannot be built as written."""


class DataError(MTLError):
    """A file, row or label is not what the configuration says it is."""


class CheckpointError(MTLError):
    """A checkpoint is missing, broken, or belongs to other tasks or shapes."""


class StorageError(MTLError):
    """A file of the run cannot be written: the disk is full, or the folder read-only."""


class TrainingError(MTLError):
    """Training cannot go on (a loss that is not a number, for example)."""


class ExportError(MTLError):
    """A trained model cannot be written for other programs, or what was written gives other outputs."""
