// The flow of the network: a band of boxes for the whole, and one below for the inside of each box that is opened.
(function () {
  "use strict";
  const C = window.convscope, h = C.h;
  const BEAK = 16, PORT = 3.5; // pixels: how far a band hangs below the box it belongs to; radius of its ends

  // Draws into `box`; `select(name)` is called when a box is chosen. Gives { show(name), update(data) }.
  C.flow = function (box, flow, select) {
    let path = [""], current = null;
    const parent = new Map(), home = new Map(); // band -> [band, box] it hangs from; name of a layer -> [band, box]
    for (const [key, band] of Object.entries(flow.bands))
      band.boxes.forEach(function (item, k) {
        if (item.band !== null) parent.set(item.band, [key, k]);
        const known = home.get(item.name);
        if (item.name && (!known || (known[2] && !item.op))) home.set(item.name, [key, k, item.op]);
      });

    function draw() {
      const kept = new Map([...box.querySelectorAll(".scroller")].map((one) => [one.dataset.band, one.scrollLeft]));
      box.replaceChildren(...path.map(band));
      for (const one of box.querySelectorAll(".scroller")) one.scrollLeft = kept.get(one.dataset.band) || 0;
      mark();
      beaks();
    }
    function band(key, level) {
      const data = flow.bands[key], scroller = h("div", { class: "scroller", "data-band": key, onscroll: beaks });
      const room = Math.max(240, box.clientWidth - (level ? 44 : 8)), least = room < 700 ? 0.9 : 0.74;
      const scale = Math.min(1, Math.max(least, room / (data.w + 4)));
      const svg = h("svg:svg", { class: "flow", viewBox: "-2 -2 " + (data.w + 4) + " " + (data.h + 4), width: (data.w + 4) * scale, height: (data.h + 4) * scale, role: "group",
        "aria-label": level ? "Inside " + title(key) : "Flow of the network" },
        data.lines.map((line) => h("svg:path", { d: line, class: "wire" })),
        data.ports.map(([x, y]) => h("svg:circle", { cx: x, cy: y, r: PORT, class: "port" })),
        data.boxes.map((item, k) => node(key, item, k, Math.max(...data.boxes.map((one) => one.cost)))));
      scroller.append(svg);
      if (!level) return h("div", { class: "band" }, scroller);
      const [above, k] = parent.get(key), name = flow.bands[above].boxes[k].name;
      return h("div", { class: "band inner" }, h("svg:svg", { class: "beak", "aria-hidden": "true", height: BEAK }, h("svg:path", {})),
        h("header", {}, name ? h("a", { href: "#" + encodeURIComponent(name), class: "mono", title: "About " + name }, name) : h("span", { class: "mono" }, title(key)),
          h("button", { type: "button", class: "icon", "aria-label": "Close " + title(key), title: "Close", onclick: () => close(key) }, h("svg:svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, h("svg:path", { d: "m4 4 8 8M12 4l-8 8" })))), scroller);
    }
    function title(key) {
      const [above, k] = parent.get(key), item = flow.bands[above].boxes[k];
      return item.name || item.label;
    }
    function node(key, item, k, most) {
      const opens = item.band !== null, middle = item.x + item.w / 2, about = item.op ? item.label + " in " + (item.name || "the network") : (item.name || item.label);
      const link = h("svg:a", { href: "#" + encodeURIComponent(item.name || ""), class: "box" + (opens ? " opens" : "") + (item.op ? " op" : ""), "data-band": key, "data-k": k, tabindex: key === "" && k === 0 ? "0" : "-1",
        role: opens ? "button" : null, "aria-expanded": opens ? String(path.includes(item.band)) : null, "aria-label": about + (item.under ? ", " + item.under : "") },
        h("svg:title", {}, about + (item.cost ? ": " + C.count(item.cost) + " MACs" : "")),
        opens ? h("svg:rect", { x: item.x + 3, y: item.y + 3, width: item.w, height: item.h, rx: 9, class: "sheet" }) : null,
        h("svg:rect", { x: item.x, y: item.y, width: item.w, height: item.h, rx: item.op ? 13 : 9, class: "face" }));
      if (item.op) link.append(h("svg:text", { x: middle, y: item.y + item.h / 2 + 4, "text-anchor": "middle", class: "label" }, item.label));
      else {
        link.append(h("svg:text", { x: middle, y: item.y + (item.under ? 18 : 26), "text-anchor": "middle", class: "label" }, item.label),
          h("svg:text", { x: middle, y: item.y + 32, "text-anchor": "middle", class: "under" }, item.under));
        if (item.cost && most) link.append(h("svg:rect", { x: item.x + 8, y: item.y + item.h - 6, width: Math.max(2, ((item.w - 16) * item.cost) / most), height: 2.5, rx: 1.2, class: "cost" }));
      }
      return link;
    }

    // ---- opening and closing
    function toggle(key, item) {
      const level = path.indexOf(key), closes = path.includes(item.band);
      path = path.slice(0, level + 1);
      if (!closes) path.push(item.band);
      draw();
      if (!closes) reveal(box.querySelector('.scroller[data-band="' + item.band + '"]'));
      return !closes;
    }
    function close(key) {
      const [above, k] = parent.get(key);
      path = path.slice(0, path.indexOf(key));
      draw();
      focus(above, k);
    }
    const reveal = (one) => one && one.closest(".band").scrollIntoView({ block: "nearest", inline: "nearest" });
    const find = (key, k) => [...box.querySelectorAll(".box")].find((one) => one.dataset.band === key && one.dataset.k === String(k));
    function focus(key, k) {
      const one = find(key, k);
      if (!one) return;
      for (const other of box.querySelectorAll('.box[tabindex="0"]')) other.setAttribute("tabindex", "-1");
      one.setAttribute("tabindex", "0");
      one.focus();
      into(one);
    }
    function into(one) { // within its band only: the page stays where it is
      const scroller = one.closest(".scroller"), a = one.getBoundingClientRect(), b = scroller.getBoundingClientRect();
      if (a.left < b.left + 8) scroller.scrollLeft -= b.left - a.left + 40;
      if (a.right > b.right - 8) scroller.scrollLeft += a.right - b.right + 40;
    }
    function beaks() {
      for (const inner of box.querySelectorAll(".band.inner")) {
        const scroller = inner.querySelector(".scroller"), [above, k] = parent.get(scroller.dataset.band), from = find(above, k);
        const own = inner.getBoundingClientRect(), frame = from.closest(".scroller").getBoundingClientRect(), face = from.querySelector(".face").getBoundingClientRect();
        const at = (x) => Math.min(own.width - 14, Math.max(14, Math.min(frame.right, Math.max(frame.left, x)) - own.left));
        inner.querySelector(".beak path").setAttribute("d", "M" + at(face.left) + " 0L" + at(face.right) + " 0C" + at(face.right) + " " + BEAK + " " + (own.width - 14) + " 0 " + (own.width - 14) + " " + BEAK + "L14 " + BEAK + "C14 0 " + at(face.left) + " " + BEAK + " " + at(face.left) + " 0Z");
      }
    }
    function mark() {
      for (const one of box.querySelectorAll(".box")) {
        const item = flow.bands[one.dataset.band].boxes[one.dataset.k];
        one.toggleAttribute("data-open", item.band !== null && path.includes(item.band));
        const own = current !== null && item.name === current && (!item.op || home.get(current)[2]);
        if (own) one.setAttribute("aria-current", "true");
        else one.removeAttribute("aria-current");
      }
    }

    box.addEventListener("click", function (event) {
      const one = event.target.closest(".box");
      if (!one || event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      const key = one.dataset.band, k = Number(one.dataset.k), item = flow.bands[key].boxes[k];
      const opened = item.band === null || toggle(key, item);
      if (item.band !== null) focus(key, k);
      if (opened && (item.band === null || innerWidth > 860)) (item.name || item.op) && select(item.name);
    });
    box.addEventListener("keydown", function (event) {
      const one = event.target.closest && event.target.closest(".box");
      if (!one || event.altKey || event.ctrlKey || event.metaKey) return;
      const key = one.dataset.band, k = Number(one.dataset.k), count = flow.bands[key].boxes.length, item = flow.bands[key].boxes[k];
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") focus(key, Math.min(count - 1, Math.max(0, k + (event.key === "ArrowRight" ? 1 : -1))));
      else if (event.key === "Home" || event.key === "End") focus(key, event.key === "End" ? count - 1 : 0);
      else if (event.key === "ArrowDown" && item.band !== null) {
        if (!path.includes(item.band)) toggle(key, item);
        focus(item.band, 0);
      } else if (event.key === "ArrowUp" && parent.has(key)) focus(...parent.get(key));
      else if (event.key === " ") one.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
      else return;
      event.preventDefault();
      event.stopPropagation();
    });

    draw();
    return {
      // Marks a layer and opens what it lies in; a layer without a box of its own is marked nowhere.
      show: function (name, open) {
        current = name;
        const found = name === null ? null : home.get(name);
        if (found && open && !path.includes(found[0])) {
          const above = [];
          for (let key = found[0]; key !== undefined; key = parent.has(key) ? parent.get(key)[0] : undefined) above.unshift(key);
          path = above;
          draw();
        } else mark();
        const one = found && find(found[0], found[1]);
        if (one) into(one);
        beaks();
      },
      resize: draw,
    };
  };
})();
