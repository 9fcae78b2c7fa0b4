// Two small charts as SVG, drawn with the colours of the page.
(function () {
  "use strict";
  const C = window.convscope, h = C.h;
  const W = 480, H = 150, L = 8, R = 8, T = 14, B = 24;
  const text = (x, y, anchor, string, className) => h("svg:text", { x: x, y: y, "text-anchor": anchor, class: className }, string);
  const frame = (label, ...children) => h("svg:svg", { class: "chart", viewBox: "0 0 " + W + " " + H, role: "img", "aria-label": label },
    h("svg:line", { x1: L, x2: W - R, y1: H - B, y2: H - B, class: "axis" }), ...children);

  // The activation at every step that was noted: [[step, value], ...].
  C.curve = function (points) {
    const kept = (points || []).filter((point) => point[1] !== null && isFinite(point[1]));
    if (kept.length < 2) return null;
    const last = kept[kept.length - 1], values = kept.map((point) => point[1]);
    const low = Math.min(0, ...values), high = Math.max(...values, low + 1e-12), end = Math.max(1, last[0]);
    const x = (step) => L + ((W - L - R) * step) / end, y = (value) => H - B - ((H - B - T) * (value - low)) / (high - low);
    const path = kept.map((point, k) => (k ? "L" : "M") + x(point[0]).toFixed(1) + " " + y(point[1]).toFixed(1)).join("");
    const area = path + "L" + x(last[0]).toFixed(1) + " " + (H - B) + "L" + x(kept[0][0]).toFixed(1) + " " + (H - B) + "Z";
    return frame("Activation grew from " + C.number(values[0]) + " to " + C.number(last[1]) + " in " + last[0] + " steps",
      h("svg:path", { d: area, class: "area" }), h("svg:path", { d: path, class: "line" }), h("svg:circle", { cx: x(last[0]), cy: y(last[1]), r: 4, class: "dot" }),
      text(L, H - 7, "start", "step 0"), text(W - R, H - 7, "end", "step " + last[0]), text(L, T + 2, "start", C.number(high)));
  };

  // How often the photographs reach each activation (logarithmic), and where the optimized picture lies.
  C.histogram = function (histogram, value, most) {
    if (!histogram || !histogram.counts || !histogram.counts.length) return null;
    const edges = histogram.edges, counts = histogram.counts, low = edges[0], top = edges[edges.length - 1];
    const reach = value !== null && isFinite(value) ? value : top;
    const far = reach > low + 3 * (top - low), high = far ? low + 1.25 * (top - low) : Math.max(top, reach) + 0.03 * (top - low);
    const x = (v) => L + ((W - L - R) * (v - low)) / (high - low || 1), tall = Math.log1p(Math.max(...counts)) || 1;
    const bars = counts.map(function (count, k) {
      const height = ((H - B - T - 14) * Math.log1p(count)) / tall, left = x(edges[k]);
      return h("svg:rect", { x: left.toFixed(1), y: (H - B - height).toFixed(1), width: Math.max(0.5, x(edges[k + 1]) - left - 1).toFixed(1), height: height.toFixed(1), class: "column" });
    });
    const at = far ? W - R - 6 : x(Math.max(low, reach)), mark = [];
    if (value !== null && isFinite(value))
      mark.push(h("svg:line", { x1: at, x2: at, y1: T + 6, y2: H - B, class: "mark" + (far ? " far" : "") }),
        text(Math.max(at, 120), T, "end", "this picture: " + C.number(value) + (far ? " →" : ""), "mark"));
    return frame("Activations on the photographs reach " + C.number(most === undefined ? top : most) + "; the picture reaches " + C.number(value), ...bars, ...mark,
      text(L, H - 7, "start", Math.abs(low) < 0.001 * (top - low) ? "0" : C.number(low)), text(x(top), H - 7, far || x(top) < W - 60 ? "middle" : "end", C.number(top)));
  };
})();
