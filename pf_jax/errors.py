"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A mistake in what the user gave: a flag, a path, a file, a config field.

    The message is one line that says what was wrong, where, and what to do. Commands print it
    without a traceback and exit with a status that is not 0.
    """
