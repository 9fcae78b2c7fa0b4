// Light or dark, chosen before the first paint. Storage may be denied under file://: then it lasts for the page.
(function () {
  "use strict";
  var root = document.documentElement;
  function stored(value) {
    try {
      if (value === undefined) return window.localStorage.getItem("convscope-theme");
      window.localStorage.setItem("convscope-theme", value);
    } catch (error) {
      // No storage: the choice is simply not remembered.
    }
    return null;
  }
  var theme = stored();
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  document.addEventListener("DOMContentLoaded", function () {
    document.getElementById("theme").addEventListener("click", function () {
      var dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
      stored(root.dataset.theme);
    });
  });
})();
