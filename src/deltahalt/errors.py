"""The errors and warnings that deltahalt raises. Each message says what to do; the CLI shows it as one line."""


class DeltahaltError(Exception):
    """Root of every error that deltahalt raises on purpose."""


class PolicyError(DeltahaltError, ValueError):
    """A policy has invalid settings, or its scores contain NaN."""


class InputError(DeltahaltError, ValueError):
    """A prompt, mask, document or option cannot be used as given."""


class UnsupportedError(DeltahaltError, NotImplementedError):
    """A model or a feature of its host cannot be combined with halting."""


class OutputError(DeltahaltError):
    """A file could not be written, such as on a full disk. Results measured before that have been shown."""


class ModelError(DeltahaltError):
    """A model could not be found, verified or loaded."""


class DeltahaltWarning(UserWarning):
    """Root of every warning that deltahalt gives. The CLI shows it as one line."""


class UntestedVersionWarning(DeltahaltWarning):
    """The installed transformers is newer than every version that deltahalt was tested with."""


class UnhaltedCallWarning(DeltahaltWarning):
    """A model ran only in threads outside the `with` block that makes it halt, so it ran in full."""


class UnrecordedWarning(DeltahaltWarning):
    """Generated tokens could not be recorded as a CUDA graph, so they run layer by layer."""


class RowsWarning(DeltahaltWarning):
    """A file of rows ends in an incomplete line, which an interrupted write left."""
