// All units by layer. Only the rows near the window exist in the page, so that thousands scroll smoothly.
(function () {
  "use strict";
  const C = window.convscope, h = C.h;
  const byId = (id) => document.getElementById(id);
  const box = byId("units"), panel = byId("panel"), query = byId("query"), tools = byId("tools"), help = byId("help");
  const GAP = 10, CAPTION = 24, HEADER = 58, MARGIN = 900; // pixels; MARGIN is drawn above and below the window
  const narrow = matchMedia("(max-width: 860px)");
  let atlas = null, rows = [], list = [], place = new Map(), live = new Map(), columns = 1, side = 100;
  let selected = null, focused = null, filled = "", pending = 0;
  const title = document.title;

  // ---- which units, in which order
  const SHOW = {
    all: ["All", () => true],
    drawn: ["With a picture", (unit) => unit.image],
    converged: ["Converged", (unit) => unit.status === "converged"],
    budget: ["Out of steps", (unit) => unit.status === "budget"],
    clean: ["No flags", (unit) => !unit.flags.length && unit.image],
    weak: ["Weak", (unit) => unit.flags.includes("weak")],
    saturated: ["Saturated", (unit) => unit.flags.includes("saturated")],
    dead: ["Dead", (unit) => unit.status === "dead" || unit.flags.includes("dead")],
    nan: ["Not finite", (unit) => unit.status === "nan"],
    interrupted: ["Interrupted", (unit) => unit.status === "interrupted"],
  };
  function matches(unit, tokens) {
    const layer = C.layer(unit.layer), name = layer.name.toLowerCase(), label = (unit.label || "").toLowerCase();
    return tokens.every(function (token) {
      if (/^#?\d+$/.test(token)) // a number is a channel, or a whole part of the layer's name or the label
        return String(unit.channel) === token.replace("#", "") || name.split(/[.#:]/).includes(token) || label.split(/\W+/).includes(token);
      return name.includes(token) || label.includes(token) || unit.id.startsWith(token) || unit.status === token || unit.flags.includes(token);
    });
  }
  function choose() {
    const tokens = query.value.toLowerCase().split(/\s+/).filter(Boolean), keep = (SHOW[byId("show").value] || SHOW.all)[1];
    const sort = byId("sort").value, least = parseFloat(byId("least").value);
    const score = (unit) => { const value = unit[sort]; return value === null || value === undefined || !isFinite(value) ? -Infinity : value; };
    const groups = atlas.layers.map((layer) => ({ layer: layer, units: [] })), at = new Map(groups.map((group) => [group.layer.index, group]));
    for (const unit of atlas.units)
      if (keep(unit) && matches(unit, tokens) && (!sort || isNaN(least) || score(unit) >= least)) at.get(unit.layer).units.push(unit);
    if (sort) for (const group of groups) group.units.sort((a, b) => score(b) - score(a));
    return groups.filter((group) => group.units.length);
  }

  // ---- where each row lies
  // As many columns as fit, give or take a few where that leaves no orphans in a typical group.
  function grid(width, counts) {
    const size = (count) => Math.floor((width - GAP * (count - 1)) / count), wish = narrow.matches ? 96 : 114;
    const usual = counts.sort((a, b) => a - b)[counts.length >> 1] || 1, fit = Math.max(1, Math.round((width + GAP) / (wish + GAP)));
    let best = fit, least = Infinity;
    for (let count = 1; count <= 2 * fit; count++) {
      if (size(count) < 0.78 * wish || size(count) > 1.5 * wish) continue;
      const cost = (usual > 40 ? 0 : (Math.ceil(usual / count) * count - usual) / count) + Math.abs(count - fit) / fit / 1.5;
      if (cost < least) [best, least] = [count, cost];
    }
    return [best, size(best)];
  }
  function layout() {
    const groups = choose();
    [columns, side] = grid(box.clientWidth, groups.map((group) => group.units.length));
    rows = [];
    list = [];
    place = new Map();
    let top = 0;
    for (const group of groups) {
      rows.push({ key: "l" + group.layer.index, top: top, height: HEADER, layer: group.layer, count: group.units.length });
      top += HEADER;
      for (let k = 0; k < group.units.length; k += columns) {
        const units = group.units.slice(k, k + columns);
        for (const unit of units) {
          place.set(unit.id, { index: list.length, row: rows.length });
          list.push(unit);
        }
        rows.push({ key: "u" + units[0].id + "/" + columns + "/" + side, top: top, height: side + CAPTION + GAP, layer: group.layer, units: units });
        top += side + CAPTION + GAP;
      }
      top += 12;
    }
    box.style.height = top + "px";
    for (const node of live.values()) node.remove();
    live.clear();
    report();
    draw();
  }
  function report() {
    const all = atlas.units.length;
    byId("count").textContent = list.length === all ? C.plural(all, "unit") : list.length.toLocaleString("en") + " of " + C.plural(all, "unit");
    byId("empty").hidden = list.length > 0;
    const asked = query.value.trim();
    byId("empty").firstElementChild.textContent = !all ? (atlas.state === "running" ? "The first pictures are on their way." : "There are no units in this report.")
      : asked ? "No unit matches “" + asked + "”." : "No unit passes these filters.";
    byId("clear").hidden = !all;
    sidebar();
  }

  // ---- what is on the page
  function visible() {
    const from = scrollY - box.offsetTop - MARGIN, to = from + innerHeight + 2 * MARGIN;
    let low = 0, high = rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rows[middle].top + rows[middle].height < from) low = middle + 1;
      else high = middle;
    }
    const found = [];
    for (let k = low; k < rows.length && rows[k].top <= to; k++) found.push(rows[k]);
    return found;
  }
  function draw() {
    const wanted = visible(), keys = new Set(wanted.map((row) => row.key));
    for (const [key, node] of live)
      if (!keys.has(key) && !node.contains(document.activeElement)) { // the row in focus stays, or the focus is lost
        node.remove();
        live.delete(key);
      }
    const fresh = document.createDocumentFragment();
    for (const row of wanted)
      if (!live.has(row.key)) {
        const node = row.units ? line(row) : heading(row);
        node.style.transform = "translateY(" + row.top + "px)";
        live.set(row.key, node);
        fresh.append(node);
      }
    box.append(fresh);
    spy();
  }
  function heading(row) {
    const layer = row.layer, field = layer.receptive_field;
    return h("div", { class: "row head" }, h("h2", { class: "mono", title: layer.name }, layer.name || "(network)"),
      h("p", {}, C.plural(row.count, "unit") + " · " + layer.kind + (layer.shape ? " · " + C.shape(layer.shape) : "") +
        (field ? " · sees " + (field.is_global ? "everything" : C.shape(field.size) + " px") : "")));
  }
  function line(row) {
    return h("div", { class: "row" }, row.units.map(function (unit) {
      const tile = h("a", { class: "unit", href: "#unit=" + unit.id, "data-id": unit.id, title: C.title(unit), "aria-label": C.describe(unit),
        tabindex: unit.id === (focused || (list[0] && list[0].id)) ? "0" : "-1", "aria-current": unit.id === selected ? "true" : null },
        C.picture(unit), h("span", { class: "name" }, unit.flags.length || !["converged", "budget"].includes(unit.status) ? h("i", { class: "flagged " + unit.status }) : null,
          unit.label || String(unit.channel), unit.seed ? h("small", {}, " seed " + unit.seed) : null));
      tile.style.width = side + "px";
      tile.firstElementChild.style.height = side + "px";
      return tile;
    }));
  }
  function sidebar() {
    const counts = new Map(rows.filter((row) => !row.units).map((row) => [row.layer.index, row.count]));
    const name = (layer) => layer.name || "(network)";
    byId("side").replaceChildren(h("ol", {}, atlas.layers.map((layer) => h("li", {}, h("a", { href: "#layer=" + layer.index, "data-layer": layer.index, title: name(layer),
      class: counts.get(layer.index) ? null : "none", onclick: (event) => { event.preventDefault(); jump(layer.index); } },
      h("span", {}, name(layer)), h("small", {}, String(counts.get(layer.index) || 0)))))));
    const select = byId("jump"), options = atlas.layers.filter((layer) => counts.get(layer.index));
    select.parentElement.hidden = !options.length;
    select.replaceChildren(...options.map((layer) => h("option", { value: layer.index }, name(layer))));
  }
  let here = null;
  function spy() {
    const line = scrollY - box.offsetTop + tools.offsetHeight + 80, passed = rows.filter((row) => !row.units && row.top <= line).pop() || rows[0];
    if (!passed) return;
    const index = String(passed.layer.index), link = byId("side").querySelector('[data-layer="' + index + '"]');
    if (here !== index || !link || !link.hasAttribute("aria-current")) {
      for (const other of byId("side").querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
      if (link) {
        link.setAttribute("aria-current", "true");
        const shelf = byId("side");
        if (link.offsetTop < shelf.scrollTop || link.offsetTop + link.offsetHeight > shelf.scrollTop + shelf.clientHeight) shelf.scrollTop = link.offsetTop - shelf.clientHeight / 2;
      }
      byId("jump").value = index;
    }
    here = index;
  }
  function jump(index) {
    const row = rows.find((one) => !one.units && String(one.layer.index) === String(index));
    if (row) scrollTo(0, Math.max(0, row.top + box.offsetTop - top()));
  }
  const top = () => parseFloat(getComputedStyle(tools).top) + tools.offsetHeight;
  function reveal(id) {
    const found = place.get(id);
    if (!found) return;
    const row = rows[found.row], from = row.top + box.offsetTop, head = top() + 8;
    if (from < scrollY + head) scrollTo(0, from - head);
    else if (from + row.height > scrollY + innerHeight) scrollTo(0, from + row.height - innerHeight + 8);
    draw();
  }

  // ---- one unit
  const node = (id) => [...box.querySelectorAll(".unit")].find((one) => one.dataset.id === id);
  function select(id, how) {
    const was = selected;
    selected = id;
    for (const one of box.querySelectorAll(".unit[aria-current]")) one.removeAttribute("aria-current");
    if (how !== "read") address(id, how === "open" && !was);
    const opened = document.body.classList.contains("has-panel") !== Boolean(id);
    document.body.classList.toggle("has-panel", Boolean(id));
    panel.hidden = !id;
    modal();
    if (opened) layout();
    const unit = id && C.unit(id);
    document.title = unit ? C.title(unit) + " · " + title : title;
    if (!id) {
      filled = "";
      return;
    }
    focus(id, false);
    reveal(id);
    const current = node(id);
    if (current) current.setAttribute("aria-current", "true");
    fill();
  }
  function address(id, added) { // with a pause: browsers complain of a held arrow key that changes it at every beat
    clearTimeout(pending);
    if (added) history.pushState(null, "", "#unit=" + id);
    else pending = setTimeout(() => history.replaceState(null, "", id ? "#unit=" + id : location.pathname + location.search), id ? 150 : 0);
  }
  function modal() { // on a phone the panel covers everything: what lies below takes no focus
    const covered = narrow.matches && !panel.hidden;
    byId("main").inert = covered;
    document.body.classList.toggle("covered", covered);
  }
  function fill() {
    const unit = C.unit(selected), id = selected;
    if (!unit) {
      filled = "";
      panel.replaceChildren(h("header", {}, h("div", {}, h("h2", {}, "Unit " + id),
        h("p", { class: "sub" }, atlas.state === "running" ? "This unit is not drawn yet; it appears here when it is." : "This report has no such unit.")),
        h("div", { class: "acts" }, h("button", { type: "button", onclick: close }, "Close"))));
      return;
    }
    const key = id + C.version(unit);
    if (key === filled) return; // an update that does not concern this unit
    const same = filled.startsWith(id + "data/");
    filled = key;
    const actions = { previous: () => move(-1), next: () => move(1), close: close };
    const apply = function (details) {
      if (filled !== key) return;
      const held = panel.contains(document.activeElement) ? document.activeElement.dataset.act : null, scroll = panel.scrollTop;
      const unfolded = panel.querySelector("details.settings[open]");
      C.fillPanel(panel, unit, details, actions);
      if (unfolded) panel.querySelector("details.settings").open = true;
      panel.scrollTop = same ? scroll : 0;
      if (held) panel.querySelector('[data-act="' + held + '"]').focus();
    };
    C.details(unit).then(apply, () => apply(null));
  }
  function close() {
    const id = selected;
    select(null, "close");
    if (place.has(id)) focus(id, true);
  }
  function move(by) {
    if (!list.length) return;
    const found = place.get(selected), index = found ? found.index + by : 0;
    if (index >= 0 && index < list.length) select(list[index].id, "move");
  }
  function focus(id, really) {
    focused = id;
    for (const one of box.querySelectorAll('.unit[tabindex="0"]')) one.tabIndex = -1;
    reveal(id);
    const one = node(id);
    if (!one) return;
    one.tabIndex = 0;
    if (really) one.focus({ preventScroll: true });
  }

  // ---- events
  box.addEventListener("click", function (event) {
    const one = event.target.closest(".unit");
    if (!one || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    select(one.dataset.id, "open");
    if (event.detail === 0 || narrow.matches) panel.focus(); // opened with Enter
    else focus(one.dataset.id, true);
  });
  const STEP = { ArrowLeft: -1, ArrowRight: 1 };
  function arrow(event) {
    const inGrid = box.contains(document.activeElement), from = place.get(inGrid ? document.activeElement.dataset.id : selected);
    if (!inGrid && (!selected || !(event.key in STEP))) return false;
    if (!from) return selected ? (move(0), true) : false;
    let index = from.index + (STEP[event.key] || 0);
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const down = event.key === "ArrowDown" ? 1 : -1, column = rows[from.row].units.indexOf(list[from.index]);
      let row = from.row + down;
      while (rows[row] && !rows[row].units) row += down;
      if (!rows[row]) return true;
      index = place.get(rows[row].units[Math.min(column, rows[row].units.length - 1)].id).index;
    }
    if (event.key === "Home") index = 0;
    if (event.key === "End") index = list.length - 1;
    if (!list[index]) return true;
    if (selected) select(list[index].id, "move");
    if (inGrid) focus(list[index].id, true);
    return true;
  }
  document.addEventListener("keydown", function (event) {
    if (event.altKey || event.ctrlKey || event.metaKey || help.open) return;
    const typing = event.target.matches("input, select, textarea, pre");
    if (event.key === "Escape") {
      if (event.target === query && query.value) { query.value = ""; layout(); }
      else if (typing && event.target !== document.body && event.target.matches("input, select")) event.target.blur();
      else if (selected) close();
    } else if (typing) {
      return;
    } else if (event.key === "/") {
      if (narrow.matches && selected) close();
      query.focus();
      query.select();
    } else if (event.key === "?") help.showModal();
    else if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key) || !arrow(event)) return;
    event.preventDefault();
  });
  byId("help-button").addEventListener("click", () => help.showModal());
  help.addEventListener("click", (event) => event.target === help && help.close());
  byId("clear").addEventListener("click", function () {
    tools.reset();
    least();
    layout();
    query.focus();
  });
  function least() {
    byId("least").parentElement.hidden = !byId("sort").value;
    if (!byId("sort").value) byId("least").value = "";
  }
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.addEventListener("input", function (event) {
    if (event.target.id === "jump") return jump(event.target.value);
    least();
    layout();
    scrollTo(0, 0);
  });
  let waiting = false;
  const soon = (run) => () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => ((waiting = false), run()));
  };
  addEventListener("scroll", soon(draw), { passive: true });
  addEventListener("resize", soon(() => { modal(); anchored(layout); }));
  narrow.addEventListener("change", modal);
  addEventListener("popstate", read);
  addEventListener("hashchange", read);

  // ---- the address: #unit=3/17/0, #layer=3, #q=tench
  function read() {
    clearTimeout(pending);
    const asked = new URLSearchParams(location.hash.slice(1));
    if (asked.has("q") && asked.get("q") !== query.value) { query.value = asked.get("q"); layout(); }
    if (asked.has("layer")) jump(asked.get("layer"));
    if ((asked.get("unit") || null) !== selected) select(asked.get("unit") || null, "read");
  }

  // ---- updates while the atlas runs: what is under the reader's eyes stays where it is
  function anchored(change) {
    const first = scrollY > box.offsetTop && rows.find((row) => row.units && row.top + box.offsetTop >= scrollY), shift = first ? first.top - scrollY : 0;
    change();
    const found = first && place.get(first.units[0].id);
    if (found) scrollTo(0, rows[found.row].top - shift);
    draw();
  }
  function options() {
    const select = byId("show"), kept = select.value || "all";
    const offered = Object.entries(SHOW).map(([key, [name, test]]) => [key, name, atlas.units.filter(test).length]).filter(([key, , count]) => count || key === "all" || key === kept);
    select.replaceChildren(...offered.map(([key, name, count]) => h("option", { value: key }, name + " (" + count + ")")));
    select.value = kept;
    const sort = byId("sort"), chosen = sort.value;
    const scores = Object.entries(C.SCORES).filter(([key]) => key === chosen || atlas.units.some((unit) => unit[key] !== null && unit[key] !== undefined));
    sort.replaceChildren(h("option", { value: "" }, "By channel"), ...scores.map(([key, score]) => h("option", { value: key }, "By " + score.name.toLowerCase())));
    sort.value = chosen;
    least();
  }
  let begun = false;
  C.onAtlas(function (data) {
    const active = document.activeElement && box.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    atlas = data;
    options();
    anchored(layout);
    if (active && place.has(active)) node(active) && node(active).focus({ preventScroll: true });
    if (!begun) read();
    else if (selected) fill();
    begun = true;
  });
})();
