"use strict";
// The figures of inspection.html: of the mean over heads, or of the head that is chosen.

const page = pageData();
const edges = page.edges;
const passages = edges.length - 1;
const length = edges[passages];
const chooser = document.getElementById("head");
chooser.value = String(page.head);
const shades = [0, 8, 18, 32, 52, 76, 100].map((part) => `color-mix(in srgb, var(--hot) ${part}%, var(--line))`);

function cellsOf(head) {
  const coded = unpacked(page.maps[head]);
  const rows = [];
  for (let q = 0; q < passages; q++) {
    for (let k = 0; k <= q; k++) {
      rows.push({ q, k, times: 2 ** ((coded[q * passages + k] - 128) / page.scale) });
    }
  }
  return rows;
}

const redrawMap = figure("attention", (width) => {
  const side = Math.min(width, 640);
  const k = page.minDistance;
  return plot({
    width: side, height: side, marginLeft: 56, marginBottom: 36,
    x: { domain: [0, length], label: "token that is read", ...ticksAcross([0, length], side - 80) },
    y: { domain: [length, 0], label: "token that reads", ...ticksOf([0, length], side / 60) },
    color: { type: "threshold", domain: [0.25, 0.5, 0.8, 1.25, 2, 4], range: shades, legend: true, label: "times uniform attention" },
    marks: [
      Plot.rect(cellsOf(Number(chooser.value)), {
        x1: (d) => edges[d.k], x2: (d) => edges[d.k + 1], y1: (d) => edges[d.q], y2: (d) => edges[d.q + 1],
        fill: "times", inset: 0, shapeRendering: "crispEdges",
        title: (d) => `tokens ${edges[d.q]} to ${edges[d.q + 1]} read ${edges[d.k]} to ${edges[d.k + 1]}: ${d.times.toPrecision(2)} times uniform`,
      }),
      Plot.line([[0, k], [length - k, length]], { stroke: "var(--mark)", strokeDasharray: "5 4", strokeWidth: 1.5 }),
    ],
  });
});

function along(id, values, uniform) {
  return figure(id, (width) => {
    const rows = values[Number(chooser.value)].map((value, i) => ({ x1: edges[i], x2: edges[i + 1], value }));
    return plot({
      width, height: 200, marginBottom: 40, x: { domain: [0, length], label: "token", ...ticksAcross([0, length], width - 80) }, y: { grid: true, label: null, zero: true },
      marks: [
        Plot.rectY(rows, { x1: "x1", x2: "x2", y: "value", fill: "var(--kept)", inset: 0, title: (d) => `tokens ${d.x1} to ${d.x2}: ${d.value.toPrecision(3)}` }),
        uniform ? Plot.line(uniform.map((y, i) => [(edges[i] + edges[i + 1]) / 2, y]), { stroke: "var(--mark)", strokeDasharray: "4 3" }) : null,
        Plot.ruleY([0]),
      ],
    });
  });
}
const redraws = [redrawMap, along("given", page.given, page.uniform), along("received", page.received, null)];
chooser.addEventListener("change", () => redraws.forEach((redraw) => redraw()));
