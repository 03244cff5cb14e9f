// Loaded before the style, so that a chosen theme is there at the first paint. Not a module: those run too late.
document.documentElement.dataset.theme = localStorage.getItem("plimsoll.theme") ?? "auto";
