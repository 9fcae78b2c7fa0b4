// What a layer sees, over a photograph: its receptive field, and where in it the gradient really lies.
(function () {
  "use strict";
  const C = window.convscope, h = C.h;
  const FAR = 2; // times the image: a field larger than that is told, not drawn
  const percent = (part, whole) => (100 * part) / whole + "%";
  const side = (values) => (values.every((v) => v === values[0]) ? C.plain(values[0]) : C.shape(values)) + " px";

  // In words: "sees 43 px, stride 8".
  C.fieldText = function (field) {
    if (!field) return "–";
    const all = field.whole.every(Boolean);
    if (all && !field.local) return "the whole image";
    if (all) return "the whole image, " + side(field.local.size) + " through local paths";
    return (field.bounds.length ? "at most " : "") + side(field.size) + (field.aligned ? "" : ", paths not aligned");
  };
  C.fieldSize = (field) => (!field ? null : field.whole.every(Boolean) ? Infinity : field.size.reduce((a, b) => a * b, 1));

  const local = (field) => (field && field.whole.every(Boolean) ? field.local : field);
  // The (start, stop) of each axis that the feature at a position sees.
  const box = (field, where) => field.size.map((size, axis) => { const start = field.stride[axis] * where[axis] - field.padding[axis]; return field.whole[axis] ? null : [start, start + size]; });

  // The picture for the panel; `sight` holds the measured field where there is one.
  C.sight = function (field, grid, sight, image, photo) {
    const near = local(field), found = sight && sight.effective, [height, width] = image;
    if (image.length !== 2 || (!near && !found)) return null;
    const middle = grid.map((size) => Math.floor(size / 2));
    const outline = function (ends, name) {
      const [[top, bottom], [left, right]] = ends.map((pair, axis) => pair || [0, image[axis]]);
      return h("svg:rect", { x: left, y: top, width: right - left, height: bottom - top, class: name });
    };
    let movable = near && near.size.length === 2 && grid.length === 2 && near.stride.every((step) => step > 0);
    const ends = found ? found.full : near && near.size.length === 2 ? box(near, movable ? middle : [0, 0]) : null;
    // Where the field reaches beyond the image, the frame shows what lies around it: padding.
    const line = found && found.local ? found.local : ends, window = [[0, height], [0, width]];
    const drawn = line && line.every((pair, axis) => !pair || pair[1] - pair[0] <= FAR * image[axis]);
    if (drawn)
      line.forEach((pair, axis) => pair && (window[axis] = [pair[0] < 0 ? pair[0] - 12 : 0, pair[1] > image[axis] ? pair[1] + 12 : image[axis]]));
    const [[y0, y1], [x0, x1]] = window;
    const lines = h("svg:svg", { class: "boxes", viewBox: [x0, y0, x1 - x0, y1 - y0].join(" "), preserveAspectRatio: "none", "aria-hidden": "true" });
    const place = (node, [top, bottom], [left, right]) => Object.assign(node.style, { top: percent(top - y0, y1 - y0), left: percent(left - x0, x1 - x0), width: percent(right - left, x1 - x0), height: percent(bottom - top, y1 - y0) });
    if (drawn) lines.append(outline(line, "field"));
    const frame = h("div", { class: "sight" + (found ? " dim" : "") });
    frame.style.aspectRatio = x1 - x0 + " / " + (y1 - y0);
    const ground = photo ? h("img", { src: C.address(photo.file), alt: photo.credit ? photo.credit.title : photo.name, width: width, height: height, decoding: "async" }) : h("span", { class: "ground" });
    place(ground, [0, height], [0, width]);
    frame.append(ground);
    if (found) {
      const map = h("img", { class: "map", src: C.address(found.file), alt: "", decoding: "async" });
      place(map, ...found.box);
      frame.append(map);
    }
    movable = movable && drawn;
    if (movable) {
      const ghost = outline([[-9, -9], [-9, -9]], "field ghost");
      lines.append(ghost);
      frame.addEventListener("pointermove", function (event) {
        const at = frame.getBoundingClientRect(), px = [y0 + ((event.clientY - at.top) / at.height) * (y1 - y0), x0 + ((event.clientX - at.left) / at.width) * (x1 - x0)];
        const where = px.map((v, axis) => Math.min(grid[axis] - 1, Math.max(0, Math.round((v + near.padding[axis] - near.size[axis] / 2) / near.stride[axis]))));
        const moved = outline(box(near, where), "");
        for (const key of ["x", "y", "width", "height"]) ghost.setAttribute(key, moved.getAttribute(key));
      });
      frame.addEventListener("pointerleave", () => ghost.setAttribute("width", 0));
    }
    frame.append(lines);
    const beyond = near && near.size.some((size, axis) => size > image[axis]);
    const whole = field !== near, factor = near && Math.max(...near.size.map((size, axis) => size / image[axis]));
    const words = [near ? (drawn ? "The line bounds what the middle feature sees" : "Its features see") + (whole ? " through local paths: " : ": ") + side(near.size) + (beyond ? ", padding included, " + C.number(factor) + " × the image" : "") + (whole ? "; other paths see the whole image" : "")
      : "Its features see the whole image"];
    if (found) words.push("in colour, what it really depends on: " + C.number(found.extent) + " px a side" + (near && !beyond ? ", " + Math.round(100 * found.ratio) + " % of that" : ""));
    return h("figure", { class: "seen" }, frame, h("figcaption", {}, words.join("; ") + "." + (movable ? " Point at the picture for other places." : "")));
  };

  // The maps of what padding does.
  C.borderMaps = function (sight) {
    if (!sight) return null;
    const figures = [], picture = (file, alt, pixelated) => h("img", { src: C.address(file), alt: alt, class: pixelated ? "pixelated" : null, loading: "lazy", decoding: "async" });
    if (sight.border) {
      const b = sight.border, share = b.local_share === null ? b.share : b.local_share;
      figures.push(h("figure", {}, picture(b.file, "Map of what padding changes", true), h("figcaption", {}, h("b", {}, Math.round(100 * share) + " %"), " of its positions touch padding",
        b.measured && b.border_change !== null ? [", and change there by ", h("b", {}, Math.round(100 * b.border_change) + " %"), " when the picture goes on instead (brightest: " + Math.round(100 * b.most) + " %)"] : "", b.note ? ". " + b.note : ".")));
    }
    if (sight.visits) {
      const v = sight.visits;
      figures.push(h("figure", {}, picture(v.file, "Map of how often each pixel is read", false), h("figcaption", {}, "How often each pixel is read, by all paths: a corner ", h("b", {}, C.number((100 * v.corner) / v.centre) + " %"), ", an edge ", h("b", {}, C.number((100 * v.edge) / v.centre) + " %"), " as often as the centre.")));
    }
    return figures.length ? h("section", {}, h("h3", {}, "At the border"), h("div", { class: "maps2" }, figures)) : null;
  };
})();
