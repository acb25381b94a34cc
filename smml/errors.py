"""The one exception of bad input: its text is a sentence for the user, not for the programmer."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the file or argument, what was expected, what was found and what to do. The command line prints
    it alone, without a traceback, and ends with exit status 2.
    """
