"""Other packages that are measured: what each can express, and where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from clebsch.benchmarks.jobs import Contender
from clebsch.errors import ConfigError
from clebsch.models.config import (
    InteractionConfig,
    MessagePassingConfig,
    ModelConfig,
    ReadoutConfig,
    UpdateConfig,
)

#: Where ``make peers`` puts their environments: the root of the repository.
PEERS_FOLDER = Path(__file__).resolve().parents[3] / ".peers"
#: glibc settings that keep freed memory instead of returning it: without them about half of a
#: peer's time may go into page faults of large temporaries.
TUNED_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "1073741824",
}


def _any(value: Any) -> bool:
    return True


@dataclass(frozen=True)
class Peer:
    """A package to be measured against.

    Attributes:
        name: for tables, and of the folder of its environment.
        script: in ``benchmarks/peers``.
        like: a model that it has; of settings that are not in ``follows`` it knows no others.
        follows: settings that it has too, or does alike whatever they are, and which values.
        options: what its jobs have beside those of others.
        devices: kinds of devices that it is measured on.
        install: how to get its environment.
    """

    name: str
    script: str
    like: MessagePassingConfig
    follows: Mapping[str, Callable[[Any], bool]]
    options: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu", "cuda")
    install: str = "run make peers in a clone"

    def lacks(self, config: ModelConfig) -> list[str]:
        """Settings of a model that it cannot follow, as ``key=value``."""
        theirs = dict(_flat(self.like.model_dump()))
        return [
            f"{key}={'null' if value is None else value}"
            for key, value in _flat(config.model_dump())
            if not (key in theirs and theirs[key] == value)
            and not (key in self.follows and self.follows[key](value))
        ]

    def python(self, folder: Path | None = None) -> str:
        """The Python of its environment.

        Args:
            folder: where environments are; ``PEERS_FOLDER`` if None.

        Raises:
            ConfigError: its environment is missing.
        """
        environment = (PEERS_FOLDER if folder is None else folder) / self.name
        if not (environment / ".installed").exists():
            raise ConfigError(f"{self.name} is not installed in {environment}: {self.install}")
        return str(environment / "bin" / "python")

    def contenders(self, folder: Path | None = None, device: str = "cpu") -> tuple[Contender, ...]:
        """The package as it comes, and on the CPU with the tuned allocator too.

        Args:
            folder: where environments are; ``PEERS_FOLDER`` if None.
            device: "cpu", "cuda" or "cuda:1".

        Raises:
            ConfigError: its environment is missing, or it is not measured on such a device.
        """
        kind = torch.device(device).type
        if kind not in self.devices:
            raise ConfigError(
                f"{self.name} is measured on {' and '.join(self.devices)} alone, not on {device}: "
                f"add --device {self.devices[0]}"
            )
        script = Path(__file__).parent / "peers" / self.script
        # -P: a script may have the package's name
        command = (self.python(folder), "-P", str(script))
        plain = Contender(self.name, command, options=self.options, lacks=self.lacks)
        if kind != "cpu":  # the allocator is the device's
            return (plain,)
        tuned = replace(plain, name=f"{self.name}, tuned malloc", environment=TUNED_ALLOCATOR)
        return plain, tuned


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_SIZES = ("cutoff", "layers", "channels", "l_max", "message_l", "mean_energy", "scale")
_RADIAL = ("radial.n_basis", "radial.envelope_exponent")

_MACE_TORCH = Peer(
    name="mace-torch",
    script="mace_torch.py",
    like=MessagePassingConfig(),
    follows=dict.fromkeys(
        (
            *_SIZES,
            *_RADIAL,
            *("radial.hidden", "readout.hidden", "update.first_layer"),
            *("product.correlation", "product.couplings"),
        ),
        _any,
    ),
)

#: mace-torch with the closed kernels for GPUs that it can be converted to.
_CUEQUIVARIANCE = replace(
    _MACE_TORCH,
    name="cuequivariance",
    options={"cuequivariance": True},
    devices=("cuda",),
    install="make an environment with torch for CUDA, mace-torch and cuEquivariance there "
    "(docs/performance.md says how)",
)

_NEQUIP = Peer(
    name="nequip",
    script="nequip.py",
    like=MessagePassingConfig(
        parity="full",
        interaction=InteractionConfig(normalization="sqrt_neighbors"),
        product=None,
        update=UpdateConfig(first_layer="residual", gate="silu"),
        readout=ReadoutConfig(layers="last", last="two_linear"),
    ),
    follows={
        **dict.fromkeys((*_SIZES, *_RADIAL, "radial.trainable"), _any),
        # its layers of one network are equally wide
        "radial.hidden": lambda widths: len(set(widths)) == 1,
        "parity": _any,
        "update.gate": lambda gate: gate != "none",
        "update.self_connection": lambda kind: kind != "linear",
        **dict.fromkeys(("readout.last", "readout.hidden"), _any),
        "readout.inner": _any,  # none is read
    },
)

PEERS = {peer.name: peer for peer in (_MACE_TORCH, _CUEQUIVARIANCE, _NEQUIP)}
