"use strict";
// Previous and next by keyboard; not while something is being typed, nor inside what the arrows scroll.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const arrows = event.target.closest(".beside, .scroll, .wide") ? {} : { ArrowLeft: "prev", ArrowRight: "next" };
  const way = { k: "prev", j: "next", ...arrows }[event.key];
  const link = way && document.querySelector(`a[rel=${way}]`);
  if (link) { event.preventDefault(); link.click(); }
});
