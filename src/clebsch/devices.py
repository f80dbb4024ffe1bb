"""Whether a device of torch can be used on this machine."""

from __future__ import annotations

import torch

from clebsch.errors import ConfigError


def usable_device(device: torch.device | str) -> torch.device:
    """A device on which numbers of float64 can be kept.

    Args:
        device: the device, or its name.

    Raises:
        ConfigError: there is no such device here, or it has no float64.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"unknown device {device!r}: cpu, cuda or cuda:1, for example") from None
    try:
        torch.zeros(1, dtype=torch.float64, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the device {str(found)!r} cannot be used: {reason}") from None
    return found
