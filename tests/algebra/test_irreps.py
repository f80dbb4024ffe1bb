"""Irreps are read, sorted, laid out and multiplied as written; bad text is refused clearly."""

from __future__ import annotations

import pytest

from clebsch.algebra import Irrep, Irreps, spherical_irreps
from clebsch.errors import ConfigError


def test_an_irrep_reads_and_writes_its_name():
    assert Irrep.parse("2e") == Irrep(2, 1)
    assert str(Irrep(3, -1)) == "3o"
    assert Irrep(4, 1).dim == 9
    assert Irrep(1, -1).is_natural
    assert not Irrep(1, 1).is_natural


@pytest.mark.parametrize("text", ["", "e", "1", "1x0e", "2g", "-1e"])
def test_what_is_no_irrep_is_refused(text):
    with pytest.raises(ConfigError, match="not an irrep"):
        Irrep.parse(text)


@pytest.mark.parametrize(("degree", "parity"), [(-1, 1), (1, 0)])
def test_impossible_irreps_cannot_be_built(degree, parity):
    with pytest.raises(ConfigError, match="No irrep"):
        Irrep(degree, parity)


def test_irreps_sort_by_l_then_odd_before_even():
    mixed = Irreps.parse("2e+1e+0e+2o+0o+1o")
    assert sorted(mixed) == list(Irreps.parse("0o+0e+1o+1e+2o+2e"))


def test_a_product_follows_the_selection_rule():
    assert Irrep.parse("1o") * Irrep.parse("2e") == tuple(Irreps.parse("1o+2o+3o"))
    assert Irrep.parse("1o") * Irrep.parse("1o") == tuple(Irreps.parse("0e+1e+2e"))


def test_components_lie_one_irrep_after_another():
    irreps = spherical_irreps(3)
    assert str(irreps) == "0e+1o+2e+3o"
    assert irreps.dim == 16
    assert irreps.offsets == (0, 1, 4, 9)
    assert irreps.slices[2] == slice(4, 9)
    assert irreps.l_max == 3
    assert irreps.index(Irrep(2, 1)) == 2
    assert irreps[1:] == Irreps.parse("1o+2e+3o")
    assert spherical_irreps(3) == irreps
    assert hash(spherical_irreps(3)) == hash(irreps)
