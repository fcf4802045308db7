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
  const ends = [parts.edges[0], parts.edges.at(-1)];
  const most = d3.max(parts.kept, (n, i) => n + parts.dropped[i]);
  figure(id, (width) => {
    const drawn = marks(ends);
    return plot({
      width, height: 200, marginBottom: 34, marginTop: 42,
      x: { label: null, ...ticksAcross(drawn.domain, width - 80) },
      y: { label: "windows", grid: true, ...ticksOf([0, most], 4, true) },
      color: kindColor,
      marks: [
        Plot.rectY(rows, Plot.stackY({ x1: "x1", x2: "x2", y: "n", fill: "kind", order: KINDS, insetLeft: 0.5, insetRight: 0.5, title: (d) => `${d.n} ${d.kind}, ${compact(d.x1)} to ${compact(d.x2)}` })),
        Plot.ruleY([0]),
        ...drawn.marks,
      ],
    });
  });
}

// One line over a histogram, and the values that it shows then.
function lineAt(value, name, color, dash) {
  return ([low, high]) => {
    const near = value !== null && value > 2 * low - high && value < 2 * high - low;
    const domain = near ? [Math.min(low, value), Math.max(high, value)] : [low, high];
    return { domain, marks: value === null ? [] : marker(value, `${name} ${compact(value)}`, [low, high], color, dash) };
  };
}

categories.forEach((category, i) => {
  const { ds, variance, ranked } = category.histograms;
  const threshold = page.has_threshold ? category.threshold : null;
  histogram(`ds-${i}`, ds, lineAt(page.null, "uniform", "var(--ink)", "5 3"));
  histogram(`variance-${i}`, variance, lineAt(null));
  histogram(`ranked-${i}`, ranked, lineAt(threshold, "kept from", "var(--mark)"));
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
      x: { label: "DS", ...ticksAcross([d.low, d.high], width - 80), grid: true },
      y: { label: "variance", ...ticksOf([v.low, v.high], 6), grid: true, domain: [v.low, v.high] },
      color: kindColor,
      marks: [
        Plot.line(line ? edge : [], { x: "ds", y: "v", stroke: "var(--mark)", strokeWidth: 2, clip: true }),
        Plot.dot(points, { x: "ds", y: "v", fill: "kind", r: points.length > 400 ? 1.8 : 3.5, fillOpacity: 0.75, sort: (d) => d.kind })],
    });
  });
});

page.further.forEach((columns, i) => {
  Object.values(columns).forEach((parts, j) => histogram(`further-${i}-${j}`, parts, lineAt(null)));
});

// A bar a category, parted by what became of its records or windows; the numbers stand beside it.
function parted(id, colors, partsOf) {
  const rows = page.funnel.flatMap((row) => Object.entries(partsOf(row)).map(([part, n]) => ({ category: row.category, part, n: n ?? 0 })));
  const parts = Object.keys(colors).filter((part) => rows.some((row) => row.part === part && row.n));
  key(`${id}-key`, parts, parts.map((part) => colors[part]));
  const totals = d3.rollups(rows, (of) => ({ n: d3.sum(of, (d) => d.n), first: of[0].n }), (d) => d.category);
  const most = d3.max(totals, ([, { n }]) => n) ?? 0;
  const text = ([, { n, first }]) => (first === n ? d3.format(",")(n) : `${d3.format(",")(first)} of ${d3.format(",")(n)}`);
  figure(id, (width) => {
    const names = namesOf(totals.map(([name]) => name), width);
    const marginRight = 12 + 7 * (d3.max(totals, (t) => text(t).length) ?? 0);
    return plot({
      width, height: 46 + 26 * totals.length, marginLeft: names.margin, marginRight, marginTop: 8, marginBottom: 30,
      x: { label: null, grid: true, domain: [0, most || 1], ...ticksAcross([0, most], width - names.margin - marginRight, true) },
      y: { label: null, tickFormat: names.cut, tickSize: 0, padding: 0.25 },
      marks: [
        Plot.barX(rows.filter((d) => d.n), Plot.stackX({ x: "n", y: "category", order: Object.keys(colors), fill: (d) => colors[d.part], title: (d) => `${d.category}: ${d3.format(",")(d.n)} ${d.part}` })),
        Plot.text(totals, { x: ([, { n }]) => n, y: ([name]) => name, text, textAnchor: "start", dx: 5 }),
      ],
    });
  });
}
parted("records", { "long enough": "var(--kept)", "too short": "var(--dropped)", duplicates: "var(--b)", quarantined: "var(--e)" },
  (row) => ({ "long enough": row.long, "too short": row.too_short, duplicates: row.duplicates, quarantined: row.bad }));
parted("windows", { kept: "var(--kept)", dropped: "var(--dropped)", "sampled out": "var(--line)" },
  (row) => ({ kept: row.kept, dropped: (row.windows ?? 0) - (row.kept ?? 0), "sampled out": row.sampled_out }));

const heads = Object.entries(page.heads).flatMap(([category, values]) => values.map((ds, head) => ({ category, head, ds })));
if (heads.length) {
  figure("heads", (width) => {
    const count = d3.max(heads, (d) => d.head) + 1;
    const names = namesOf(Object.keys(page.heads), width);
    const cell = (width - names.margin) / count;
    const step = Math.ceil(26 / cell);
    return plot({
      width, height: 60 + 34 * Object.keys(page.heads).length, marginLeft: names.margin, marginBottom: 36, padding: 0.03,
      x: { label: "head", type: "band", domain: d3.range(count), ticks: d3.range(0, count, step) },
      y: { label: null, tickFormat: names.cut },
      marks: [
        Plot.cell(heads, { x: "head", y: "category", fill: "var(--hot)", fillOpacity: (d) => d.ds / Math.max(0.5, d3.max(heads, (h) => h.ds)), title: (d) => `${d.category}, head ${d.head}: DS ${compact(d.ds)}` }),
        Plot.text(cell > 44 ? heads : [], { x: "head", y: "category", text: (d) => compact(d.ds) }),
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

const alphaInput = document.getElementById("alpha");
const budgetInput = document.getElementById("budget");
const [[budgetKind, budgetNow]] = Object.entries(page.select.keep);
const shareNow = budgetKind === "fraction" ? budgetNow : page.select.fraction;
alphaInput.value = page.select.alpha;
budgetInput.value = shareNow;
const [alphaShown, shareShown] = [alphaInput.value, budgetInput.value]; // as the sliders round them

function alphaChosen() {
  return alphaInput.value === alphaShown ? page.select.alpha : Number(alphaInput.value);
}

// The budget of each category in the unit of `keep`.
function budgetChosen() {
  if (budgetInput.value === shareShown) return budgetNow;
  const budget = (budgetNow * Number(budgetInput.value)) / shareNow;
  return budgetKind === "fraction" ? Number(budgetInput.value) : Math.round(budget);
}

function shareOf(category) {
  const budget = budgetChosen();
  if (budget === budgetNow) return category.kept / category.windows;
  if (budgetKind === "fraction") return budget;
  const windows = budgetKind === "tokens" ? Math.floor(budget / page.window) : budget;
  return Math.min(1, windows / category.windows);
}

function chosen(category, alpha, share) {
  const lds = Float64Array.from(category.zds, (z, i) => z + alpha * category.zdu[i]);
  const order = d3.range(lds.length).sort((a, b) => lds[b] - lds[a] || a - b);
  const best = order.slice(0, Math.floor(share * lds.length + 0.5));
  return { best, threshold: best.length ? lds[best.at(-1)] : null };
}

const body = document.querySelector("#what-if-table tbody");
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
  key("agreement-key", categories.map((c) => c.name), categories.map((c) => color(c.name)));
  return plot({
    width, height: 220, marginBottom: 36,
    x: { label: "alpha", domain: [0, 3], ...ticksOf([0, 3], 6) }, y: { label: "kept now, %", domain: [0, 100], percent: true, grid: true, ticks: 5 },
    marks: [
      Plot.ruleX([alphaChosen()], { stroke: "var(--mark)", strokeWidth: 2 }),
      Plot.line(rows, { x: "alpha", y: "share", z: "category", stroke: (d) => color(d.category), strokeWidth: 2, title: "category" }),
    ],
  });
});

// What `longattn select` takes to keep what the sliders say.
function command() {
  const { standardize } = page.select;
  const changes = {
    alpha: alphaChosen(), [`keep.${budgetKind}`]: budgetChosen(),
    ...(standardize === "zscore" ? {} : { standardize }), ...(page.by_lds ? {} : page.cleared),
  };
  return [`longattn select ${page.output}`, ...Object.entries(changes).map(([name, value]) => `--set select.${name}=${value}`)].join(" ");
}

function update() {
  const alpha = alphaChosen();
  document.getElementById("alpha-value").textContent = alpha.toFixed(2);
  document.getElementById("budget-value").textContent = `${d3.format(".3~r")(100 * (budgetInput.value === shareShown ? shareNow : Number(budgetInput.value)))} %`;
  document.getElementById("what-if-command").textContent = command();
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

// What a total of the run grew by in each of `steps` equal times. Stages report at the end of a batch:
// what came with a report was done since the one before, or longer ago where it took longer than that.
function spreadOver(steps, seconds, total, busy) {
  const grown = new Float64Array(steps);
  const step = seconds / steps;
  let before = page.rates[0];
  for (const now of page.rates) {
    const amount = total(now) - total(before);
    if (amount <= 0) continue;
    const start = Math.min(before.seconds, busy ? Math.max(0, now.seconds - Math.min(amount, 30)) : Infinity);
    for (let i = 0; i < steps; i++) {
      const shared = Math.min(now.seconds, (i + 1) * step) - Math.max(start, i * step);
      if (shared > 0) grown[i] += (amount * shared) / (now.seconds - start);
    }
    before = now;
  }
  return Array.from(grown, (amount, i) => ({ x1: i * step, x2: (i + 1) * step, y: amount / step }));
}

const seconds = page.rates.at(-1)?.seconds;
if (page.rates.length > 1 && seconds > 0) {
  document.getElementById("rates-section").hidden = false;
  const steps = Math.max(1, Math.min(60, Math.floor(seconds / 5)));
  const unit = seconds > 7200 ? { name: "hours", size: 3600 } : seconds > 300 ? { name: "minutes", size: 60 } : { name: "seconds", size: 1 };
  const line = (of, options) => Plot.line(of.flatMap(({ x1, x2, y }) => [[x1 / unit.size, y], [x2 / unit.size, y]]), { strokeWidth: 2, ...options });
  const axes = (width, most) => ({
    width, height: 190, marginBottom: 36, x: { label: unit.name, domain: [0, seconds / unit.size], ...ticksAcross([0, seconds / unit.size], width - 80) },
    y: { label: null, grid: true, domain: [0, most], ...ticksOf([0, most], 4) },
  });
  const rates = spreadOver(steps, seconds, (sample) => sample.scored, false);
  figure("rates", (width) => plot({
    ...axes(width, d3.max(rates, (d) => d.y) || 1),
    marks: [line(rates, { stroke: "var(--kept)" }), Plot.ruleY([0])],
  }));
  const stages = Object.keys(page.rates[0].busy);
  const color = colorOf(stages);
  const work = stages.map((stage) => spreadOver(steps, seconds, (sample) => sample.busy[stage], true));
  key("work-key", stages, stages.map(color));
  figure("work", (width) => plot({
    ...axes(width, Math.max(1, d3.max(work.flat(), (d) => d.y))),
    marks: [...work.map((of, i) => line(of, { stroke: color(stages[i]) })), Plot.ruleY([0])],
  }));
}
