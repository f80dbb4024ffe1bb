"""The example configurations are valid, and make the models that they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import ethanol
from clebsch.factory import assemble
from clebsch.models.message_passing import Layer
from clebsch.nn.gate import Gate
from clebsch.nn.product import ProductBasis
from clebsch.training.configfile import load_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_configuration(path: Path) -> None:
    config = load_config(path)
    assert config.run.name


def test_a_new_architecture_is_a_few_lines_of_configuration() -> None:
    """MACE's products of order 3, and NequIP's gate behind them; trained as any model is."""
    config = load_config(EXAMPLES / "gated_mace.yaml", ["model.channels=4"])
    built = assemble(config.model, ["H", "C", "O"])
    layers = [layer for layer in built.model.modules() if isinstance(layer, Layer)]
    for layer in layers:
        assert isinstance(layer.product, ProductBasis)
        assert layer.product.plan.correlation == 3
        assert isinstance(layer.gate, Gate)
    prediction = built(built.graph(ethanol()), ("forces",), differentiable=True)
    prediction.forces.square().sum().backward()
    assert all(weight.grad is not None for weight in built.parameters())
