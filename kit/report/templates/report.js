for (const gallery of document.querySelectorAll(".gallery")) {
  const select = gallery.querySelector("select");
  if (!select) continue;
  const tiles = [...gallery.querySelectorAll(".tile")];
  const show = () => {
    const all = select.selectedIndex === 0;
    for (const tile of tiles) tile.hidden = !all && tile.dataset.slide !== select.value;
    const shown = tiles.filter((tile) => !tile.hidden).length;
    gallery.querySelector("output").textContent = `${shown} of ${tiles.length} tiles`;
  };
  select.addEventListener("change", show);
  gallery.querySelector(".filter").hidden = false;
  show();
}
