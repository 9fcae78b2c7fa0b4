// How the difference between two networks grows: one value a layer, in the order in which they ran.
(function () {
  "use strict";
  const C = window.convscope, h = C.h;
  C.share = (value) => (value === null || value === undefined ? "–" : value === 0 ? "0" : value < 1e-5 ? value.toExponential(0) : value < 0.001 ? +(100 * value).toPrecision(1) + " %" : +(100 * value).toPrecision(value < 0.1 ? 2 : 3) + " %");

  // `layers`: [name, rms, largest, kinds...]; `edited`: names of layers that were changed; `first`: where it begins.
  C.growth = function (layers, tolerance, edited, first, wide) {
    if (layers.length < 2) return null;
    const W = wide ? 760 : 380, H = wide ? 270 : 230, L = 52, R = 14, T = 26, B = 44, floor = Math.max(tolerance, 1e-7), low = floor / 300;
    const high = Math.max(1, ...layers.map((row) => row[1])) * 1.6, step = (W - L - R) / (layers.length - 1);
    const x = (k) => L + step * k, y = (v) => H - B - ((H - B - T) * Math.log(Math.max(v, low) / low)) / Math.log(high / low);
    const text = (a, b, anchor, string, name) => h("svg:text", { x: a.toFixed(1), y: b.toFixed(1), "text-anchor": anchor, class: name || null }, string);
    const path = layers.map((row, k) => (k ? "L" : "M") + x(k).toFixed(1) + " " + y(row[1]).toFixed(1)).join("");
    const begin = layers.findIndex((row) => row[0] === first), last = layers[layers.length - 1], ticks = [];
    for (let power = 1; Math.pow(10, power) > floor; power -= 1) if (Math.pow(10, power) < high) ticks.push(Math.pow(10, power));
    const marks = layers.map((row, k) => (edited.has(row[0]) ? "M" + x(k).toFixed(1) + " " + (H - B + 3) + "v9" : "")).join("");
    const cursor = h("svg:line", { y1: T, y2: H - B, class: "cursor", visibility: "hidden" }), dot = h("svg:circle", { r: 4, class: "dot", visibility: "hidden" });
    const short = (name, most) => (name.length > most ? "…" + name.slice(1 - most) : name), most = wide ? 40 : 20;
    const svg = h("svg:svg", { class: "chart growth", viewBox: "0 0 " + W + " " + H, role: "img", "aria-label": "Difference of " + layers.length + " layers; " + (begin < 0 ? "none but rounding" : "it begins at " + first + ", and is " + C.share(last[1]) + " at " + last[0]) },
      h("svg:rect", { x: L, y: y(floor), width: W - L - R, height: H - B - y(floor), class: "band" }), text(W - R - 8, y(floor) + 17, "end", "rounding", "good"),
      ticks.map((v) => [h("svg:line", { x1: L, x2: W - R, y1: y(v), y2: y(v), class: "axis" }), text(L - 8, y(v) + 4, "end", C.share(v))]),
      h("svg:path", { d: path + "L" + x(layers.length - 1).toFixed(1) + " " + (H - B) + "L" + L + " " + (H - B) + "Z", class: "area" }), h("svg:path", { d: path, class: "line" }),
      marks ? h("svg:path", { d: marks, class: "altered" }) : null,
      text(L, H - 8, "start", short(layers[0][0], most / 2)), text(W - R, H - 8, "end", short(last[0], most / 2)),
      begin >= 0 ? [h("svg:circle", { cx: x(begin), cy: y(layers[begin][1]), r: 5, class: "begin" }), text(Math.min(W - R - 4, x(begin) + 8), T - 10, begin > layers.length / 2 ? "end" : "start", "begins at " + short(first, most), "mark")] : text(W - R, T - 10, "end", "equal, but for rounding", "mark good"),
      cursor, dot);
    const told = h("p", { class: "told", "aria-hidden": "true" }, " ");
    const show = function (event) {
      const box = svg.getBoundingClientRect(), k = Math.min(layers.length - 1, Math.max(0, Math.round((((event.clientX - box.left) / box.width) * W - L) / step))), row = layers[k];
      for (const key of ["x1", "x2"]) cursor.setAttribute(key, x(k));
      dot.setAttribute("cx", x(k));
      dot.setAttribute("cy", y(row[1]));
      for (const node of [cursor, dot]) node.setAttribute("visibility", "visible");
      told.replaceChildren(h("span", { class: "mono" }, row[0]), " " + row.slice(3).join(" → ") + (edited.has(row[0]) ? ", changed" : "") + ": " + C.share(row[1]) + ", at most " + C.share(row[2]) + " of the largest value");
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", function () {
      for (const node of [cursor, dot]) node.setAttribute("visibility", "hidden");
      told.replaceChildren(" ");
    });
    return h("div", {}, svg, told);
  };
})();
