"""What goes wrong, in classes: each message is a sentence for the user that names the value or file and what to do."""


class DiracNetsError(Exception):
    """Anything that diracnets reports about its input or surroundings; the command line prints it without traceback."""

    exit_code = 1


class UsageError(DiracNetsError, ValueError):
    """A name, number or combination of options that makes no sense."""

    exit_code = 2


class DataError(DiracNetsError):
    """Images or labels that cannot be used."""


class FileError(DiracNetsError):
    """A file that is missing, damaged, not what it should be, or that cannot be written."""


class FoldError(DiracNetsError):
    """A model that cannot be folded exactly."""


class TrainingError(DiracNetsError):
    """A training that cannot go on."""

    exit_code = 3


class MissingExtraError(DiracNetsError, ImportError):
    """An optional dependency that is not installed; the message holds the command that installs it."""
