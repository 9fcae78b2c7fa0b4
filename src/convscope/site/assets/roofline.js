// The roofline: what every layer reaches against what this machine can do at the layer's intensity.
(function () {
  "use strict";
  const C = window.convscope, h = C.h;
  const T = 22, R = 16, B = 40, L = 58;

  // Rows with MACs that were timed; `chosen` names the one to point out, `select(name)` is called for another.
  C.roofline = function (rows, machine, chosen, select, wide) {
    const points = rows.filter((row) => row.macs && row.bytes && row.rate).map((row) => ({ row: row, x: row.macs / row.bytes, y: row.rate, r: row.seconds }));
    if (!machine || points.length < 1) return null;
    const W = wide ? 760 : 480, H = wide ? 400 : 300, decade = (v, up) => Math.pow(10, up ? Math.ceil(Math.log10(v)) : Math.floor(Math.log10(v)));
    const xs = points.map((p) => p.x), ys = points.map((p) => p.y), knee = machine.macs / machine.bytes;
    const x0 = Math.min(...xs, knee / 3) / 1.5, x1 = Math.max(...xs, knee * 3) * 1.5, y0 = Math.max(decade(Math.min(...ys), false), machine.macs / 1e5), y1 = Math.max(machine.macs, ...ys) * 1.6;
    const x = (v) => L + ((W - L - R) * Math.log(v / x0)) / Math.log(x1 / x0), y = (v) => H - B - ((H - B - T) * Math.log(Math.max(v, y0) / y0)) / Math.log(y1 / y0);
    const text = (px, py, anchor, string, name) => h("svg:text", { x: px, y: py, "text-anchor": anchor, class: name || null }, string);
    const ticks = (low, high) => { const found = []; for (let v = decade(low, true); v <= high; v *= 10) found.push(v); return found; };
    const roof = [[x0, x0 * machine.bytes], [knee, machine.macs], [x1, machine.macs]].filter((p) => p[1] >= y0);
    if (x0 * machine.bytes < y0) roof.unshift([y0 / machine.bytes, y0]);
    const longest = Math.max(...points.map((p) => p.r)), radius = (s) => 2.6 + 5.4 * Math.sqrt(s / longest);
    const order = [...points].sort((a, b) => (a.row.name === chosen) - (b.row.name === chosen) || b.r - a.r);
    return h("svg:svg", { class: "chart roofline", viewBox: "0 0 " + W + " " + H, role: "img", "aria-label": "MACs a second of " + points.length + " layers against their intensity; the machine reaches " + C.count(machine.macs) + " MACs and " + C.count(machine.bytes) + "B a second" },
      ticks(y0, y1).map((v) => [h("svg:line", { x1: L, x2: W - R, y1: y(v), y2: y(v), class: "axis" }), text(L - 8, y(v) + 4, "end", C.count(v))]).flat(),
      ticks(x0, x1).map((v) => [h("svg:line", { x1: x(v), x2: x(v), y1: T, y2: H - B, class: "axis" }), text(x(v), H - B + 17, "middle", String(+v.toPrecision(3)))]).flat(),
      text((L + W - R) / 2, H - 6, "middle", "intensity: MACs a byte"), text(8, T - 2, "start", "MACs/s"),
      h("svg:path", { d: roof.map((p, k) => (k ? "L" : "M") + x(p[0]).toFixed(1) + " " + y(p[1]).toFixed(1)).join(""), class: "roof" }),
      text(W - R, y(machine.macs) - 7, "end", "peak " + C.count(machine.macs) + " MACs/s"),
      order.map(function (p) {
        const dot = h("svg:circle", { cx: x(p.x).toFixed(1), cy: y(p.y).toFixed(1), r: radius(p.r).toFixed(1), class: "spot " + p.row.bound + (p.row.name === chosen ? " chosen" : ""), onclick: () => select(p.row.name) },
          h("svg:title", {}, p.row.name + ": " + C.number(p.x) + " MACs a byte, " + C.count(p.y) + " MACs/s, " + C.seconds(p.row.seconds)));
        return dot;
      }));
  };
})();
