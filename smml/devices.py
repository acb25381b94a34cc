"""Finding the device that the user named."""

import torch

from smml.errors import InputError


def find_device(device: str | torch.device) -> torch.device:
    """The torch device, tried once.

    Args:
        device: itself, or its name, such as "cpu" or "cuda:1".

    Raises:
        InputError: it is unknown or not usable on this machine.
    """
    try:
        torch.empty(0, device=device)
        found = torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu'") from error
    if found.type == "meta":
        raise InputError("device 'meta' cannot be used here (it holds no numbers); try 'cpu'")
    return found
