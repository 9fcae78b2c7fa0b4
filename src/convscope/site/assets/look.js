// Fills in the optimized pictures of the units that a photograph excites.
(function () {
  "use strict";
  const C = window.convscope;
  C.onAtlas(function () {
    for (const link of document.querySelectorAll("a[data-unit]")) {
      const unit = C.unit(link.dataset.unit);
      link.hidden = !unit;
      if (!unit) continue;
      link.title = C.title(unit);
      link.setAttribute("aria-label", C.describe(unit));
      link.replaceChildren(C.picture(unit));
    }
  });
})();
