"""The exceptions that a user is meant to read."""

from __future__ import annotations

from pathlib import Path


class AcclimateError(Exception):
    """A problem in the user's input or machine, told in one line that names the file or key and the way out.

    The command line prints the message without a traceback and exits with status 2; Python callers catch
    it like any exception. Programming errors are never wrapped in it.
    """


class OtherInputsError(AcclimateError):
    """The output folder holds earlier work of acclimate's own, made from other inputs.

    Attributes:
        digest: of the inputs that the earlier work was made from.
        wanted: of those that it was to be made from.
    """

    def __init__(self, message: str, digest: str, wanted: str) -> None:
        super().__init__(message)
        self.digest = digest
        self.wanted = wanted


class WritingError(AcclimateError):
    """A file or folder could not be written: nothing is wrong with what was asked for, and the same call may do it."""


class WaitingError(AcclimateError):
    """A person has to do something before the same call can go on; the command line exits with status 4."""


class Interrupted(KeyboardInterrupt):
    """The user or the system asked to stop; the state up to `step` is on disk and the same call goes on from there."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__(f"{run}: interrupted after step {step}; run the same command again to continue from there")
        self.step = step
