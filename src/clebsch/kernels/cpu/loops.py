"""Compiled loops for CPUs: the convolution and the product basis, with their derivatives.

Plain functions over arrays that Numba compiles; they know nothing of torch. The channel loop is the
innermost everywhere and vectorises. Each takes the range of rows (or channels) it works on, writes
only there, and releases the interpreter lock, so that several threads can share one call; results
do not depend on how the work is divided.

Tables of a convolution, made by ``clebsch.kernels.cpu``: *entries* are the pairs (path
and node component, output component) that some coefficient connects. For each edge the harmonics
are contracted with the coefficients first, which leaves one number g for each entry, the same for
all channels; then ``out[c] += g * (weight[path] * node[m])``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np

_OPTIONS: Any = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
}


def compiled(function: Callable[..., None]) -> Any:
    """Compile a loop when it is first called; keep it on disk where there is a folder for it."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder can be written: every process compiles for itself
        return numba.njit(**_OPTIONS)(function)


@numba.njit(inline="always")
def _edge_couplings(table_ptr, table_harmonic, table_value, harmonics, couplings):  # type: ignore[no-untyped-def]
    """g of every entry: coefficients times this edge's harmonics."""
    for entry in range(couplings.shape[0]):
        total = couplings.dtype.type(0)
        for t in range(table_ptr[entry], table_ptr[entry + 1]):
            total += table_value[t] * harmonics[table_harmonic[t]]
        couplings[entry] = total


@compiled
def convolve(  # type: ignore[no-untyped-def]
    start,
    stop,
    row_ptr,
    senders,
    source_ptr,
    source_path,
    source_node,
    entry_out,
    table_ptr,
    table_harmonic,
    table_value,
    weights,
    harmonics,
    nodes,
    out,
):
    """out[i, c] += sum over edges of receivers start..stop."""
    n_channels = nodes.shape[2]
    couplings = np.empty(entry_out.shape[0], nodes.dtype)
    product = np.empty(n_channels, nodes.dtype)
    for i in range(start, stop):
        for e in range(row_ptr[i], row_ptr[i + 1]):
            _edge_couplings(table_ptr, table_harmonic, table_value, harmonics[e], couplings)
            j = senders[e]
            for s in range(source_path.shape[0]):
                weight, node = weights[e, source_path[s]], nodes[j, source_node[s]]
                for k in range(n_channels):
                    product[k] = weight[k] * node[k]
                for entry in range(source_ptr[s], source_ptr[s + 1]):
                    g = couplings[entry]
                    row = out[i, entry_out[entry]]
                    for k in range(n_channels):
                        row[k] += g * product[k]


@compiled
def convolve_edge_gradients(  # type: ignore[no-untyped-def]
    start,
    stop,
    row_ptr,
    senders,
    source_ptr,
    source_path,
    source_node,
    entry_out,
    table_ptr,
    table_harmonic,
    table_value,
    weights,
    harmonics,
    nodes,
    cotangent,
    d_weights,
    d_harmonics,
):
    """Derivatives with respect to path weights and harmonics; both are added to."""
    n_channels = nodes.shape[2]
    couplings = np.empty(entry_out.shape[0], nodes.dtype)
    product = np.empty(n_channels, nodes.dtype)
    gathered = np.empty(n_channels, nodes.dtype)
    for i in range(start, stop):
        for e in range(row_ptr[i], row_ptr[i + 1]):
            _edge_couplings(table_ptr, table_harmonic, table_value, harmonics[e], couplings)
            j = senders[e]
            for s in range(source_path.shape[0]):
                weight, node = weights[e, source_path[s]], nodes[j, source_node[s]]
                for k in range(n_channels):
                    product[k] = weight[k] * node[k]
                    gathered[k] = 0
                for entry in range(source_ptr[s], source_ptr[s + 1]):
                    g = couplings[entry]
                    row = cotangent[i, entry_out[entry]]
                    total = couplings.dtype.type(0)
                    for k in range(n_channels):
                        gathered[k] += g * row[k]
                        total += product[k] * row[k]
                    for t in range(table_ptr[entry], table_ptr[entry + 1]):
                        d_harmonics[e, table_harmonic[t]] += table_value[t] * total
                d_weight = d_weights[e, source_path[s]]
                for k in range(n_channels):
                    d_weight[k] += gathered[k] * node[k]


@compiled
def convolve_node_gradient(  # type: ignore[no-untyped-def]
    start,
    stop,
    sender_ptr,
    sender_order,
    receivers,
    source_ptr,
    source_path,
    source_node,
    entry_out,
    table_ptr,
    table_harmonic,
    table_value,
    weights,
    harmonics,
    cotangent,
    d_nodes,
):
    """Derivative with respect to nodes start..stop, summed over the edges that they send along."""
    n_channels = d_nodes.shape[2]
    couplings = np.empty(entry_out.shape[0], d_nodes.dtype)
    gathered = np.empty(n_channels, d_nodes.dtype)
    for j in range(start, stop):
        for position in range(sender_ptr[j], sender_ptr[j + 1]):
            e = sender_order[position]
            i = receivers[e]
            _edge_couplings(table_ptr, table_harmonic, table_value, harmonics[e], couplings)
            for s in range(source_path.shape[0]):
                weight, d_node = weights[e, source_path[s]], d_nodes[j, source_node[s]]
                for k in range(n_channels):
                    gathered[k] = 0
                for entry in range(source_ptr[s], source_ptr[s + 1]):
                    g = couplings[entry]
                    row = cotangent[i, entry_out[entry]]
                    for k in range(n_channels):
                        gathered[k] += g * row[k]
                for k in range(n_channels):
                    d_node[k] += gathered[k] * weight[k]


# --- the product basis: a polynomial with one coefficient per species, term and channel. Terms of
# lower order are padded with a component that is 1, at index Q, whose derivative nobody reads. ---


@compiled
def polynomial(start, stop, species, component, first, second, third, coefficients, basis, out):  # type: ignore[no-untyped-def]
    """out[n, component] += coefficient * A[first] A[second] A[third]."""
    n_channels = basis.shape[2]
    for n in range(start, stop):
        for t in range(component.shape[0]):
            row, c = out[n, component[t]], coefficients[species[n], t]
            a1, a2, a3 = basis[n, first[t]], basis[n, second[t]], basis[n, third[t]]
            for k in range(n_channels):
                row[k] += c[k] * a1[k] * a2[k] * a3[k]


@compiled
def polynomial_coefficient_gradient(  # type: ignore[no-untyped-def]
    start, stop, species, order, component, first, second, third, basis, cotangent, d_coefficients
):
    """Derivative with respect to the coefficients of terms start..stop."""
    n_channels = basis.shape[2]
    for t in range(start, stop):
        for position in range(order.shape[0]):
            n = order[position]
            d = d_coefficients[species[n], t]
            g = cotangent[n, component[t]]
            a1, a2, a3 = basis[n, first[t]], basis[n, second[t]], basis[n, third[t]]
            for k in range(n_channels):
                d[k] += g[k] * a1[k] * a2[k] * a3[k]


@compiled
def polynomial_second_coefficients(  # type: ignore[no-untyped-def]
    start,
    stop,
    species,
    order,
    component,
    first,
    second,
    third,
    basis,
    cotangent,
    direction,
    d_coefficients,
):
    """The same derivative with respect to the coefficients of terms start..stop."""
    n_channels = basis.shape[2]
    for t in range(start, stop):
        q1, q2, q3 = first[t], second[t], third[t]
        for position in range(order.shape[0]):
            n = order[position]
            d, g = d_coefficients[species[n], t], cotangent[n, component[t]]
            a1, a2, a3 = basis[n, q1], basis[n, q2], basis[n, q3]
            u1, u2, u3 = direction[n, q1], direction[n, q2], direction[n, q3]
            for k in range(n_channels):
                d[k] += g[k] * (u1[k] * a2[k] * a3[k] + a1[k] * (u2[k] * a3[k] + a2[k] * u3[k]))


@lru_cache(maxsize=32)
def polynomial_gradients(n_channels: int) -> tuple[Any, Any]:
    """The two loops that write to several rows of one array, compiled for a number of channels.

    With the number a constant the compiler can prove that rows are the same or apart, and
    vectorises; without it these loops take three times as long.
    """

    @compiled
    def gradient(  # type: ignore[no-untyped-def]
        start,
        stop,
        species,
        component,
        first,
        second,
        third,
        coefficients,
        basis,
        cotangent,
        d_basis,
    ):
        """Derivative with respect to A of atoms start..stop."""
        scaled, partial = np.empty((2, n_channels), basis.dtype)
        for n in range(start, stop):
            for t in range(component.shape[0]):
                g, c = cotangent[n, component[t]], coefficients[species[n], t]
                a1, a2, a3 = basis[n, first[t]], basis[n, second[t]], basis[n, third[t]]
                d1, d2, d3 = d_basis[n, first[t]], d_basis[n, second[t]], d_basis[n, third[t]]
                # One loop for each row that is written, since rows may coincide.
                for k in range(n_channels):
                    scaled[k] = g[k] * c[k]
                for k in range(n_channels):
                    partial[k] = scaled[k] * a3[k]
                for k in range(n_channels):
                    d1[k] += partial[k] * a2[k]
                for k in range(n_channels):
                    d2[k] += partial[k] * a1[k]
                for k in range(n_channels):
                    d3[k] += scaled[k] * a1[k] * a2[k]

    @compiled
    def second(  # type: ignore[no-untyped-def]
        start,
        stop,
        species,
        component,
        first,
        second,
        third,
        coefficients,
        basis,
        cotangent,
        direction,
        d_basis,
        d_cotangent,
    ):
        """Derivatives of ``sum of direction * (derivative with respect to A)``.

        With respect to A (``d_basis``) and to the cotangent (``d_cotangent``) of atoms
        start..stop; both are added to.
        """
        mixed23, mixed13, mixed12, scaled = np.empty((4, n_channels), basis.dtype)
        for n in range(start, stop):
            for t in range(component.shape[0]):
                g, c = cotangent[n, component[t]], coefficients[species[n], t]
                q1, q2, q3 = first[t], second[t], third[t]
                a1, a2, a3 = basis[n, q1], basis[n, q2], basis[n, q3]
                u1, u2, u3 = direction[n, q1], direction[n, q2], direction[n, q3]
                d1, d2, d3 = d_basis[n, q1], d_basis[n, q2], d_basis[n, q3]
                dg = d_cotangent[n, component[t]]
                for k in range(n_channels):
                    mixed23[k] = u2[k] * a3[k] + a2[k] * u3[k]
                for k in range(n_channels):
                    mixed13[k] = u1[k] * a3[k] + a1[k] * u3[k]
                for k in range(n_channels):
                    mixed12[k] = u1[k] * a2[k] + a1[k] * u2[k]
                for k in range(n_channels):
                    dg[k] += c[k] * (a1[k] * mixed23[k] + u1[k] * a2[k] * a3[k])
                for k in range(n_channels):
                    scaled[k] = c[k] * g[k]
                for k in range(n_channels):
                    d1[k] += scaled[k] * mixed23[k]
                for k in range(n_channels):
                    d2[k] += scaled[k] * mixed13[k]
                for k in range(n_channels):
                    d3[k] += scaled[k] * mixed12[k]

    return gradient, second
