// The page of layers: the flow, the table, and a panel for the layer chosen. Only the rows near the window exist.
(function () {
  "use strict";
  const C = window.convscope, h = C.h, DATA = window.convscopeData;
  const byId = (id) => document.getElementById(id);
  const sheet = byId("sheet"), panel = byId("panel"), query = byId("query"), help = byId("help");
  const HEIGHT = 34, SPARE = 12, OPENED = 46, ROOT = "(network)", POLL = 3000; // pixels; rows drawn beyond the window; rows of the opened groups at first
  const narrow = matchMedia("(max-width: 860px)"), title = document.title;
  let data = null, rows = [], groups = new Map(), tree = [], open = new Set(), list = [], columns = [], sort = null, selected = null, focused = null, flow = null, filled = "";

  // ---- what a column shows
  const IDLE = new Set(["empty", "empty_like", "detach", "write", "view", "reshape", "slice", "select", "transpose", "permute", "expand", "unsqueeze", "squeeze", "alias", "clone", "t"]);
  const text = (value) => value;
  const number = (value) => (value ? C.count(value) : "");
  const percent = (value) => (value === null || value === undefined ? "" : (100 * value).toPrecision(value < 0.1 ? 2 : 3) + " %");
  const alike = (values) => (values.every((v) => v === values[0]) ? String(values[0]) : values.join("×"));
  function windowText(row) {
    if (!row.kernel) return "";
    const parts = [row.kernel.length === 1 ? row.kernel[0] : row.kernel.join("×")];
    for (const [letter, values, usual] of [["s", row.stride, 1], ["p", row.padding, 0], ["d", row.dilation, 1]])
      if (values && values.some((v) => v !== usual)) parts.push(letter + alike(values));
    if (row.groups > 1) parts.push("g" + row.groups);
    return parts.join(" ");
  }
  const short = (field) => (!field ? "" : field.whole.every(Boolean) ? (field.local ? "all (" + alike(field.local.size) + ")" : "all") : (field.bounds.length ? "≤ " : "") + alike(field.size));
  const out = (row) => (row.out ? row.out.slice(1).join(" × ") : "");
  const product = (values) => (values ? values.reduce((a, b) => a * b, 1) : null);
  const COLUMNS = [
    { key: "name", title: "Layer", width: 248, value: (r) => r.name, show: text, words: true },
    { key: "kind", title: "Kind", width: 166, value: (r) => r.kind, show: text, words: true },
    { key: "out", title: "Output", width: 132, value: (r) => product(r.out), show: (_, r) => out(r) },
    { key: "window", title: "Kernel", width: 128, value: (r) => product(r.kernel), show: (_, r) => windowText(r) },
    { key: "params", title: "Params", width: 92, value: (r) => r.params, show: number, bar: true, adds: true },
    { key: "macs", title: "MACs", width: 88, value: (r) => r.macs, show: number, bar: true, adds: true },
    { key: "element_ops", title: "Element ops", width: 122, value: (r) => r.element_ops, show: number, bar: true, adds: true },
    { key: "activation_bytes", title: "Activations", width: 120, value: (r) => r.activation_bytes, show: (v) => (v ? C.bytes(v) : ""), bar: true, adds: true },
    { key: "field", title: "Sees", width: 92, value: (r) => C.fieldSize(r.field), show: (_, r) => short(r.field), about: "Receptive field in pixels of the input; all: the whole image (in brackets: through local paths)" },
    { key: "seconds", title: "Time", width: 92, value: (r) => r.seconds, show: (v) => (v === undefined || v === null ? "" : C.seconds(v)), bar: true, adds: true, optional: true },
    { key: "bound", title: "Bound by", width: 108, value: (r) => r.bound, show: (v) => v || "", words: true, optional: true },
    { key: "border", title: "At padding", width: 112, value: (r) => r.border, show: percent, optional: true, about: "Share of positions that touch padding" },
    { key: "change", title: "Changed", width: 98, value: (r) => r.change, show: percent, optional: true, about: "How much features that touch padding change when the picture goes on instead" },
    { key: "shift", title: "Shift error", width: 108, value: (r) => r.shift, show: percent, optional: true, about: "How far the features are from moving along when the picture rolls by whole strides" },
  ];

  // ---- rows and groups
  const id = (row) => row.name || ROOT;
  const works = (row) => Object.keys(row.ops).length > 0; // an identity, or dropout at rest, does nothing
  function build() {
    const hoisted = new Set(data.flow.open), size = new Map();
    rows = data.rows;
    groups = new Map();
    for (const row of rows) if (works(row)) for (const name of row.inside) size.set(name, (size.get(name) || 0) + 1);
    tree = [];
    for (const row of rows) {
      let into = tree;
      for (const name of row.inside.filter((one) => !hoisted.has(one) && size.get(one) > 2)) {
        let group = groups.get(name);
        if (!group) {
          group = { ...data.groups[name], name: name, members: [], group: true, level: row.inside.length, rows: [] };
          groups.set(name, group);
          into.push(group);
        }
        group.rows.push(row);
        into = group.members;
      }
      into.push(row);
    }
    for (const group of groups.values())
      for (const column of COLUMNS)
        if (column.adds) group[column.key] = group.rows.some((row) => row[column.key] !== undefined) ? group.rows.reduce((sum, row) => sum + (row[column.key] || 0), 0) : undefined;
    columns = COLUMNS.filter((column) => !column.optional || rows.some((row) => row[column.key] !== undefined && row[column.key] !== null));
    for (const column of columns) {
      if (!column.bar) continue;
      column.most = Math.max(0, ...rows.map((row) => row[column.key] || 0));
      column.mostOfGroups = Math.max(0, ...tree.filter((item) => item.group).map((item) => item[column.key] || 0));
    }
  }
  function openFew() { // as many levels as fit a screen or two
    let level = tree, count = tree.length;
    while (level.length) {
      const inside = level.filter((item) => item.group), more = inside.reduce((sum, item) => sum + item.members.length, 0);
      if (!more || count + more > OPENED) return;
      for (const item of inside) open.add(item.name);
      count += more;
      level = inside.flatMap((item) => item.members);
    }
  }
  function matches(row, tokens) {
    const name = row.name.toLowerCase(), kind = row.kind.toLowerCase();
    return tokens.every((token) => name.includes(token) || kind.includes(token) || row.bound === token);
  }
  function layout() {
    const tokens = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    list = [];
    if (tokens.length || sort) {
      list = rows.filter((row) => matches(row, tokens)).map((row) => ({ item: row, depth: 0 }));
      if (sort) {
        const column = COLUMNS.find((one) => one.key === sort.key), known = (entry) => { const v = column.value(entry.item); return v !== null && v !== undefined && v !== "" && v !== 0; };
        const order = (a, b) => { const x = column.value(a.item), y = column.value(b.item); return column.words ? x.localeCompare(y, "en", { numeric: true }) : x - y; };
        const ordered = list.filter(known).sort((a, b) => (sort.down ? order(b, a) : order(a, b)));
        list = [...ordered, ...list.filter((entry) => !known(entry))];
      }
    } else {
      const walk = (items, depth) => items.forEach(function (item) {
        list.push({ item: item, depth: depth });
        if (item.group && open.has(item.name)) walk(item.members, depth + 1);
      });
      walk(tree, 0);
    }
    byId("count").textContent = tokens.length ? list.length.toLocaleString("en") + " of " + C.plural(rows.length, "layer") : C.plural(rows.length, "layer");
    byId("empty").hidden = list.length > 0;
    byId("empty").textContent = "No layer matches “" + query.value.trim() + "”.";
    const grouped = !tokens.length && !sort && groups.size > 0;
    byId("fold").disabled = byId("unfold").disabled = !grouped;
    byId("fold").hidden = byId("unfold").hidden = !groups.size;
  }

  // ---- the table
  let body = null, above = null, below = null, live = new Map();
  function frame() {
    const wide = (column) => (narrow.matches && column.key === "name" ? 176 : column.width), width = columns.reduce((sum, column) => sum + wide(column), 0);
    body = h("tbody", {});
    const table = h("table", { class: "sheet", role: "treegrid", "aria-rowcount": list.length + 1, "aria-label": "Layers" },
      h("colgroup", {}, columns.map((column) => { const one = h("col", {}); one.style.width = wide(column) + "px"; return one; })),
      h("thead", {}, h("tr", {}, columns.map((column) => {
        const on = sort && sort.key === column.key;
        return h("th", { scope: "col", class: column.words ? null : "n", "aria-sort": on ? (sort.down ? "descending" : "ascending") : "none", title: column.about || null },
          h("button", { type: "button", "data-sort": column.key, onclick: () => sortBy(column) }, column.title, h("svg:svg", { viewBox: "0 0 8 10", "aria-hidden": "true", class: "way" }, h("svg:path", { d: on ? (sort.down ? "M4 1v8M1 6l3 3 3-3" : "M4 9V1M1 4l3-3 3 3") : "M1 4l3-3 3 3M1 6l3 3 3-3" }))));
      }))), body, foot());
    table.style.width = width + "px";
    table.style.minWidth = "100%";
    above = h("tr", { class: "space", "aria-hidden": "true" }, h("td", { colspan: columns.length }));
    below = above.cloneNode(true);
    body.append(above, below);
    live.clear();
    const at = [sheet.scrollLeft, sheet.scrollTop], held = document.activeElement && sheet.contains(document.activeElement) ? document.activeElement.dataset.sort : null;
    sheet.replaceChildren(table);
    [sheet.scrollLeft, sheet.scrollTop] = at;
    if (held) sheet.querySelector('[data-sort="' + held + '"]').focus();
    draw();
  }
  function foot() {
    const totals = { ...data.totals, seconds: data.machine ? data.machine.seconds : null, name: "Total" };
    return h("tfoot", {}, h("tr", {}, columns.map(function (column, k) {
      if (!k) return h("th", { scope: "row" }, "Whole network");
      const adds = column.adds && totals[column.key] !== undefined && totals[column.key] !== null;
      const note = column.key === "activation_bytes" ? "The most alive at one moment, in " + (totals.peak_layer || ROOT) : null;
      return h("td", { class: column.words ? null : "n", title: note }, adds ? (note ? "peak " : "") + column.show(totals[column.key], totals) : "");
    })));
  }
  function draw() {
    const head = 40, from = Math.max(0, Math.floor((sheet.scrollTop - head) / HEIGHT) - SPARE), to = Math.min(list.length, Math.ceil((sheet.scrollTop + Math.max(sheet.clientHeight, innerHeight)) / HEIGHT) + SPARE); // the box may yet grow
    const keys = new Map();
    for (let k = from; k < to; k++) keys.set(key(list[k]), k);
    for (const [name, node] of live)
      if (!keys.has(name)) {
        if (node === document.activeElement) sheet.focus({ preventScroll: true });
        node.remove();
        live.delete(name);
      }
    let after = above;
    for (const [name, k] of keys) {
      let node = live.get(name);
      if (!node) live.set(name, (node = line(list[k], k)));
      if (after.nextSibling !== node) after.after(node);
      after = node;
    }
    above.firstChild.style.height = from * HEIGHT + "px";
    below.firstChild.style.height = Math.max(0, list.length - to) * HEIGHT + "px";
  }
  const key = (entry) => (entry.item.group ? "g" : entry.item.functional ? "f" : "r") + entry.item.name;
  function line(entry, index) {
    const item = entry.item, here = id(item), opened = item.group && open.has(item.name);
    const row = h("tr", { "data-id": here, "data-key": key(entry), "aria-rowindex": index + 2, "aria-level": entry.depth + 1, "aria-expanded": item.group ? String(opened) : null, "aria-selected": String(here === selected), class: item.group ? "group" : works(item) ? null : "idle",
      tabindex: key(entry) === focused || (focused === null && index === 0) ? "0" : "-1" }, columns.map(function (column, k) {
      const value = column.value(item), cell = k ? h("td", { class: column.words ? null : "n" }) : h("th", { scope: "row", title: item.name || ROOT });
      if (!k) {
        const name = h("span", { class: "label" }, item.name || ROOT);
        cell.append(item.group ? h("span", { class: "fold", "aria-hidden": "true" }, opened ? "▾" : "▸") : "", name);
        cell.style.paddingLeft = 12 + (narrow.matches ? 9 : 16) * entry.depth + (item.group || !groups.size || sort || query.value ? 0 : 18) + "px";
        return cell;
      }
      const most = item.group ? column.mostOfGroups : column.most;
      if (column.bar && value && most) {
        const bar = h("i", { class: "amount" + (item.group ? " of-group" : "") });
        bar.style.width = Math.max(1.5, Math.min(100, (100 * value) / most)) + "%";
        cell.append(bar);
      }
      if (column.key === "bound") cell.append(value ? h("span", { class: "mark " + value }, value) : "");
      else if (column.key === "kind") {
        cell.append(value + (item.functional ? ": " + Object.keys(item.ops).map((op) => op.replace(/^\w+\./, "")).filter((op) => !IDLE.has(op)).slice(0, 3).join(", ") : ""));
        cell.title = cell.textContent;
      } else cell.append(column.show(value, item));
      if (column.key === "seconds" && item.spread) cell.title = "95 % interval " + C.seconds(item.spread[0]) + " to " + C.seconds(item.spread[1]);
      return cell;
    }));
    return row;
  }
  function sortBy(column) {
    const first = !column.words; // numbers: the largest first
    if (!sort || sort.key !== column.key) sort = { key: column.key, down: first };
    else sort = sort.down === first ? { key: column.key, down: !first } : null;
    sheet.scrollTop = 0;
    layout();
    frame();
  }
  function toggle(name, opened) {
    if (opened) open.add(name);
    else open.delete(name);
    layout();
    frame();
    focusRow(list.findIndex((entry) => entry.item.group && entry.item.name === name), true);
  }
  function focusRow(index, really, centred) {
    if (index < 0 || index >= list.length) return;
    focused = key(list[index]);
    const top = index * HEIGHT, room = sheet.clientHeight - 40 - 36;
    if (centred && (top < sheet.scrollTop + HEIGHT || top + 2 * HEIGHT > sheet.scrollTop + room)) sheet.scrollTop = top - room / 2;
    else if (top < sheet.scrollTop) sheet.scrollTop = top;
    else if (top + HEIGHT > sheet.scrollTop + room) sheet.scrollTop = top + HEIGHT - room;
    draw();
    for (const node of live.values()) node.tabIndex = node.dataset.key === focused ? 0 : -1;
    const node = live.get(focused);
    if (node && really) node.focus({ preventScroll: true });
  }
  const place = () => list.findIndex((entry) => key(entry) === focused);

  // ---- one layer
  const find = (name) => (data.groups[name] ? groups.get(name) || small(name) : null) || rows.find((row) => id(row) === name) || null;
  function small(name) { // a module too small for a group of its own in the table
    const members = rows.filter((row) => row.inside.includes(name)), found = { ...data.groups[name], name: name, rows: members };
    for (const column of COLUMNS) if (column.adds) found[column.key] = members.reduce((sum, row) => sum + (row[column.key] || 0), 0);
    return found;
  }
  function select(name, how) {
    const was = selected;
    selected = name;
    if (how !== "read") address(name, !was && name !== null);
    document.body.classList.toggle("has-panel", name !== null);
    panel.hidden = name === null;
    modal();
    if ((was === null) !== (name === null) && flow) flow.resize();
    for (const node of live.values()) node.setAttribute("aria-selected", String(node.dataset.id === name));
    document.title = name === null ? title : name + " · " + title;
    if (flow) flow.show(name, how !== "flow");
    filled = "";
    if (name === null) return roof();
    if (how !== "row") reveal(name);
    fill();
    roof();
  }
  function reveal(name) { // opens what the row lies in, and brings it into view within the table
    const item = find(name);
    if (!item) return;
    if (!sort && !query.value) {
      let changed = false;
      for (const one of item.inside || []) if (groups.has(one) && one !== item.name && !open.has(one)) { open.add(one); changed = true; }
      if (changed) { layout(); frame(); }
    }
    const index = list.findIndex((entry) => id(entry.item) === name);
    if (index >= 0) focusRow(index, false, true);
  }
  function address(name, added) {
    const hash = name === null ? location.pathname + location.search : "#" + encodeURIComponent(name);
    if (added) history.pushState(null, "", hash);
    else history.replaceState(null, "", hash);
  }
  function modal() {
    const covered = narrow.matches && !panel.hidden;
    byId("main").inert = covered;
    document.body.classList.toggle("covered", covered);
  }
  function close() {
    select(null, "close");
    focusRow(Math.max(0, place()), true);
  }
  function move(by) {
    const at = list.findIndex((entry) => id(entry.item) === selected), next = list[(at < 0 ? place() : at) + by];
    if (!next) return;
    focused = key(next);
    select(id(next.item), "move");
  }
  const pair = (name, value, about) => value && h("div", {}, h("dt", {}, name), h("dd", {}, value), about ? h("dd", { class: "about" }, about) : null);
  function share(value, total) { return total ? C.number((100 * value) / total) + " % of the network’s" : ""; }

  function facts(item) {
    const t = data.totals, f = item.field;
    return h("dl", { class: "scores facts2" },
      pair("Output", out(item) || null, item.in && item.in.length ? "from " + item.in.slice(1).join(" × ") : ""),
      pair("Kernel", item.kernel ? windowText(item) : null, item.kernel ? "s stride, p padding, d dilation, g groups; what is not said is usual" : ""),
      pair("Parameters", item.params ? C.count(item.params) : null, share(item.params, t.params) + (item.shared_params ? "; " + C.count(item.shared_params) + " more shared with an earlier layer" : "")),
      pair("MACs", item.macs ? C.count(item.macs) : null, share(item.macs, t.macs)),
      pair("Element ops", item.element_ops ? C.count(item.element_ops) : null, share(item.element_ops, t.element_ops)),
      pair("Activations", item.activation_bytes ? C.bytes(item.activation_bytes) : null, "new memory it makes"),
      pair("Time", item.seconds !== undefined && data.machine ? C.seconds(item.seconds) : null, data.machine ? share(item.seconds, data.machine.seconds) + (item.bound ? "; bound by " + item.bound : "") : ""),
      pair("Sees", f ? C.fieldText(f) : item.no_field || null, f && f.stride.some(Boolean) ? "stride " + alike(f.stride) + ", padding " + alike(f.padding) : ""),
      pair("Shift error", item.shift !== undefined ? percent(item.shift) : null, "how far its features are from moving along with a picture that rolls by whole strides"),
      item.uncounted && Object.keys(item.uncounted).length ? pair("Not counted", Object.entries(item.uncounted).map(([op, n]) => n + " " + op).join(", ")) : null);
  }
  function pictures(item) {
    const atlas = C.atlas && C.atlas();
    if (!atlas) return null;
    const bare = (layer) => layer.name.replace(/:(pre|post)$/, ""), names = [item.name, ...[...(item.inside || [])].reverse()];
    for (const name of names) {
      const layer = atlas.layers.find((one) => bare(one) === name), units = layer ? atlas.units.filter((unit) => unit.layer === layer.index) : [];
      if (!layer || !units.length) continue;
      const best = [...units].sort((a, b) => Boolean(b.image) - Boolean(a.image)).slice(0, 8);
      return h("section", { class: "filters" }, h("h3", {}, name === item.name ? "What its filters look for" : ["It is part of ", h("span", { class: "mono" }, name), ", whose filters look for"]),
        h("div", { class: "strip" }, best.map((unit) => C.tile(unit))), h("p", { class: "about" }, h("a", { href: "filters.html#layer=" + layer.index }, "All " + C.plural(units.length, "picture") + " of " + layer.name)));
    }
    return null;
  }
  function fill() {
    const item = find(selected), button = (name, label, run, drawing) => h("button", { type: "button", class: "icon", "aria-label": label, title: label, "data-act": name, onclick: run },
      h("svg:svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, h("svg:path", { d: drawing })));
    const held = panel.contains(document.activeElement) ? document.activeElement.dataset.act : null, scroll = filled === selected ? panel.scrollTop : 0;
    const acts = h("div", { class: "acts" }, button("previous", "Previous layer", () => move(-1), "M10 3 5 8l5 5"), button("next", "Next layer", () => move(1), "m6 3 5 5-5 5"), button("close", "Close (Esc)", close, "m4 4 8 8M12 4l-8 8"));
    if (!item) {
      panel.replaceChildren(h("header", {}, h("div", {}, h("h2", {}, selected), h("p", { class: "sub" }, "This network has no such layer.")), acts));
      return;
    }
    const sight = data.sights[item.name], grid = item.grid || [], around = (item.inside || []).filter((name) => name !== item.name);
    panel.replaceChildren(
      h("header", {}, h("div", {}, h("p", { class: "mono where" }, around.length ? around.map((name, k) => [k ? " › " : "", h("a", { href: "#" + encodeURIComponent(name) }, name)]) : data.model), h("h2", { class: "mono" }, item.name || ROOT),
        h("p", { class: "sub" }, item.kind + (item.rows ? " · " + C.plural(item.rows.length, "layer") : item.functional ? " · what it does between its parts" : ""))), acts),
      C.sight(item.field, grid, sight, data.image, data.photo) || "",
      facts(item), pictures(item) || "", C.borderMaps(sight) || "", chart(item) || "");
    panel.scrollTop = scroll;
    filled = selected;
    if (held) panel.querySelector('[data-act="' + held + '"]').focus();
  }
  function chart(item) {
    if (item.rows || !item.macs) return null;
    const drawn = C.roofline(rows, data.machine, item.name, (name) => select(name, "roof"), false);
    return drawn && h("section", {}, h("h3", {}, "Under the roofline"), drawn, item.of_peak ? h("p", { class: "about" }, "It reaches " + percent(item.of_peak[0]) + " of the machine’s MACs a second and " + percent(item.of_peak[1]) + " of its bytes a second.") : "");
  }

  // ---- the rest of the page
  function roof() {
    const drawn = data && !data.error && C.roofline(rows, data.machine, selected, (name) => select(name, "roof"), innerWidth > 700);
    byId("roof-box").hidden = !drawn;
    if (!drawn) return;
    const m = data.machine, without = rows.filter((row) => row.seconds && !row.macs).length;
    byId("roof").replaceChildren(drawn, h("ul", { class: "key" }, [["compute", "by MACs"], ["memory", "by memory"], ["overhead", "by the price of a call"]].map(([name, about]) => h("li", { class: name }, h("b", {}, name), " bound " + about))));
    byId("roof-about").textContent = "Every layer with multiply-accumulates, as it ran here (" + C.plural(m.threads, "thread") + " on " + m.device + ", " + m.dtype + "): the line is what this machine was measured to do at that intensity, by a matrix product and a copy. Larger dots take longer."
      + (without ? " " + C.plural(without, "layer") + " without MACs " + (without === 1 ? "is" : "are") + " not drawn." : "");
  }
  function lead() {
    const t = data.totals, m = data.machine;
    byId("lead").replaceChildren(...[C.count(t.params) + " parameters", C.count(t.macs) + " MACs", C.bytes(t.activation_bytes) + " of activations at most", m ? C.seconds(m.seconds) + " a pass" : null,
      data.shifts && data.shifts.agreement ? Math.round(100 * data.shifts.agreement.value) + " % same class when the picture rolls" : null].filter(Boolean).map((fact) => h("span", {}, fact)));
    byId("state").hidden = data.state === "done";
    byId("state").textContent = data.state === "running" ? "Counts are complete; times, effective fields and border maps follow when the pictures are drawn. This page fills by itself." : "Interrupted before everything was measured; run the same command again to continue.";
  }
  function notes() {
    const m = data.machine, t = data.totals;
    const items = [
      ["Counts", "For an input of " + C.shape(data.input) + ". One MAC is one multiply-accumulate of a convolution, linear layer or matrix product; normalization, activation, pooling and resampling are element operations. Activations are the new memory a layer makes; the whole is the most alive at one moment" + (t.peak_layer ? ", in " + t.peak_layer : "") + "."],
      ["Not counted", data.uncounted.length ? data.uncounted.map((one) => one.count + " " + one.op).join(", ") : "Nothing: every operation that ran is counted."],
      t.unused_params ? ["Unused", C.count(t.unused_params) + " parameters were not read in this pass."] : null,
      ["Receptive fields", "Over the union of all paths that ran; “all” where a path sees the whole image, with the field through local paths in brackets."],
      m ? ["Time", "Median of repeated passes, layers timed from inside; " + C.seconds(m.rest) + " lies between layers, and " + C.seconds(Math.abs(m.unattributed)) + (m.unattributed < 0 ? " is counted twice" : " could not be attributed") + ". Bound by compute or memory: whichever takes longer at this machine’s measured peak; by overhead where most of the time is the price of calls." + (m.note ? " " + m.note : "")] : null,
      ...data.notes.map((note) => ["Note", note]),
      ...data.left_out.map((one) => ["Not measured", one.measure + (one.layer ? " of " + one.layer : "") + ": " + one.reason]),
    ].filter(Boolean);
    byId("notes").replaceChildren(h("dl", { class: "notes" }, items.map(([name, said]) => h("div", {}, h("dt", {}, name), h("dd", {}, said)))),
      data.photo && data.photo.credit ? h("p", { class: "about" }, "Photograph: " + data.photo.credit.title + ", " + data.photo.credit.attribution + " (" + data.photo.credit.license + ")") : "");
  }
  function failed() {
    byId("state").hidden = false;
    byId("state").textContent = "The layers could not be measured: " + data.error;
    for (const name of ["flow-box", "table-box", "roof-box", "notes-box"]) byId(name).hidden = true;
  }
  function accept() {
    const first = data === null;
    data = DATA.layers;
    if (data.error) return failed();
    build();
    if (first) openFew();
    layout();
    frame();
    lead();
    notes();
    if (first) flow = C.flow(byId("flow"), data.flow, (name) => select(name || ROOT, "flow"));
    roof();
    if (first) read();
    else if (selected !== null) fill();
  }
  function poll() {
    if (!data || data.state !== "running") return;
    setTimeout(function () {
      if (document.hidden) return poll();
      const version = data.version;
      C.load("data/layers.js?t=" + Date.now()).then(() => DATA.layers.version !== version && accept(), () => undefined).then(poll);
    }, POLL);
  }
  function read() {
    let asked = location.hash.slice(1);
    try { asked = decodeURIComponent(asked); } catch (error) { /* a hash that is no address stays as it is */ }
    if (asked && byId(asked) && !find(asked)) return; // a place on the page
    if ((asked || null) !== selected) select(asked || null, "read");
  }

  // ---- events
  sheet.addEventListener("click", function (event) {
    const node = event.target.closest("tbody tr[data-id]");
    if (!node) return;
    const group = node.dataset.key[0] === "g";
    focused = node.dataset.key;
    if (group && (event.target.closest(".fold") || !event.target.closest(".label"))) toggle(node.dataset.id, !open.has(node.dataset.id));
    else {
      focusRow(place(), true);
      select(node.dataset.id, "row");
      if (narrow.matches) panel.focus();
    }
  });
  sheet.addEventListener("keydown", function (event) {
    const node = event.target.closest("tbody tr[data-id]");
    if (!node || event.altKey || event.ctrlKey || event.metaKey) return;
    focused = node.dataset.key;
    const at = place(), item = list[at] && list[at].item, page = Math.max(1, Math.floor(sheet.clientHeight / HEIGHT) - 4);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: Math.min(list.length - 1, at + page), PageUp: Math.max(0, at - page), Home: 0, End: list.length - 1 }[event.key];
    if (!item) return;
    if (to !== undefined) {
      focusRow(to, true);
      if (selected !== null && list[to]) select(id(list[to].item), "row");
    } else if (event.key === "Enter" || event.key === " ") {
      select(node.dataset.id, "row");
      panel.focus();
    } else if (event.key === "ArrowRight" && item.group && !open.has(item.name)) toggle(item.name, true);
    else if (event.key === "ArrowLeft" && item.group && open.has(item.name)) toggle(item.name, false);
    else if (event.key === "ArrowLeft" && list[at].depth) focusRow(list.slice(0, at).findLastIndex((entry) => entry.depth < list[at].depth), true);
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", function (event) {
    if (event.altKey || event.ctrlKey || event.metaKey || help.open || event.defaultPrevented || !data || data.error) return;
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape") {
      if (event.target === query && query.value) { query.value = ""; layout(); frame(); }
      else if (typing) event.target.blur();
      else if (selected !== null) close();
    } else if (typing) return;
    else if (event.key === "/") {
      if (narrow.matches && selected !== null) close();
      query.focus();
      query.select();
    } else if (event.key === "?") help.showModal();
    else return;
    event.preventDefault();
  });
  byId("help-button").addEventListener("click", () => help.showModal());
  help.addEventListener("click", (event) => event.target === help && help.close());
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  query.addEventListener("input", function () { sheet.scrollTop = 0; layout(); frame(); });
  byId("unfold").addEventListener("click", function () { for (const name of groups.keys()) open.add(name); layout(); frame(); });
  byId("fold").addEventListener("click", function () { open.clear(); layout(); frame(); });
  let waiting = false;
  sheet.addEventListener("scroll", function () {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => ((waiting = false), draw()));
  }, { passive: true });
  addEventListener("resize", () => requestAnimationFrame(function () { if (data && !data.error) { modal(); flow.resize(); draw(); } }));
  addEventListener("hashchange", () => data && !data.error && read());
  addEventListener("popstate", () => data && !data.error && read());
  if (C.onAtlas) C.onAtlas(() => data && !data.error && selected !== null && fill());

  if (DATA.layers) accept();
  poll();
})();
