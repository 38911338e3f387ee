"""The one exception that a user is meant to read."""

from __future__ import annotations


class AcclimateError(Exception):
    """A problem in the user's input or machine, told in one line that names the file or key and the way out.

    The command line prints the message without a traceback and exits with status 2; Python callers catch
    it like any exception. Programming errors are never wrapped in it.
    """
