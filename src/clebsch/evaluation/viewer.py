"""Structures to turn with the mouse: atoms, bonds, the cell, and force errors as arrows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.neighborlist import neighbor_list

from clebsch.data.frame import Frame

#: Larger structures are drawn without bonds.
_MAX_BONDED = 2000

#: The corners of a cell in units of its vectors.
_CORNERS = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])


@dataclass(frozen=True)
class StructureView:
    """One structure of the page, a part of a section.

    Attributes:
        frame: what to draw.
        arrows: [n, 3], drawn at the atoms: force errors in eV/Angstrom.
        title: text under the picture.
    """

    frame: Frame
    arrows: np.ndarray
    title: str

    def html(self) -> str:
        """A canvas, its data, and its caption."""
        data = json.dumps(self._data())  # numbers and chemical symbols: nothing to escape
        title = escape(self.title)
        return (
            f'<figure class="structure"><canvas width="640" height="520" tabindex="0" role="img" '
            f'aria-label="{title}"></canvas><script type="application/json">{data}</script>'
            f"<figcaption>{title}</figcaption></figure>"
        )

    def _data(self) -> dict[str, Any]:
        frame = self.frame
        corners = _CORNERS @ frame.cell if frame.pbc.any() else np.empty((0, 3))
        points = np.concatenate([frame.positions, corners])
        centre = (points.min(axis=0) + points.max(axis=0)) / 2
        axes = _view(frame, centre)
        colors = (255 * jmol_colors[frame.numbers]).astype(int)
        radii = covalent_radii[frame.numbers]
        return {
            "symbols": frame.symbols,
            "positions": ((frame.positions - centre) @ axes).round(3).tolist(),
            "colors": colors.tolist(),
            "radii": radii.round(2).tolist(),
            "bonds": _bonds(frame),
            "cell": _cell_edges(((corners - centre) @ axes).round(3)),
            "arrows": (1000 * self.arrows @ axes).round(2).tolist(),
        }


def _view(frame: Frame, centre: np.ndarray) -> np.ndarray:
    """[3, 3] rotation: a molecule is seen with its longest extent across and its shortest in depth.

    Crystals are left as they are.
    """
    if frame.pbc.any() or len(frame) < 3:
        return np.eye(3)
    _, _, axes = np.linalg.svd(frame.positions - centre, full_matrices=False)
    axes[2] *= np.sign(np.linalg.det(axes)) or 1.0
    return axes.T


def _bonds(frame: Frame) -> list[list[int]]:
    """Pairs closer than 1.2 times the sum of their covalent radii, inside the picture."""
    if len(frame) > _MAX_BONDED:
        return []
    atoms = frame.to_atoms()
    atoms.pbc = False
    cutoffs = 1.2 * covalent_radii[frame.numbers]
    first, second = neighbor_list("ij", atoms, cutoffs)
    return [[int(i), int(j)] for i, j in zip(first, second, strict=True) if i < j]


def _cell_edges(corners: np.ndarray) -> list[list[list[float]]]:
    """The edges between [8, 3] corners in the order of ``_CORNERS``; none between [0, 3]."""
    pairs = [
        (a, b)
        for a in range(len(corners))
        for b in range(a)
        if np.abs(_CORNERS[a] - _CORNERS[b]).sum() == 1
    ]
    return [[corners[a].tolist(), corners[b].tolist()] for a, b in pairs]


#: Draws every ``figure.structure``. Turned by dragging or with the arrow keys.
SCRIPT = r"""
"use strict";
document.querySelectorAll("figure.structure").forEach(function (figure) {
  const canvas = figure.querySelector("canvas"), ctx = canvas.getContext("2d");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const lengths = data.arrows.map(a => Math.hypot(...a));
  const longest = Math.max(...lengths, 1e-9);
  let turn = [[1, 0, 0], [0, 0.94, 0.34], [0, -0.34, 0.94]], hovered = -1, drag = null;
  const reach = Math.max(2, ...data.positions.map((p, i) => Math.hypot(...p) + data.radii[i]),
    ...data.cell.flat().map(p => Math.hypot(...p)));

  function rotate(p) { return turn.map(row => row[0] * p[0] + row[1] * p[1] + row[2] * p[2]); }
  function project(p) {
    const q = rotate(p), scale = 0.5 * canvas.height / reach / (1 - 0.12 * q[2] / reach);
    return [canvas.width / 2 + scale * q[0], canvas.height / 2 - scale * q[1], q[2], scale];
  }
  function turnBy(dx, dy) {
    const [cx, sx, cy, sy] = [Math.cos(dy), Math.sin(dy), Math.cos(dx), Math.sin(dx)];
    const step = [[cy, 0, sy], [sx * sy, cx, -sx * cy], [-cx * sy, sx, cx * cy]];
    turn = step.map(row => [0, 1, 2].map(k => row.reduce((s, v, j) => s + v * turn[j][k], 0)));
    draw();
  }
  function line(a, b, width, color) {
    ctx.beginPath(); ctx.moveTo(a[0], a[1]); ctx.lineTo(b[0], b[1]);
    ctx.lineWidth = width; ctx.strokeStyle = color; ctx.lineCap = "round"; ctx.stroke();
  }
  function rgb(color, light) {
    const mixed = color.map(v => Math.round(light > 0 ? v + (255 - v) * light : v * (1 + light)));
    return "rgb(" + mixed.join(",") + ")";
  }
  function sphere(i, at) {
    const r = 0.42 * data.radii[i] * at[3], color = data.colors[i];
    const shade = ctx.createRadialGradient(at[0] - r / 3, at[1] - r / 3, r / 8, at[0], at[1], r);
    shade.addColorStop(0, rgb(color, 0.75)); shade.addColorStop(0.45, rgb(color, 0));
    shade.addColorStop(1, rgb(color, -0.45));
    ctx.beginPath(); ctx.arc(at[0], at[1], r, 0, 2 * Math.PI);
    ctx.fillStyle = shade; ctx.fill();
    ctx.lineWidth = i === hovered ? 3 : 1;
    ctx.strokeStyle = i === hovered ? "#d55e00" : rgb(color, -0.6); ctx.stroke();
  }
  function arrow(i, from) {
    const size = 1.6 * lengths[i] / longest;
    if (size < 0.08) return;
    const unit = data.arrows[i].map(v => v / lengths[i]);
    const to = project(data.positions[i].map((v, k) => v + unit[k] * (size + 0.3)));
    const angle = Math.atan2(to[1] - from[1], to[0] - from[0]);
    const flat = Math.hypot(to[0] - from[0], to[1] - from[1]), head = Math.min(13, 0.5 * flat);
    line(from, [to[0] - head * Math.cos(angle), to[1] - head * Math.sin(angle)], 4, "#d55e00");
    ctx.beginPath(); ctx.moveTo(to[0], to[1]);
    for (const side of [-0.45, 0.45]) {
      ctx.lineTo(to[0] - head * 1.25 * Math.cos(angle + side),
        to[1] - head * 1.25 * Math.sin(angle + side));
    }
    ctx.closePath(); ctx.fillStyle = "#d55e00"; ctx.fill();
  }
  function draw() {
    const ink = getComputedStyle(figure).color;
    ctx.clearRect(0, 0, canvas.width, canvas.height);
    const at = data.positions.map(project), items = [];
    for (const [a, b] of data.cell) {
      const [p, q] = [project(a), project(b)];
      items.push([Math.min(p[2], q[2]) - 5, () => {
        ctx.globalAlpha = 0.35; line(p, q, 1.2, ink); ctx.globalAlpha = 1;
      }]);
    }
    for (const [i, j] of data.bonds) {
      // From surface to surface, each half at its own depth: spheres in front hide it.
      const [a, b] = [data.positions[i], data.positions[j]], d = a.map((v, k) => b[k] - v);
      const size = Math.hypot(...d) || 1;
      const along = t => project(a.map((v, k) => v + t * d[k]));
      const [t0, t1] = [0.38 * data.radii[i] / size, 1 - 0.38 * data.radii[j] / size];
      const middle = along((t0 + t1) / 2);
      for (const [t, n] of [[t0, i], [t1, j]]) {
        const end = along(t);
        items.push([(end[2] + middle[2]) / 2, () => {
          line(end, middle, 0.17 * middle[3], "#555");
          line(end, middle, 0.12 * middle[3], rgb(data.colors[n], -0.12));
        }]);
      }
    }
    at.forEach((p, i) => {
      const tip = rotate(data.arrows[i])[2] > 0 ? 0.01 : -0.01;
      items.push([p[2], () => sphere(i, p)], [p[2] + tip, () => arrow(i, p)]);
    });
    items.sort((a, b) => a[0] - b[0]).forEach(item => item[1]());
    if (hovered >= 0) {
      ctx.fillStyle = ink; ctx.font = "22px system-ui, sans-serif";
      ctx.fillText(data.symbols[hovered] + " " + hovered + ": force error " +
        lengths[hovered].toFixed(1) + " meV/Å", 14, 28);
    }
  }
  canvas.addEventListener("pointerdown", e => {
    drag = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId);
  });
  canvas.addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("pointermove", e => {
    if (drag) {
      turnBy((e.clientX - drag[0]) / 120, (e.clientY - drag[1]) / 120);
      drag = [e.clientX, e.clientY];
      return;
    }
    const box = canvas.getBoundingClientRect(), zoom = canvas.width / box.width;
    const x = (e.clientX - box.left) * zoom, y = (e.clientY - box.top) * zoom;
    hovered = -1; let depth = -Infinity;
    data.positions.map(project).forEach((p, i) => {
      const inside = Math.hypot(p[0] - x, p[1] - y) < 0.42 * data.radii[i] * p[3];
      if (inside && p[2] > depth) { hovered = i; depth = p[2]; }
    });
    draw();
  });
  canvas.addEventListener("keydown", e => {
    const step = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15],
      ArrowDown: [0, 0.15] }[e.key];
    if (step) { e.preventDefault(); turnBy(...step); }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
});
"""
