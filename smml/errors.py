"""The exceptions whose text is a sentence for the user, not for the programmer."""


def one_line(text: str) -> str:
    """A text with each character that ends a line, or cannot be printed, as Python writes it, such as ``\\n``.

    Args:
        text: any, for example with the name of a user's file.
    """
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the file or argument, what was expected, what was found and what to do. The command line prints
    it alone, without a traceback, and ends with exit status 2. It is one line whatever the user gave
    (:func:`one_line`).

    Args:
        message: as above.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class MissingPackage(InputError, ImportError):
    """What was asked for needs an optional package that is not installed.

    Args:
        what: which package is missing, and what needs it.
        extra: the extra of smml that brings it.
        otherwise: what else can be done, if anything.

    Attributes:
        extra: as given.
    """

    def __init__(self, what: str, *, extra: str, otherwise: str = "") -> None:
        super().__init__(f'{what}; run pip install "smml[{extra}]"' + (f", or {otherwise}" if otherwise else ""))
        self.extra = extra

    def __reduce__(self) -> tuple:
        # From its own words: an error crosses to another process by being built again.
        return _missing_package, (str(self), self.extra)


def _missing_package(text: str, extra: str) -> MissingPackage:
    error = MissingPackage.__new__(MissingPackage, text)
    error.args, error.extra = (text,), extra
    return error


class TrainingDiverged(RuntimeError):
    """The loss or the gradient of a training is not finite any more. The last checkpoint is whole."""


class LostProcess(RuntimeError):
    """A run of several processes cannot go on: one of them is gone, or was told to stop.

    The message says which one, as far as can be found out. What was saved before is whole.
    """
