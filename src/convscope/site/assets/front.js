// Networks as points, cost against what they keep; the line joins those that no other beats (the Pareto front).
(function () {
  "use strict";
  const C = window.convscope, h = C.h;
  const ROOM = 13; // pixels between points that would lie on one another
  const nice = function (low, high) { // 1, 2, 5 and their decades; even steps where few of those lie between
    const found = [];
    if (high / low < 4) {
      const step = [1, 2, 5, 10].map((n) => n * Math.pow(10, Math.floor(Math.log10((high - low) / 4)))).find((n) => (high - low) / n < 6);
      for (let v = Math.ceil(low / step) * step; v <= high; v += step) found.push(+v.toPrecision(12));
      return found;
    }
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const step of [1, 2, 5]) { const v = step * Math.pow(10, power); if (v >= low && v <= high) found.push(v); }
    return found;
  };
  const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

  // Of points with `x` and `y`: those that are at least as good as any that is as cheap.
  C.best = function (points, down) {
    const better = (a, b) => (down ? a.y < b.y : a.y > b.y), found = [];
    for (const point of [...points].sort((a, b) => a.x - b.x || (better(a, b) ? -1 : 1)))
      if (!found.length || better(point, found[found.length - 1])) found.push(point);
    return found;
  };

  // `points`: id, name, kind (exactness), x, y, and low, high of y where there is an interval. `x`, `y`: title, show(value);
  // y.down: less is better, on a logarithmic axis that ends in a band of what is equal (up to y.equal).
  C.front = function (points, x, y, wide) {
    const W = wide ? 820 : 380, H = wide ? 430 : 360, L = wide ? 66 : 52, R = wide ? 30 : 16, T = 34, B = 46, BAND = y.down ? 40 : 0;
    const xs = points.map((p) => p.x), ys = points.map((p) => p.y), equal = (v) => y.down && v <= y.equal;
    const pad = Math.max(...xs) / Math.min(...xs) > 1.05 ? 1.16 : 1.6, x0 = Math.min(...xs) / pad, x1 = Math.max(...xs) * pad;
    const px = (v) => L + ((W - L - R) * Math.log(v / x0)) / Math.log(x1 / x0);
    const far = ys.filter((v) => !equal(v)), low = y.down ? (far.length ? Math.min(...far) : 0.01) / 2 : Math.max(0, Math.min(...points.map((p) => (p.low === undefined || p.low === null ? p.y : p.low))) - 0.03);
    const high = y.down ? (far.length ? Math.max(...far) : 0.1) * 1.7 : 1.02, foot = H - B - BAND;
    const py = (v) => (equal(v) ? H - B - BAND / 2 : y.down ? foot - ((foot - T) * Math.log(v / low)) / Math.log(high / low) : foot - ((foot - T) * (v - low)) / (high - low));
    const text = (a, b, anchor, string, name) => h("svg:text", { x: a.toFixed(1), y: b.toFixed(1), "text-anchor": anchor, class: name || null }, string);
    const rows = y.down ? nice(low, high).filter((v, k, all) => all.length < 8 || /^1/.test(v.toPrecision(1))) : [0, 0.2, 0.4, 0.6, 0.8, 0.9, 1].filter((v) => v >= low && !(v === 0.9 && high - low > 0.5));
    const columns = nice(x0, x1).filter((v, k, all) => all.length < (wide ? 9 : 6) || !/^2/.test(v.toPrecision(1)));
    const placed = [];
    for (const point of [...points].sort((a, b) => a.x - b.x)) {
      const at = { ...point, cx: px(point.x), cy: py(point.y) };
      while (placed.some((other) => Math.hypot(other.cx - at.cx, other.cy - at.cy) < ROOM)) at.cx += ROOM;
      placed.push(at);
    }
    const best = C.best(placed, y.down), labels = [], dots = placed.map((p) => [p.cx - 7, p.cy - 7, p.cx + 7, p.cy + 7]);
    const steps = best.flatMap((p, k) => [[p.cx - 1, Math.min(p.cy, k ? best[k - 1].cy : y.down ? T : foot), p.cx + 1, Math.max(p.cy, k ? best[k - 1].cy : y.down ? T : foot)], [p.cx, p.cy - 1, k + 1 < best.length ? best[k + 1].cx : W - R, p.cy + 1]]);
    for (const p of placed) {
      const w = p.name.length * (wide ? 6.9 : 6.3) + 4;
      const tries = [[p.cx + 11, p.cy + 4, "start"], [p.cx - 11, p.cy + 4, "end"], [p.cx, p.cy - 12, "middle"], [p.cx, p.cy + 20, "middle"], [p.cx + 9, p.cy - 10, "start"], [p.cx + 9, p.cy + 18, "start"], [p.cx - 9, p.cy - 10, "end"], [p.cx - 9, p.cy + 18, "end"]];
      for (const [a, b, anchor] of tries) {
        const left = anchor === "start" ? a : anchor === "end" ? a - w : a - w / 2, box = [left, b - 11, left + w, b + 4];
        const own = placed.indexOf(p);
        if (box[0] < L + 2 || box[2] > W - 2 || box[1] < T - 12 || box[3] > H - B) continue;
        if (dots.some((dot, k) => k !== own && overlap(dot, box)) || labels.some((label) => overlap(label.box, box)) || steps.some((step) => overlap(step, box))) continue;
        labels.push({ box: box, node: text(a, b, anchor, p.name, "name") });
        break;
      }
    }
    const line = best.map((p, k) => (k ? "H" + p.cx.toFixed(1) + "V" + p.cy.toFixed(1) : "M" + p.cx.toFixed(1) + " " + (y.down ? T : foot) + "V" + p.cy.toFixed(1))).join("") + "H" + (W - R);
    return h("svg:svg", { class: "chart front", viewBox: "0 0 " + W + " " + H, role: "group", "aria-label": y.title + " against " + x.title + " of " + points.length + " networks; on the front: " + best.map((p) => p.name).join(", ") },
      BAND ? [h("svg:rect", { x: L, y: foot, width: W - L - R, height: BAND, class: "band" }), text(L - 8, H - B - BAND / 2 + 4, "end", "equal")] : [],
      rows.map((v) => [h("svg:line", { x1: L, x2: W - R, y1: py(v), y2: py(v), class: "axis" }), text(L - 8, py(v) + 4, "end", y.show(v))]),
      columns.map((v) => [h("svg:line", { x1: px(v), x2: px(v), y1: T, y2: H - B, class: "axis" }), text(px(v), H - B + 18, "middle", x.show(v))]),
      text(L, 16, "start", "↑ " + y.title), text(W - R, H - 6, "end", x.title + " →"),
      h("svg:path", { d: line, class: "edge" }),
      placed.filter((p) => p.low !== undefined && p.low !== null && !y.down).map((p) => h("svg:line", { x1: p.cx, x2: p.cx, y1: py(p.low), y2: py(p.high), class: "spread " + p.kind })),
      placed.map(function (p) {
        const dot = h("svg:circle", { cx: p.cx.toFixed(1), cy: p.cy.toFixed(1), r: best.includes(p) ? 6.5 : 5, class: "point " + p.kind + (best.includes(p) ? " best" : "") },
          h("svg:title", {}, p.name + ": " + x.show(p.x) + " " + x.title + ", " + y.title + " " + (equal(p.y) ? "none but rounding" : y.show(p.y))));
        return p.id ? h("svg:a", { href: "#" + p.id, "aria-label": p.name }, dot) : dot;
      }),
      labels.map((label) => label.node));
  };
})();
