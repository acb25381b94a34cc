"""Finding the device that the user named."""

import torch

from smml.errors import InputError


def find_device(name: str) -> torch.device:
    """The torch device of that name, tried once.

    Raises:
        InputError: it is unknown or not usable on this machine.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); try 'cpu'") from error
    return torch.device(name)
