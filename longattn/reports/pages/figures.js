"use strict";
// What the scripts of all pages share: the page's data, and figures that follow their column's width.

const COLORS = [..."abcdefghij"].map((letter) => `var(--${letter})`);

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

// About `count` ticks, whole ones for counts, with as many digits as it takes to tell them apart.
function ticksOf([low, high], count, whole = false) {
  const ticks = d3.ticks(low, high, Math.max(2, Math.floor(count))).filter((v) => !whole || Number.isInteger(v));
  return { ticks, tickFormat: labelsOf(ticks) };
}

// As many ticks as labels have room on so many pixels.
function ticksAcross([low, high], pixels, whole = false) {
  for (let count = Math.floor(pixels / 50); ; count--) {
    const made = ticksOf([low, high], count, whole);
    const longest = d3.max(made.ticks, (v) => made.tickFormat(v).length) ?? 0;
    const step = made.ticks.length > 1 ? ((made.ticks[1] - made.ticks[0]) / (high - low)) * pixels : pixels;
    if (step >= longest * 7.2 + 10) return made;
    if (count <= 2) return { ...made, ticks: made.ticks.slice(0, 1) };
  }
}

function labelsOf(ticks) {
  const exact = (text, v) => Math.abs(Number(text) - v) <= 1e-9 * Math.abs(v);
  const digits = d3.range(1, 15).find((p) => ticks.every((v) => exact(v.toPrecision(p), v))) ?? 15;
  const large = d3.max(ticks, Math.abs) >= 1e4;
  return (v) => {
    if (v === 0) return "0";
    if (Math.abs(v) < 1e-3) return Number(v.toPrecision(digits)).toExponential().replaceAll("-", "\u2212");
    return d3.format(large ? `.${digits}~s` : `.${digits}~r`)(v);
  };
}

// A line at a value over a histogram, its name above it; an arrow where it would squeeze the bars.
function marker(value, name, [low, high], color, dash) {
  if (value === null) return [];
  const span = high - low;
  const above = { fill: color, fontWeight: 600, lineAnchor: "bottom", dy: -5, frameAnchor: "top" };
  if (value > high + span) return [Plot.text([`${name} →`], { ...above, frameAnchor: "top-right" })];
  if (value < low - span) return [Plot.text([`← ${name}`], { ...above, frameAnchor: "top-left" })];
  const right = value > (Math.min(low, value) + Math.max(high, value)) / 2;
  return [
    Plot.ruleX([value], { stroke: "var(--card)", strokeWidth: 5 }),
    Plot.ruleX([value], { stroke: color, strokeDasharray: dash, strokeWidth: 2 }),
    Plot.text([name], { ...above, x: () => value, textAnchor: right ? "end" : "start" }),
  ];
}

// Room for names at an axis, and the names cut to it.
function namesOf(names, width) {
  const most = Math.max(6, Math.floor(Math.min(width * 0.35, 170) / 7.2));
  const cut = (name) => (name.length > most ? `${name.slice(0, most - 1)}…` : name);
  return { margin: 18 + 7.2 * Math.min(most, d3.max(names, (name) => name.length) ?? 0), cut };
}

// Names and their colours, in the element.
function key(id, names, colors) {
  document.getElementById(id)?.replaceChildren(...names.map((name, i) => {
    const entry = document.createElement("span");
    const patch = document.createElement("i");
    patch.style.setProperty("--patch", colors[i]);
    entry.append(patch, name);
    return entry;
  }));
}

function cells(row, values) {
  values.forEach((value, i) => (row.cells[i].textContent = value));
}
