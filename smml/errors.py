"""The exceptions whose text is a sentence for the user, not for the programmer."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the file or argument, what was expected, what was found and what to do. The command line prints
    it alone, without a traceback, and ends with exit status 2.
    """


class LostProcess(RuntimeError):
    """A run of several processes cannot go on: one of them is gone, or was told to stop.

    The message says which one, as far as can be found out. What was saved before is whole.
    """
