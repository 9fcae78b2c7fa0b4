// Everything about one unit.
(function () {
  "use strict";
  const C = window.convscope, h = C.h;

  const STATUS = {
    converged: "Stopped because the held-out activation no longer grew.",
    budget: "Used all its steps; more steps may still sharpen it.",
    dead: "Zero on natural and random input alike: nothing excites this unit, so there is no picture.",
    nan: "Met a number that is not finite and was ended there; the other units are not affected.",
    interrupted: "Stopped by hand before it was done.",
  };
  const FLAGS = {
    weak: "The picture excites the unit less than photographs do; read it with caution.",
    saturated: "Much of the picture is clipped at black or white.",
    dead: "Nothing was found that excites this unit.",
  };
  C.SCORES = {
    activation: { name: "Activation", value: C.number, about: "what the unit answers to the clean picture" },
    robust: { name: "Robust", value: C.number, about: (unit) => "the same, averaged over shifts, turns and scalings not used while drawing" +
      (unit.activation > 0 ? ": " + Math.round((100 * unit.robust) / unit.activation) + " % is kept" : "") },
    ratio: { name: "Natural", value: (v) => C.number(v) + " ×", about: (unit) => "the strongest answer to any of the photographs" + (unit.ratio < 1 ? ": a photograph does better" : "") },
    percentile: { name: "Percentile", value: (v) => C.number(v) + " %", about: "of the answers to the photographs are weaker" },
    agreement: { name: "Agreement", value: C.number, about: "how alike the pictures of different seeds are; 1 is equal" },
  };

  function scores(unit) {
    const rows = Object.entries(C.SCORES).filter(([key]) => unit[key] !== null && unit[key] !== undefined && isFinite(unit[key]));
    if (!rows.length) return null;
    return h("dl", { class: "scores" }, rows.map(([key, score]) => h("div", {}, h("dt", {}, score.name), h("dd", {}, score.value(unit[key])),
      h("dd", { class: "about" }, typeof score.about === "function" ? score.about(unit) : score.about))));
  }

  function copyable(title, text) {
    if (!text) return null;
    const button = h("button", { type: "button", class: "copy", "aria-label": "Copy: " + title, onclick: () => copy(text).then(function (done) {
      button.textContent = done ? "Copied" : "Select and copy";
      setTimeout(() => (button.textContent = "Copy"), 1600);
    }) }, "Copy");
    return h("div", { class: "code" }, h("header", {}, h("span", {}, title), button), h("pre", { tabindex: "0" }, h("code", {}, text)));
  }

  function copy(text) {
    const byHand = function () { // the clipboard may be denied to a page opened from a file
      const area = h("textarea", { class: "hidden", readonly: true });
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    };
    return navigator.clipboard ? navigator.clipboard.writeText(text).then(() => true, byHand) : Promise.resolve(byHand());
  }

  function crops(natural) {
    if (!natural || !natural.crops || !natural.count) return null;
    const examples = natural.examples || [];
    return h("section", { class: "crops" }, h("h3", {}, "In photographs"), h("ul", {}, Array.from({ length: natural.count }, function (_, k) {
      const example = examples[k], pic = h("span", { class: "pic", role: "img", "aria-label": example ? "Crop of " + example.image : "Natural crop" });
      pic.style.backgroundImage = 'url("' + C.address(natural.crops) + '")';
      pic.style.backgroundSize = 100 * natural.count + "% 100%";
      pic.style.backgroundPosition = (natural.count > 1 ? (100 * k) / (natural.count - 1) : 0) + "% 0";
      return h("li", { title: example ? example.image + " · " + C.number(example.activation) : null }, pic, h("small", {}, example ? C.number(example.activation) : ""));
    })));
  }

  // The layer's own page, where the report has one.
  function ofLayer(layer) {
    return document.querySelector('.bar nav a[href="layers.html"]') ? h("a", { href: "layers.html#" + encodeURIComponent(layer.name.replace(/:(pre|post)$/, "")), title: "What this layer costs and sees" }, layer.name || "(network)") : layer.name || "(network)";
  }

  // A line under the picture as long as what one feature sees of it.
  function ruler(unit) {
    const field = C.layer(unit.layer).receptive_field, near = field && field.is_global ? field.local : field;
    if (!unit.image || !field || !unit.size) return null;
    if (!near) return h("p", { class: "ruler" }, "sees the whole image");
    const seen = near.size[near.size.length - 1], canvas = unit.size[unit.size.length - 1], beyond = seen > canvas;
    const span = h("span", { class: "span" + (beyond ? " beyond" : ""), "aria-hidden": "true" });
    span.style.width = beyond ? "100%" : Math.max(0.5, (100 * seen) / canvas) + "%";
    const words = near.size.every((size) => size === seen) ? seen + " px" : C.shape(near.size) + " px";
    return h("p", { class: "ruler" }, span, "one feature sees " + words + (beyond ? ", more than this picture" : "") + (near === field ? "" : " locally, and the whole image through a gate"));
  }

  function facts(unit, details) {
    const layer = C.layer(unit.layer), field = layer.receptive_field, settings = C.atlas().settings;
    const rows = [["Layer", ofLayer(layer)], ["Kind", layer.kind], ["Output", C.shape(layer.shape)],
      ["Receptive field", field ? (field.is_global ? "the whole image" : C.shape(field.size) + " px, stride " + C.shape(field.stride)) : "–"],
      ["Picture", unit.size ? C.shape([...unit.size].reverse()) + " px" : "–"], ["Seed", String(unit.seed)], ["Steps", details ? C.plain(details.steps) : "–"],
      ...Object.entries(settings).map(([key, value]) => [key, C.plain(value)])];
    return h("details", { class: "settings" }, h("summary", {}, "Settings"), h("dl", {}, rows.map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value)))));
  }

  function large(unit) {
    if (!unit.image) return h("div", { class: "large none" }, C.emptyText(unit));
    const version = C.version(unit).split("?")[1];
    const image = h("img", { class: "large", src: C.address(unit.image) + "?" + version, alt: "The picture that excites " + C.title(unit) + " most",
      width: unit.size ? unit.size[1] : null, height: unit.size ? unit.size[0] : null, onerror: () => image.replaceWith(h("div", { class: "large none" }, "file missing")) });
    return image;
  }

  const chart = (title, drawing, note) => drawing && h("section", {}, h("h3", {}, title), drawing, note && h("p", { class: "about" }, note));

  // Fills `box` with the unit; `details` may still be on its way (undefined) or be unreadable (null).
  C.fillPanel = function (box, unit, details, actions) {
    const layer = C.layer(unit.layer), natural = details && details.natural;
    const button = (name, label, run, drawing) => h("button", { type: "button", class: "icon", "aria-label": label, title: label, "data-act": name, onclick: run },
      h("svg:svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, h("svg:path", { d: drawing })));
    box.replaceChildren(
      h("header", {}, h("div", {}, h("p", { class: "mono where" }, ofLayer(layer)), h("h2", {}, unit.label || "Channel " + unit.channel),
        h("p", { class: "sub" }, (unit.label ? "channel " + unit.channel + " · " : "") + (unit.seed ? "seed " + unit.seed + " · " : "") + "unit " + unit.id)),
        h("div", { class: "acts" }, button("previous", "Previous unit (left arrow)", actions.previous, "M10 3 5 8l5 5"), button("next", "Next unit (right arrow)", actions.next, "m6 3 5 5-5 5"),
          button("close", "Close (Esc)", actions.close, "m4 4 8 8M12 4l-8 8"))),
      h("div", { class: "pictures" }, h("figure", {}, large(unit), ruler(unit)), crops(natural)),
      h("p", { class: "status " + unit.status }, h("b", {}, unit.status), " ", STATUS[unit.status] || ""),
      ...unit.flags.filter((flag) => flag !== unit.status).map((flag) => h("p", { class: "status flag" }, h("b", {}, flag), " ", FLAGS[flag] || "")),
      scores(unit) || "",
      chart("How it grew", details && C.curve(details.curve)) || "",
      chart("Among photographs", natural && C.histogram(natural.histogram, unit.activation, natural.max), "How often the photographs reach each activation, on a logarithmic scale.") || "",
      details ? h("section", {}, h("h3", {}, "Make it again"), copyable("Command", details.command), copyable("Python", details.python)) : "",
      facts(unit, details));
  };
})();
