// The page of changes: all networks against the first, then each by itself. Redrawn while rewrites are still tried.
(function () {
  "use strict";
  const C = window.convscope, h = C.h, DATA = window.convscopeData;
  const byId = (id) => document.getElementById(id);
  const POLL = 3000, FEW = 14; // ms; edits that are shown unasked
  const CLASSES = {
    exact: "Equal outputs up to rounding, for every input.",
    "exact-interior": "Equal away from the borders of each map; what reaches into the padding differs.",
    approximate: "A best fit in closed form; its error is measured.",
    reset: "New weights, which are to be trained.",
  };
  let data = null, chosen = { x: "macs", y: null };

  // ---- figures as text
  const percent = (value, digits) => (value === null || value === undefined ? "–" : String(+(100 * value).toFixed(digits === undefined ? 1 : digits)).replace("-", "−") + " %");
  const SHOW = {
    count: C.count,
    bytes: C.bytes,
    share: (value) => (value && value.value !== undefined ? percent(value.value) : percent(value)),
    seconds: (value) => C.seconds(value && value.median),
    pixels: (value) => (value ? value.map((n) => (n === null ? "all" : C.plain(n))).join(" × ") : "–"),
  };
  const figure = (entry, key) => entry.found && entry.found.figures.find((one) => one.key === key);
  const plain = (value) => (typeof value === "number" ? value : value && (value.median !== undefined ? value.median : value.value));
  const ratioOf = (one) => (one.ratio === null || one.ratio === undefined ? null : typeof one.ratio === "number" ? one.ratio : one.ratio.median);
  function change(one) {
    const ratio = ratioOf(one);
    if (ratio === null) return JSON.stringify(one.a) === JSON.stringify(one.b) ? "same" : "";
    if (typeof one.ratio !== "number") return ratio.toFixed(2) + "×";
    return ratio === 1 ? "same" : ratio >= 2 ? +ratio.toPrecision(3) + "×" : (ratio < 1 ? "−" : "+") + +(100 * Math.abs(ratio - 1)).toPrecision(2) + " %";
  }
  const spread = (one) => (one.low === null || one.low === undefined ? "" : percent(one.low).replace(" %", "") + " to " + percent(one.high));
  // "input_size:height=320,width=360,how=crop" -> "input_size 320 360 crop"; chains by their rules
  const short = (title) => title.split(" | ").map((rule) => rule.replace(/,where=.*$/, "").replace(/[\w]+=/g, "").replace(/[:,]/g, " ")).join(" + ");
  const pictured = (images) => (images.source === "photographs" ? C.plural(images.count, "embedded photograph") : C.plural(images.count, "image") + (images.source === "tensor" ? "" : " of " + images.source));
  const link = (entry) => "c" + data.entries.indexOf(entry);
  const badge = (made) => made && made.exactness && h("span", { class: "badge " + made.exactness, title: CLASSES[made.exactness] }, made.exactness);

  // ---- the head
  function lead() {
    const done = data.entries.filter((entry) => entry.found), equal = done.filter((entry) => entry.found.outputs && entry.found.outputs.rms <= entry.found.tolerance).length, images = done.length ? done[0].found.images : null;
    const facts = [
      data.planned || data.entries.length > 1 ? C.plural(done.length, "network") + " made from " + data.base.name : data.base.name + (done.length ? " and " + done[0].found.name : ""),
      images ? "compared on " + pictured(images) : null,
      equal && data.entries.length > 1 ? equal + " with the same outputs up to rounding" : null,
    ];
    byId("lead").replaceChildren(...facts.filter(Boolean).map((fact) => h("span", {}, fact)));
    const waiting = data.planned ? data.planned.length - data.entries.length : 0, state = byId("state");
    state.hidden = data.state === "done" && !data.left_out;
    state.textContent = data.left_out ? "Nothing was compared: " + data.left_out
      : data.state === "running" ? (data.planned ? C.plural(waiting, "rewrite") + " still to be tried" : "Rewrites are tried when the pictures are drawn") + ". This page fills by itself."
      : "Interrupted before everything was tried; run the same command again to continue.";
  }

  // ---- the front
  const COSTS = { macs: ["MACs", C.count], params: ["parameters", C.count], latency: ["time of a pass", C.seconds] };
  const KEEPS = { accuracy: "top-1 accuracy", outputs: "difference of the outputs", agreement: "same top-1 class" };
  function keeps(entry, key) {
    const found = entry.found;
    if (key === "accuracy") return found.accuracy && found.accuracy.b;
    if (!found.outputs) return null;
    return key === "agreement" ? found.outputs.agreement : { value: found.outputs.rms };
  }
  function front() {
    const done = data.entries.filter((entry) => entry.found), box = byId("front-box");
    const costs = Object.keys(COSTS).filter((key) => done.every((entry) => figure(entry, key))), kept = Object.keys(KEEPS).filter((key) => done.some((entry) => keeps(entry, key)));
    box.hidden = done.length < 2 || !kept.length;
    if (box.hidden) return;
    if (!costs.includes(chosen.x)) chosen.x = costs[0];
    if (!kept.includes(chosen.y)) chosen.y = kept[0];
    const down = chosen.y === "outputs", base = plain(figure(done[0], chosen.x).a), own = chosen.y === "accuracy" ? done.find((entry) => entry.found.accuracy).found.accuracy.a : { value: down ? 0 : 1 };
    const points = [{ name: "as it is", kind: "base", x: base, y: own.value, low: own.low, high: own.high }];
    for (const entry of done) {
      const value = keeps(entry, chosen.y), one = figure(entry, chosen.x);
      if (value) points.push({ id: link(entry), name: short(entry.title), kind: (entry.made && entry.made.exactness) || "other", x: chosen.x === "latency" ? base * ratioOf(one) : plain(one.b), y: value.value, low: value.low, high: value.high });
    }
    const radio = (axis, key, name) => h("label", {}, h("input", { type: "radio", name: axis, value: key, checked: chosen[axis] === key, onchange: function () { chosen[axis] = key; front(); byId("axes").querySelector('[name="' + axis + '"]:checked').focus(); } }), h("span", {}, name));
    byId("axes").replaceChildren(h("fieldset", {}, h("legend", {}, "Cost"), costs.map((key) => radio("x", key, COSTS[key][0]))), h("fieldset", {}, h("legend", {}, "Kept"), kept.map((key) => radio("y", key, KEEPS[key]))));
    const x = { title: COSTS[chosen.x][0], show: COSTS[chosen.x][1] }, y = { title: KEEPS[chosen.y], down: down, equal: Math.max(...done.map((entry) => entry.found.tolerance)), show: down ? C.share : (v) => percent(v) };
    const kinds = [...new Set(points.map((point) => point.kind))].filter((kind) => CLASSES[kind]);
    byId("front").replaceChildren(C.front(points, x, y, innerWidth > 700), h("ul", { class: "key" }, kinds.map((kind) => h("li", { class: kind }, h("b", {}, kind)))));
    byId("front-about").textContent = (down ? "Further down is closer to the network as it is, further left is cheaper." : "Further up keeps more, further left is cheaper.") + " The line joins what no other beats." + (down ? "" : " A bar is the 95 % interval.");
  }

  // ---- the table
  function table() {
    const done = data.entries.filter((entry) => entry.found), shown = data.entries.length > 1;
    byId("table-box").hidden = !shown;
    if (!shown) return;
    const keys = ["params", "macs", "activation_bytes", "latency"].filter((key) => done.some((entry) => figure(entry, key))), right = done.some((entry) => entry.found.accuracy), agrees = done.some((entry) => entry.found.outputs && entry.found.outputs.agreement);
    const heads = ["Network", ...keys.map((key) => ({ params: "Params", macs: "MACs", activation_bytes: "Activations", latency: "Time" })[key]), "Outputs differ", agrees && "Same class", right && "Accuracy", "Begins at"].filter(Boolean);
    const cell = (one, side) => (one ? h("td", {}, SHOW[one.unit](one[side]), side === "b" ? h("small", {}, change(one)) : "") : h("td", {}, "–"));
    const first = done[0], rows = [];
    if (first) rows.push(h("tr", { class: "base" }, h("th", { scope: "row" }, data.base.name), keys.map((key) => cell(figure(first, key), "a")), h("td", {}, ""), agrees ? h("td", {}, "") : "", right ? h("td", {}, first.found.accuracy ? percent(first.found.accuracy.a.value) : "–", first.found.accuracy ? h("small", {}, spread(first.found.accuracy.a)) : "") : "", h("td", {}, "")));
    for (const entry of data.entries) {
      const head = h("th", { scope: "row" }, h("a", { href: "#" + link(entry) }, short(entry.title)), " ", entry.found ? badge(entry.made) : "");
      if (!entry.found) {
        rows.push(h("tr", {}, head, h("td", { class: "why", colspan: heads.length - 1 }, why(entry))));
        continue;
      }
      const found = entry.found, out = found.outputs, same = out && out.agreement;
      rows.push(h("tr", {}, head, keys.map((key) => cell(figure(entry, key), "b")), h("td", {}, out ? (out.rms <= found.tolerance ? "rounding" : C.share(out.rms)) : "–"),
        agrees ? h("td", {}, same ? percent(same.value) : "–", same ? h("small", {}, spread(same)) : "") : "",
        right ? h("td", {}, found.accuracy ? percent(found.accuracy.b.value) : "–", found.accuracy ? h("small", {}, spread(found.accuracy.b)) : "") : "",
        h("td", { class: "mono" }, found.first || (found.layers.length ? "nowhere" : "–"))));
    }
    byId("table").replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows)));
  }
  function why(entry) {
    if (entry.error) return entry.error;
    const reasons = entry.made.refused.map((one) => one.reason);
    return "No layer was changed: " + reasons[0] + (reasons.length > 1 ? ", and " + C.plural(reasons.length - 1, "other reason") : "");
  }

  // ---- one network
  function section(entry) {
    const made = entry.made, found = entry.found, count = made && made.edits ? made.edits.length : null;
    const whole = count === 1 && !made.edits[0].layer;
    const said = [whole ? "One edit of the whole network." : made && made.exactness && found ? CLASSES[made.exactness] : null, count && !whole ? C.plural(count, "layer") + " changed" + (made.refused.length ? ", " + made.refused.reduce((sum, one) => sum + one.layers.length, 0) + " left as they are." : ".") : null, made && made.data ? "Fitted to " + pictured(made.data) + (data.planned ? ", others than those it is compared on." : ".") : null];
    return h("article", { class: "change", id: link(entry), "aria-labelledby": link(entry) + "-title" },
      h("header", {}, h("h2", { id: link(entry) + "-title" }, h("span", { class: "mono" }, entry.title), " ", found ? badge(made) : h("span", { class: "badge none" }, entry.error ? "failed" : "refused")),
        h("p", { class: "sub" }, found ? said.filter(Boolean).join(" ") : entry.error || why(entry) + ".")),
      found ? [h("div", { class: "halves" }, costs(found), h("div", {}, grows(entry), answers(found))), pictures(found)] : null,
      made ? edits(made) : null,
      found && found.notes.length ? h("ul", { class: "remarks" }, found.notes.map((note) => h("li", {}, note))) : null);
  }
  function costs(found) {
    const rows = found.figures.filter((one) => one.key !== "accuracy").map(function (one) {
      const a = plain(one.a), b = plain(one.b), most = Math.max(a, b), bars = one.ratio !== null && one.ratio !== undefined && most > 0 ? [[a, "a"], [b, "b"]].map(function ([value, side]) { const bar = h("i", { class: "size " + side }); bar.style.width = (100 * value) / most + "%"; return bar; }) : "";
      const told = typeof one.ratio === "object" && one.ratio ? one.ratio.low.toFixed(2) + " to " + one.ratio.high.toFixed(2) : "";
      return h("tr", {}, h("th", { scope: "row" }, one.name[0].toUpperCase() + one.name.slice(1), h("span", { class: "bars", "aria-hidden": "true" }, bars)), h("td", {}, SHOW[one.unit](one.a)), h("td", {}, SHOW[one.unit](one.b)), h("td", {}, change(one), told ? h("small", {}, told) : ""));
    });
    return h("table", { class: "costs" }, h("thead", {}, h("tr", {}, ["Costs", "before", "after", "change"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows));
  }
  function interval(name, one, digits, note) {
    const whole = digits === undefined, at = (v) => (whole ? 100 * v : 50 + 50 * v / most), most = whole ? 1 : Math.max(Math.abs(one.low || 0), Math.abs(one.high || 0), 0.02) * 1.2;
    const range = h("svg:svg", { class: "range", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, h("svg:rect", { x: 0, y: 3, width: 100, height: 2, class: "full" }), whole ? "" : h("svg:rect", { x: 49.75, y: 0, width: 0.5, height: 8, class: "zero" }),
      one.low === null ? "" : h("svg:rect", { x: at(one.low), y: 2, width: Math.max(0.8, at(one.high) - at(one.low)), height: 4, class: "part" }), h("svg:rect", { x: Math.min(99, Math.max(0, at(one.value) - 0.5)), y: 0, width: 1, height: 8 }));
    return h("div", {}, h("dt", {}, name), h("dd", {}, h("b", {}, percent(one.value, digits)), one.low === null ? "" : h("small", {}, percent(one.low, digits).replace(" %", "") + " to " + percent(one.high, digits)), range, note ? h("small", {}, note) : ""));
  }
  function answers(found) {
    const out = found.outputs, right = found.accuracy;
    if (!out) return null;
    return h("dl", { class: "answers" },
      h("div", {}, h("dt", {}, "Outputs differ by"), h("dd", {}, h("b", {}, out.rms <= found.tolerance ? "rounding" : C.share(out.rms)), h("small", {}, "rms; at most " + C.share(out.relative) + " of the largest; cosine " + (out.cosine.value > 0.99995 ? out.cosine.value.toFixed(6) : out.cosine.value.toFixed(3))))),
      out.agreement ? interval("Same top-1 class", out.agreement) : null,
      right ? [interval("Accuracy before", right.a), interval("Accuracy after", right.b), interval("Difference, paired", right.difference, 2, "only before right: " + right.only_a + ", only after: " + right.only_b + ", McNemar p = " + +right.p_value.toPrecision(3))] : null);
  }
  function grows(entry) {
    const found = entry.found, edited = new Set(entry.made && entry.made.edits ? entry.made.edits.map((edit) => edit.layer) : []);
    const drawn = C.growth(found.layers, found.tolerance, edited, found.first, innerWidth > 700);
    const apart = found.apart ? C.plural(found.apart, "layer") + " give maps of another size." : "";
    if (!drawn || found.layers.length < 4) return h("div", { class: "grows" }, h("h3", {}, "How the difference grows"), h("p", { class: "hint" }, (apart || "No layer of the same name gives maps of the same size.") + " Only the outputs are compared."));
    return h("div", { class: "grows" }, h("h3", {}, "How the difference grows"), drawn, h("p", { class: "hint" }, "Root mean square of the difference over that of the layer, in the order in which they run." + (edited.size ? " Marks below: the layers that were changed." : "") + (apart ? " " + apart : "")));
  }
  function pictures(found) {
    if (!found.features.length) return null;
    const side = (one, k) => { const file = k ? one.after : one.before, name = k ? "after" : "before"; return h("div", {}, file ? h("img", { src: C.address(file), alt: one.layer + " channel " + one.channel + ", " + name, loading: "lazy", decoding: "async" }) : h("span", { class: "none" }, one.status[k]), h("small", {}, name + " " + C.number(one.activations[k]))); };
    return h("section", { class: "pairs-box" }, h("h3", {}, "What the same units look for"), h("p", { class: "hint" }, "From the same start on the same canvas, in either network; the number is what the picture reaches there."),
      h("ul", { class: "pairs" }, found.features.map((one) => h("li", {}, h("div", { class: "two" }, side(one, 0), side(one, 1)), h("p", {}, h("span", { class: "mono" }, one.layer), " · " + one.channel)))));
  }
  function edits(made) {
    if (!made.edits) return h("p", { class: "hint" }, "Known by its recipe only: what each edit did is in the record of the rewrite.");
    const box = h("details", { class: "figures edits", open: made.edits.length > 0 && made.edits.length <= FEW }), pair = (values) => (values ? (values[0] === values[1] ? C.count(values[0]) : C.count(values[0]) + " → " + C.count(values[1])) : "–");
    const chain = new Set(made.edits.map((edit) => edit.rule)).size > 1;
    function fill() {
      if (box.childElementCount > 1) return;
      const heads = ["Layer", chain && "Rule", "Class", "Largest error", "rms error", "Params", "MACs", "Remarks"].filter(Boolean);
      const rows = made.edits.map((edit) => h("tr", {}, h("th", { scope: "row", class: "mono", title: edit.before + " → " + edit.after }, edit.layer || "the whole network"), chain ? h("td", { class: "mono" }, short(edit.rule)) : "", h("td", {}, h("span", { class: "badge " + edit.exactness }, edit.exactness)), h("td", {}, C.share(edit.error)), h("td", {}, C.share(edit.rms_error)), h("td", {}, pair(edit.params)), h("td", {}, pair(edit.macs)),
        h("td", { class: "why" }, [edit.margin.some(Boolean) ? "margin " + C.shape(edit.margin) : "", ...edit.notes].filter(Boolean).join("; "))));
      box.append(made.edits.length ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Edits" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows))) : "",
        h("ul", { class: "refusals" }, made.refused.map((one) => h("li", {}, h("b", {}, C.plural(one.layers.length, "layer")), " left: " + one.reason, h("small", { class: "mono" }, one.layers.slice(0, 6).join(", ") + (one.layers.length > 6 ? ", …" : ""))))));
    }
    const left = made.refused.reduce((sum, one) => sum + one.layers.length, 0);
    box.append(h("summary", {}, C.plural(made.edits.length, "edit") + (left ? ", " + left + " refused" : "")));
    box.addEventListener("toggle", fill);
    if (box.open || !made.edits.length) fill();
    box.open = box.open || !made.edits.length;
    return box;
  }

  function notes() {
    const items = [
      ["Exactness", "exact: equal outputs up to rounding, for every input. exact-interior: equal away from the borders. approximate: a best fit, with its error. reset: new weights. Each claim was tried in double precision before it was made; errors of edits are of that layer alone, relative to its largest output."],
      ["Difference", "Root mean square of what the second network gives less what the first gives, over that of the first, on the same images, each fitted to the input it takes. Up to a thousand roundings of the type it counts as equal."],
      ["Interval", "95 %: Wilson’s for shares; for the difference of accuracies the one of McNemar’s exact test, which counts the images only one network gets right. Times are taken in turn; the ratio is the median over rounds, with its bootstrap interval."],
      ["Pictures", "Two of the most active channels each of the two layers that changed most, and of the last one that gives a map, drawn in few steps."],
    ];
    byId("notes").replaceChildren(h("dl", { class: "notes" }, items.map(([name, said]) => h("div", {}, h("dt", {}, name), h("dd", {}, said)))));
  }

  // ---- drawing, and drawing again while it runs
  const kept = new Map(); // title -> what was drawn of it, so that what the reader opened stays open
  function accept() {
    const begun = data !== null;
    data = DATA.changes;
    lead();
    front();
    table();
    byId("entries").replaceChildren(...data.entries.map(function (entry) {
      if (!kept.has(entry.title)) kept.set(entry.title, section(entry));
      return kept.get(entry.title);
    }));
    byId("notes-box").hidden = !data.entries.some((entry) => entry.found);
    if (!begun) {
      notes();
      const asked = byId(location.hash.slice(1));
      if (asked) asked.scrollIntoView();
    }
  }
  function poll() {
    if (!data || data.state !== "running") return;
    setTimeout(function () {
      if (document.hidden) return poll();
      const version = data.version;
      C.load("data/changes.js?t=" + Date.now()).then(() => DATA.changes.version !== version && accept(), () => undefined).then(poll);
    }, POLL);
  }
  let wide = innerWidth > 700;
  addEventListener("resize", function () {
    if (!data || wide === innerWidth > 700) return;
    wide = innerWidth > 700;
    kept.clear();
    accept();
  });
  if (DATA.changes) accept();
  poll();
})();
