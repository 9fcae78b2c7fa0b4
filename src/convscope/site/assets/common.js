// Shared by all pages: safe elements, pictures from sprite sheets, data that refreshes while the atlas runs.
(function () {
  "use strict";
  const C = (window.convscope = {});
  const TILE = 128, COLUMNS = 8, BLOCK = 64, POLL = 3000; // as in sprites.py
  const DATA = (window.convscopeData = window.convscopeData || {});

  // An element; strings become text nodes, so that names from a model can never become markup.
  C.h = function (tag, attributes, ...children) {
    const node = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value === true) node.setAttribute(key, "");
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
    }
    node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  };

  // On a phone the pages do not fit beside each other: the one that is open comes into sight.
  const here = document.querySelector(".bar nav [aria-current]");
  if (here) here.parentNode.scrollLeft = here.offsetLeft - (here.parentNode.clientWidth - here.offsetWidth) / 2;

  // ---- numbers
  C.number = function (value) {
    if (value === null || value === undefined || !isFinite(value)) return "–";
    if (value === 0) return "0";
    return value.toFixed(Math.min(8, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))))));
  };
  C.count = function (value) {
    if (value === null || value === undefined) return "–";
    for (const [limit, suffix] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]])
      if (Math.abs(value) >= limit) return String(+(value / limit).toPrecision(3)) + suffix;
    return String(value);
  };
  C.seconds = function (value) {
    if (value === null || value === undefined || !isFinite(value)) return "–";
    for (const [scale, unit] of [[1, " s"], [1e3, " ms"], [1e6, " µs"]]) if (value * scale >= 1 || unit === " µs") return +(value * scale).toPrecision(3) + unit;
  };
  C.bytes = function (value) {
    if (value === null || value === undefined) return "–";
    for (const [limit, unit] of [[2 ** 30, " GiB"], [2 ** 20, " MiB"], [2 ** 10, " KiB"]]) if (value >= limit) return +(value / limit).toPrecision(3) + unit;
    return value + " B";
  };
  C.shape = (values) => (values && values.length ? values.join(" × ") : "–");
  C.plain = function (value) {
    if (value === null || value === undefined) return "–";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value === "number") return String(+value.toPrecision(6));
    if (Array.isArray(value)) return value.map(C.plain).join(", ") || "–";
    if (typeof value === "object") return Object.entries(value).map(([k, v]) => k + ": " + C.plain(v)).join(", ") || "–";
    return String(value);
  };
  C.plural = (count, word) => count.toLocaleString("en") + " " + word + (count === 1 ? "" : "s");

  // ---- data
  let listeners = [], state = "", layers = new Map(), units = new Map(), pause = POLL;
  C.atlas = () => DATA.atlas;
  C.layer = (index) => layers.get(index);
  C.unit = (id) => units.get(id);
  C.onAtlas = function (listener) {
    listeners.push(listener);
    if (DATA.atlas) listener(DATA.atlas);
  };
  function accept() {
    const atlas = DATA.atlas;
    const now = atlas.state + atlas.units.length + atlas.layers.map((l) => l.blocks.map((b) => b.sheet + b.details).join()).join();
    if (now === state) return;
    state = now;
    layers = new Map(atlas.layers.map((layer) => [layer.index, layer]));
    units = new Map(atlas.units.map((unit) => [unit.id, unit]));
    progress(atlas);
    for (const listener of listeners) listener(atlas);
  }
  C.load = function (source) {
    return new Promise(function (resolve, reject) {
      const script = C.h("script", { src: source, onload: () => (script.remove(), resolve()), onerror: () => (script.remove(), reject(source)) });
      document.head.append(script);
    });
  };
  // Curves, histograms and commands of the block of 64 units that a unit belongs to.
  const loaded = new Map();
  C.details = function (unit) {
    const block = layers.get(unit.layer).blocks[Math.floor(unit.place / BLOCK)];
    if (!loaded.has(block.details))
      loaded.set(block.details, C.load(block.details).then(function () {
        const found = new Map(DATA[block.key].map((item) => [item.id, item]));
        delete DATA[block.key];
        return found;
      }));
    return loaded.get(block.details).then((found) => found.get(unit.id) || null);
  };
  C.version = (unit) => layers.get(unit.layer).blocks[Math.floor(unit.place / BLOCK)].details;
  function poll() {
    if (!DATA.atlas || DATA.atlas.state !== "running") return;
    setTimeout(function () {
      if (document.hidden) return poll();
      const begun = performance.now();
      C.load("data/atlas.js?t=" + Date.now()).then(accept, () => undefined).then(function () {
        pause = Math.max(POLL, 20 * (performance.now() - begun)); // a huge atlas asks less often
        poll();
      });
    }, pause);
  }
  function progress(atlas) {
    const box = document.getElementById("progress"), done = atlas.units.length;
    const track = box.querySelector(".track");
    box.hidden = atlas.state === "done";
    box.dataset.state = atlas.state;
    track.setAttribute("aria-valuemax", atlas.planned);
    track.setAttribute("aria-valuenow", done);
    track.firstElementChild.style.width = Math.min(100, (100 * done) / Math.max(1, atlas.planned)) + "%";
    box.querySelector("p").textContent = atlas.state === "running"
      ? "Drawing: " + done + " of " + atlas.planned + " pictures; this page fills by itself"
      : "Interrupted at " + done + " of " + atlas.planned + " pictures; run the same command again to continue";
  }

  // ---- pictures
  const EMPTY = { dead: "dead", nan: "not finite", interrupted: "interrupted" };
  C.emptyText = (unit) => (unit.missing ? "file missing" : EMPTY[unit.status] || "no picture");
  C.picture = function (unit) {
    const span = C.h("span", { class: "pic" });
    if (!unit.image) {
      span.classList.add("none");
      span.append(C.emptyText(unit));
      return span;
    }
    const block = layers.get(unit.layer).blocks[Math.floor(unit.place / BLOCK)], k = unit.place % BLOCK;
    // One pixel less on every side, so that no neighbour bleeds in when the browser rescales the sheet.
    const at = (cell, cells) => (100 * (cell * TILE + 1)) / (cells * TILE - (TILE - 2)) + "%";
    const size = (cells) => (100 * cells * TILE) / (TILE - 2) + "%";
    span.style.backgroundImage = 'url("' + block.sheet + '")';
    span.style.backgroundSize = size(block.columns) + " " + size(block.rows);
    span.style.backgroundPosition = at(k % COLUMNS, block.columns) + " " + at(Math.floor(k / COLUMNS), block.rows);
    return span;
  };
  C.address = (path) => path.split("/").map(encodeURIComponent).join("/");
  C.link = (id) => "filters.html#unit=" + id.split("/").map(encodeURIComponent).join("/");
  C.title = function (unit) {
    const layer = layers.get(unit.layer);
    return layer.name + " · channel " + unit.channel + (unit.seed ? " · seed " + unit.seed : "") + (unit.label ? " · " + unit.label : "");
  };
  C.describe = function (unit) {
    const found = unit.activation === null ? "" : ", activation " + C.number(unit.activation);
    return C.title(unit) + found + ", " + unit.status + (unit.flags.length ? ", " + unit.flags.join(", ") : "");
  };
  C.tile = (unit, className) => C.h("a", { class: className || "tile", href: C.link(unit.id), title: C.title(unit), "aria-label": C.describe(unit) }, C.picture(unit));

  // Scripts of the page come after this one and register their listeners before the first update.
  if (DATA.atlas) document.addEventListener("DOMContentLoaded", poll);
  if (DATA.atlas) accept();
})();
