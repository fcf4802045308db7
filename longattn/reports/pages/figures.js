"use strict";
// What the scripts of all pages share: the page's data, and figures that follow their column's width.

const COLORS = ["var(--a)", "var(--b)", "var(--c)", "var(--d)", "var(--e)", "var(--f)"];

function pageData() {
  return JSON.parse(document.getElementById("data").textContent);
}

// An array packed by `packed` in Python.
function unpacked({ dtype, base64 }) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const kinds = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };
  return new kinds[dtype](bytes.buffer);
}

function colorOf(names) {
  return (name) => COLORS[names.indexOf(name) % COLORS.length];
}

// Draw `render(width)` into the element, and again when its width changes or it is printed.
function figure(id, render) {
  const place = document.getElementById(id);
  if (!place) return () => {};
  let drawn = 0;
  const draw = () => {
    drawn = place.clientWidth;
    if (!drawn) return;
    const chart = render(drawn);
    const label = place.dataset.label;
    if (label && chart.setAttribute) {
      chart.setAttribute("role", "img");
      chart.setAttribute("aria-label", label);
    }
    place.replaceChildren(chart);
  };
  new ResizeObserver(() => {
    if (Math.abs(place.clientWidth - drawn) > 2) draw();
  }).observe(place);
  draw();
  return draw;
}

function plot(options) {
  return Plot.plot({
    style: { background: "transparent", color: "var(--ink)", fontSize: "12px" },
    marginLeft: 52,
    ...options,
  });
}

// Lines of one value each over a histogram or an axis.
function rules(values, color, dash) {
  return Plot.ruleX(values.filter((v) => v !== null), { stroke: color, strokeDasharray: dash, strokeWidth: 1.5 });
}

function cells(row, values) {
  values.forEach((value, i) => (row.cells[i].textContent = value));
}
