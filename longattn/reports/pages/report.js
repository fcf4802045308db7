"use strict";
// The figures of report.html.

const page = pageData();
const categories = page.categories.map((c) => ({
  ...c, ds: unpacked(c.sampled.ds), variance: unpacked(c.sampled.variance), isKept: unpacked(c.sampled.kept),
}));
const KINDS = ["kept", "dropped"];
const kindColor = { domain: KINDS, range: ["var(--kept)", "var(--dropped)"] };
const compact = (value) => (value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : d3.format(".3~g")(value));

function bars({ edges, kept, dropped }) {
  const rows = [];
  for (let i = 0; i + 1 < edges.length; i++) {
    for (const [kind, counts] of [["kept", kept], ["dropped", dropped]]) {
      if (counts[i]) rows.push({ x1: edges[i], x2: edges[i + 1], n: counts[i], kind });
    }
  }
  return rows;
}

function histogram(id, parts, marks) {
  const rows = bars(parts);
  figure(id, (width) =>
    plot({
      width, height: 180, marginBottom: 34,
      x: { label: null, tickFormat: compact, ticks: Math.max(2, Math.floor(width / 80)) },
      y: { label: "windows", grid: true, ticks: 4 },
      color: kindColor,
      marks: [
        Plot.rectY(rows, Plot.stackY({ x1: "x1", x2: "x2", y: "n", fill: "kind", order: KINDS, insetLeft: 0.5, insetRight: 0.5, title: (d) => `${d.n} ${d.kind}, ${compact(d.x1)} to ${compact(d.x2)}` })),
        Plot.ruleY([0]),
        ...marks,
      ],
    }));
}

// The value of uniform attention as a line, or an arrow to it where it would squeeze the bars.
function nullMarks(edges) {
  const [low, high] = [edges[0], edges.at(-1)];
  const span = high - low;
  if (page.null > low - span && page.null < high + span) return [rules([page.null], "var(--ink)", "4 3")];
  const right = page.null > high;
  const text = right ? `uniform ${compact(page.null)} →` : `← uniform ${compact(page.null)}`;
  const frameAnchor = right ? "top-right" : "top-left";
  return [Plot.text([text], { frameAnchor, text: (d) => d, fill: "var(--soft)" })];
}

categories.forEach((category, i) => {
  const { ds, variance, lds } = category.histograms;
  histogram(`ds-${i}`, ds, nullMarks(ds.edges));
  histogram(`variance-${i}`, variance, []);
  histogram(`lds-${i}`, lds, page.by_lds ? [rules([category.threshold], "var(--mark)")] : []);
  figure(`scatter-${i}`, (width) => {
    const step = Math.ceil(category.ds.length / 1500);
    const points = d3.range(0, category.ds.length, step).map((j) => ({
      ds: category.ds[j], v: category.variance[j], kind: category.isKept[j] ? "kept" : "dropped",
    }));
    // Where LDS is the threshold: a line that alpha tilts.
    const { ds: d, variance: v } = category.scale;
    const edge = [d.low, d.high].map((ds) => {
      const rest = (ds - d.mean) / d.deviation - category.threshold;
      return { ds, v: v.mean + (rest / page.select.alpha) * v.deviation };
    });
    const line = page.by_lds && page.select.standardize === "zscore" && page.select.alpha > 0 && category.threshold !== null && d.deviation > 0;
    return plot({
      width, height: 260, marginBottom: 36, marginLeft: 62,
      x: { label: "DS", tickFormat: compact, ticks: Math.max(2, Math.floor(width / 80)), grid: true },
      y: { label: "V", tickFormat: compact, grid: true, domain: [v.low, v.high] },
      color: kindColor,
      marks: [
        Plot.line(line ? edge : [], { x: "ds", y: "v", stroke: "var(--mark)", clip: true }),
        Plot.dot(points, { x: "ds", y: "v", fill: "kind", r: points.length > 400 ? 1.8 : 3.5, fillOpacity: 0.75, sort: (d) => d.kind })],
    });
  });
});

figure("funnel", (width) => {
  const rows = [];
  document.querySelectorAll("table")[0].querySelectorAll("tbody tr").forEach((tr) => {
    const at = (i) => Number(tr.cells[i].textContent.replaceAll(",", "")) || 0;
    rows.push({ category: tr.cells[0].textContent, stage: "documents", n: at(1) });
    rows.push({ category: tr.cells[0].textContent, stage: "long enough", n: at(5) });
    rows.push({ category: tr.cells[0].textContent, stage: "windows", n: at(6) });
    rows.push({ category: tr.cells[0].textContent, stage: "kept", n: at(7) });
  });
  return plot({
    width, height: 40 + rows.length * 17, marginLeft: 88, marginRight: 60,
    x: { label: null, grid: true, ticks: Math.max(2, Math.floor(width / 110)), tickFormat: "~s" },
    y: { label: null, domain: ["documents", "long enough", "windows", "kept"] },
    fy: { label: null },
    marks: [
      Plot.barX(rows, { x: "n", y: "stage", fy: "category", fill: (d) => (d.stage === "kept" ? "var(--kept)" : "var(--dropped)") }),
      Plot.text(rows, { x: "n", y: "stage", fy: "category", text: (d) => d3.format(",")(d.n), textAnchor: "start", dx: 4 }),
    ],
  });
});

const heads = Object.entries(page.heads).flatMap(([category, values]) => values.map((ds, head) => ({ category, head, ds })));
if (heads.length) {
  figure("heads", (width) => {
    const count = d3.max(heads, (d) => d.head) + 1;
    return plot({
      width, height: 60 + 34 * Object.keys(page.heads).length, marginLeft: 80, padding: 0.03,
      x: { label: "head", type: "band", ticks: count, domain: d3.range(count), tickFormat: (h) => (count <= 40 || h % 8 === 0 ? h : "") },
      y: { label: null },
      marks: [
        Plot.cell(heads, { x: "head", y: "category", fill: "var(--hot)", fillOpacity: (d) => d.ds / Math.max(0.5, d3.max(heads, (h) => h.ds)), title: (d) => `${d.category}, head ${d.head}: DS ${compact(d.ds)}` }),
        Plot.text(count <= 16 ? heads : [], { x: "head", y: "category", text: (d) => compact(d.ds) }),
      ],
    });
  });
}

// ------------------------------------------------------------------------------------- what if

// As in the selection: by the moments of all windows, also where the page holds a sample.
function standardized(values, { mean, deviation, low, high }, sign) {
  const flat = page.select.standardize === "minmax";
  const from = flat ? (sign > 0 ? low : high) : mean;
  const by = flat ? high - low : deviation;
  return Float64Array.from(values, (v) => (high > low ? (sign * (v - from)) / by : 0));
}

for (const category of categories) {
  category.zds = standardized(category.ds, category.scale.ds, 1);
  category.zdu = standardized(category.variance, category.scale.variance, -1);
}

// Each category's own share as kept now, made larger or smaller with the slider.
function shareOf(category) {
  return Math.min(1, (category.kept / category.windows) * (Number(budgetInput.value) / page.select.fraction || 0));
}

function chosen(category, alpha, share) {
  const lds = Float64Array.from(category.zds, (z, i) => z + alpha * category.zdu[i]);
  const order = d3.range(lds.length).sort((a, b) => lds[b] - lds[a] || a - b);
  const best = order.slice(0, Math.floor(share * lds.length + 0.5));
  return { best, threshold: best.length ? lds[best.at(-1)] : null };
}

const alphaInput = document.getElementById("alpha");
const budgetInput = document.getElementById("budget");
alphaInput.value = page.select.alpha;
budgetInput.value = page.select.fraction;
const body = document.querySelector("#what-if tbody");
for (const category of categories) {
  const row = body.insertRow();
  for (let i = 0; i < 8; i++) row.insertCell();
}

const redrawAgreement = figure("agreement", (width) => {
  const rows = categories.flatMap((category) => {
    return d3.range(0, 3.01, 0.25).map((alpha) => {
      const { best } = chosen(category, alpha, shareOf(category));
      const common = best.filter((i) => category.isKept[i]).length;
      return { alpha, share: best.length ? common / best.length : 0, category: category.name };
    });
  });
  const color = colorOf(categories.map((c) => c.name));
  return plot({
    width, height: 220, marginRight: 70,
    x: { label: "alpha", domain: [0, 3] }, y: { label: "kept now too", domain: [0, 100], percent: true, grid: true },
    marks: [
      Plot.line(rows, { x: "alpha", y: "share", z: "category", stroke: (d) => color(d.category), strokeWidth: 2 }),
      Plot.text(rows, Plot.selectLast({ x: "alpha", y: "share", z: "category", text: "category", fill: (d) => color(d.category), textAnchor: "start", dx: 5 })),
      Plot.ruleX([Number(alphaInput.value)], { stroke: "var(--mark)" }),
    ],
  });
});

function update() {
  const alpha = Number(alphaInput.value);
  const share = Number(budgetInput.value);
  document.getElementById("alpha-value").textContent = alpha.toFixed(2);
  document.getElementById("budget-value").textContent = `${Math.round(share * 100)} %`;
  categories.forEach((category, i) => {
    const { best, threshold } = chosen(category, alpha, shareOf(category));
    const common = best.filter((j) => category.isKept[j]).length;
    cells(body.rows[i], [
      category.name, d3.format(",")(category.ds.length), d3.format(",")(best.length), d3.format(",")(common),
      best.length ? `${Math.round((100 * common) / best.length)} %` : "–",
      threshold === null ? "–" : compact(threshold),
      best.length ? compact(d3.mean(best, (j) => category.ds[j])) : "–",
      best.length ? compact(d3.mean(best, (j) => category.variance[j])) : "–",
    ]);
  });
  redrawAgreement();
}
alphaInput.addEventListener("input", update);
budgetInput.addEventListener("input", update);
update();

// --------------------------------------------------------------------------------------- rates

if (page.rates.length > 1) {
  document.getElementById("rates-section").hidden = false;
  // Actors report at the end of a batch: what it took is spread over the time since the one before.
  const told = [page.rates[0]];
  for (const now of page.rates) {
    const before = told.at(-1);
    if (now.scored !== before.scored && now.seconds - before.seconds > 1) told.push(now);
  }
  const steps = d3.pairs(told.length > 1 ? told : page.rates, (a, b) => {
    const seconds = b.seconds - a.seconds || 1;
    const shares = Object.keys(b.busy).map((stage) => [stage, (b.busy[stage] - a.busy[stage]) / seconds]);
    return { seconds: b.seconds, rate: (b.scored - a.scored) / seconds, shares };
  });
  steps.unshift({ ...steps[0], seconds: told[0].seconds });
  figure("rates", (width) => plot({
    width, height: 180, x: { label: "seconds", domain: [0, page.rates.at(-1).seconds] }, y: { label: "windows a second", grid: true },
    marks: [Plot.areaY(steps, { x: "seconds", y: "rate", fill: "var(--kept)", fillOpacity: 0.25, curve: "step-before" }), Plot.lineY(steps, { x: "seconds", y: "rate", stroke: "var(--kept)", curve: "step-before" })],
  }));
  const shares = steps.flatMap((s) => s.shares.map(([stage, share]) => ({ stage, share, seconds: s.seconds })));
  const stages = [...new Set(shares.map((s) => s.stage))];
  const color = colorOf(stages);
  figure("waiting", (width) => plot({
    width, height: 180, marginRight: 64, x: { label: "seconds", domain: [0, page.rates.at(-1).seconds] }, y: { label: "actors busy", grid: true },
    marks: [
      Plot.lineY(shares, { x: "seconds", y: "share", z: "stage", stroke: (d) => color(d.stage), curve: "step-before" }),
      Plot.text(shares, Plot.selectLast({ x: "seconds", y: "share", z: "stage", text: "stage", fill: (d) => color(d.stage), textAnchor: "start", dx: 5 })),
    ],
  }));
}
