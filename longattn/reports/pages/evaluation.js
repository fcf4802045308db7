"use strict";
// The figures of evaluation.html.

const page = pageData();

Object.values(page.categories).forEach((category, i) => {
  const name = (scorer) => page.labels[scorer] ?? scorer;
  const scorers = Object.keys(category.auc).filter((scorer) => scorer !== "random");
  const kinds = Object.keys(category.auc.LDS);
  const few = category.documents < page.few;
  const color = colorOf(scorers);
  const rows = scorers.flatMap((scorer) => kinds.map((kind) => ({ scorer, kind, ...category.auc[scorer][kind] })));
  const text = (d) => `${name(d.scorer)}, ${d.kind}: ${d.auc.toFixed(2)} (${d.low.toFixed(2)} to ${d.high.toFixed(2)}${few ? ", of few documents" : ""})`;
  key(`key-${i}`, scorers.map(name), scorers.map(color));
  figure(`auc-${i}`, (width) =>
    plot({
      width, height: 60 + kinds.length * (scorers.length * 11 + 8), marginLeft: 90, marginRight: 14, marginBottom: 38,
      x: { domain: [0, 1], label: "AUC", grid: true, ...ticksAcross([0, 1], width - 80) },
      y: { domain: scorers, axis: null },
      fy: { domain: kinds, label: null, axis: "left", padding: 0.12 },
      marks: [
        Plot.ruleX([0.5], { stroke: "var(--ink)", strokeDasharray: "4 3" }),
        Plot.ruleY(rows, { y: "scorer", fy: "kind", x1: "low", x2: "high", stroke: (d) => color(d.scorer), strokeDasharray: few ? "2 3" : null, strokeWidth: 1.5 }),
        Plot.dot(rows, { y: "scorer", fy: "kind", x: "auc", fill: (d) => color(d.scorer), r: 3.5, title: text }),
      ],
    }));
});
