"use strict";
// The figures of evaluation.html.

Object.values(pageData()).forEach((category, i) => {
  const scorers = Object.keys(category.auc).filter((scorer) => scorer !== "random");
  const kinds = Object.keys(category.auc.LDS);
  const rows = scorers.flatMap((scorer) => kinds.map((kind) => ({ scorer, kind, ...category.auc[scorer][kind] })));
  const text = (d) => `${d.scorer}, ${d.kind}: ${d.auc.toFixed(2)} (${d.low.toFixed(2)} to ${d.high.toFixed(2)})`;
  figure(`auc-${i}`, (width) =>
    plot({
      width, height: 60 + kinds.length * scorers.length * 11, marginLeft: 90, marginRight: 10, marginBottom: 38,
      x: { domain: [0, 1], label: "AUC", grid: true },
      y: { domain: scorers, axis: null },
      fy: { domain: kinds, label: null, axis: "left" },
      color: { domain: scorers, range: scorers.map(colorOf(scorers)), legend: true },
      marks: [
        Plot.ruleX([0.5], { stroke: "var(--ink)", strokeDasharray: "4 3" }),
        Plot.ruleY(rows, { y: "scorer", fy: "kind", x1: "low", x2: "high", stroke: "scorer" }),
        Plot.dot(rows, { y: "scorer", fy: "kind", x: "auc", fill: "scorer", r: 3.5, title: text }),
      ],
    }));
});
