// Starts the page: asks the server what there is, and shows the view that the address names.

import { $, ask, h, nameLabels, plural } from "./dom.js";
import { setUp } from "./cards.js";
import { Search } from "./search.js";
import { WorldMap } from "./map.js";
import { Review } from "./review.js";

const VIEWS = ["search", "map", "review"];

async function start() {
  let facets;
  try {
    facets = await ask("/api/facets");
  } catch (error) {
    $("main").replaceChildren(h("p", { class: "empty wrong", role: "alert" }, error.message));
    return;
  }
  nameLabels(Object.keys(facets.label));
  document.title = `${facets.table} · Consilience`;
  $("about").replaceChildren(h("strong", {}, facets.table), ` ${plural(facets.rows, "row")} · ${Object.keys(facets.modalities).join(", ")} · ${facets.method}`);
  const goTo = (act) => {
    location.hash = "#search";
    act();
  };
  setUp(facets, {
    like: (index, modality) => goTo(() => search.like(index, modality)),
    add: (index, modality) => goTo(() => search.add(index, modality)),
  });
  const search = new Search(facets);
  const map = new WorldMap(facets);
  const review = new Review(facets);
  const turn = () => {
    const name = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "search";
    for (const view of VIEWS) {
      $(`view-${view}`).hidden = view !== name;
      const link = document.querySelector(`.views [data-view="${view}"]`);
      if (view === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.body.dataset.view = name;
    if (name === "map") map.open();
    if (name === "review") review.open();
  };
  addEventListener("hashchange", turn);
  turn();
}

start();
