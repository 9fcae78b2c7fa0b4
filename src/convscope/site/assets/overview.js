// The first page: the mosaic, the shape of the network, and every layer in the order it ran.
(function () {
  "use strict";
  const C = window.convscope, h = C.h;
  const byId = (id) => document.getElementById(id);
  const open = new Set(); // runs of modules the reader has unfolded; they stay so across updates

  function mosaic(atlas) {
    const best = atlas.hero.map(C.unit), box = byId("mosaic");
    const units = best.length > 12 ? best.slice(best.length % 12) : best; // whole rows only
    const full = units.length === 36; // four of them twice as large: 12 x 4 cells, or 6 x 8 on a phone
    const large = [26, 29, 31, 34]; // deep ones; where they lie says the style sheet
    box.className = "mosaic" + (full ? " full" : "");
    if (!full) box.style.setProperty("--columns", Math.max(1, Math.min(12, units.length)));
    box.replaceChildren(...units.map(function (unit, k) {
      if (!full || !large.includes(k)) return C.tile(unit);
      return h("a", { class: "tile large at" + large.indexOf(k), href: C.link(unit.id), title: C.title(unit), "aria-label": C.describe(unit) },
        h("img", { src: C.address(unit.image), alt: "", decoding: "async" }));
    }));
    box.closest(".hero").hidden = !units.length;
  }

  function lead(atlas) {
    const drawn = atlas.units.filter((unit) => unit.image).length;
    const layers = new Set(atlas.units.map((unit) => unit.layer)).size;
    byId("lead").textContent = !drawn && atlas.state === "running" ? "The first pictures are on their way." : "What its filters look for: " + C.plural(drawn, "picture") + " from " + C.plural(layers, "layer") + ", from the first to the last.";
  }

  function best(atlas, layer, count) {
    const chosen = new Set(atlas.hero), members = atlas.units.filter((unit) => unit.layer === layer.index);
    const rank = (unit) => (chosen.has(unit.id) ? 0 : unit.image ? 1 : 2);
    return members.map((unit, k) => [rank(unit), k, unit]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).slice(0, count).map((item) => item[2]);
  }

  // Each stage as a square whose side follows the logarithm of its resolution.
  function stages(atlas) {
    let list = atlas.layers.filter((layer) => layer.role === "stage");
    if (list.length < 2) list = atlas.layers;
    list = list.filter((layer) => layer.shape).slice(0, 12);
    const input = atlas.net.input.shape, side = (size) => 44 + 76 * Math.log2(Math.max(1, size) + 1) / Math.log2(Math.max(...input.slice(1)) + 1);
    const step = function (size, top, name, href, inside) {
      const box = h("a", { class: "square", href: href, title: name, "aria-label": name }, inside);
      box.style.width = box.style.height = side(size) + "px";
      return h("li", {}, h("div", { class: "well" }, box), h("b", {}, top), h("span", { class: "mono" }, name));
    };
    const spatial = (shape) => shape.slice(1);
    byId("stages").replaceChildren(h("ol", {}, list.map(function (layer) {
      const unit = best(atlas, layer, 1)[0], size = spatial(layer.shape);
      const label = (size.length ? size.join(" × ") + " · " : "") + layer.channels;
      return step(size.length ? Math.max(...size) : 1, label, layer.name, "filters.html#layer=" + layer.index, unit ? C.picture(unit) : h("span", { class: "pic" + (atlas.state === "running" ? "" : " none") }));
    })));
    byId("stages").hidden = !list.length;
  }

  function layers(atlas) {
    const seen = new Set(), rows = [];
    let run = [];
    const flush = function () {
      if (run.length) rows.push(between(run));
      run = [];
    };
    for (const entry of atlas.network) {
      const layer = entry.layer === null || entry.layer === undefined ? null : C.layer(entry.layer);
      if (layer && !seen.has(layer.index)) {
        flush();
        seen.add(layer.index);
        rows.push(row(atlas, layer, entry));
      } else if (entry.leaf) run.push(entry);
    }
    flush();
    for (const layer of atlas.layers) if (!seen.has(layer.index)) rows.push(row(atlas, layer, null));
    byId("layers").replaceChildren(...rows);
  }

  function row(atlas, layer, entry) {
    const shown = best(atlas, layer, 12), total = atlas.units.filter((unit) => unit.layer === layer.index).length;
    const field = layer.receptive_field;
    const facts = [layer.kind, layer.shape ? C.shape(layer.shape) : C.plural(layer.channels, "channel"), entry && entry.params ? C.count(entry.params) + " parameters" : null,
      field ? (field.is_global ? "sees the whole image" : "sees " + C.shape(field.size) + " px") : null];
    const waiting = atlas.state === "running" && !total;
    const strip = h("div", { class: "strip" },
      waiting ? Array.from({ length: 8 }, () => h("span", { class: "tile wait" }, h("span", { class: "pic" }))) : shown.map((unit) => C.tile(unit)),
      total > shown.length ? h("a", { class: "more", href: "filters.html#layer=" + layer.index, "aria-label": "All " + total + " units of " + layer.name }, "+" + (total - shown.length)) : null);
    strip.style.setProperty("--columns", Math.max(8, strip.childElementCount));
    return h("article", { class: "layer" },
      h("header", {}, h("h3", {}, h("a", { href: "filters.html#layer=" + layer.index, class: "mono" }, layer.name || "(network)")),
        h("p", {}, facts.filter(Boolean).map((fact) => h("span", {}, fact)))), strip);
  }

  function between(run) {
    const kinds = new Map(), key = run[0].name + "/" + run.length;
    for (const entry of run) kinds.set(entry.kind, (kinds.get(entry.kind) || 0) + 1);
    const summary = [...kinds].sort((a, b) => b[1] - a[1]).slice(0, 4).map(([kind, count]) => (count > 1 ? count + " " : "") + kind).join(", ");
    const details = h("details", { class: "between", open: open.has(key), ontoggle: () => {
      if (!details.open) return open.delete(key);
      open.add(key);
      if (!details.querySelector("table")) details.append(table(run));
    } }, h("summary", {}, C.plural(run.length, "module"), h("span", {}, summary + (kinds.size > 4 ? ", …" : ""))));
    if (open.has(key)) details.append(table(run));
    return details;
  }

  function table(run) {
    return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["Module", "Kind", "Output", "Parameters"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, run.map((entry) => h("tr", {}, h("td", { class: "mono" }, entry.name), h("td", {}, entry.kind), h("td", {}, C.shape(entry.out_shape)), h("td", {}, entry.params ? C.count(entry.params) : "–"))))));
  }

  function skipped(atlas) {
    byId("skipped").replaceChildren(...(atlas.skipped.length ? [h("h2", {}, "Not drawn"),
      h("ul", { class: "skipped" }, atlas.skipped.map((item) => h("li", {}, h("span", { class: "mono" }, item.layer), " ", item.reason)))] : []));
  }

  C.onAtlas(function (atlas) {
    const focused = document.activeElement && document.activeElement.getAttribute("href");
    mosaic(atlas);
    lead(atlas);
    stages(atlas);
    layers(atlas);
    skipped(atlas);
    const again = focused && [...document.querySelectorAll("main a")].find((link) => link.getAttribute("href") === focused);
    if (again && document.activeElement === document.body) again.focus({ preventScroll: true });
  });
})();
