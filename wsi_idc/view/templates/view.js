"use strict";
// The page: the list of items, one or two panes, the controls, the keys, and the address that
// restores the view.

const SORTS = [
  // column, name, whether the largest value comes first, text of a value
  ["name", "id", false, () => ""],
  ["idc_fraction", "patches called IDC", true, (value) => `${(100 * value).toFixed(1)} %`],
  ["idc_area_mm2", "IDC area", true, (value) => `${area(value)} mm²`],
  ["area_mm2", "area of the patches", true, (value) => `${area(value)} mm²`],
  ["auc", "AUC, lowest first", false, (value) => value.toFixed(3)],
  ["dice", "Dice, lowest first", false, (value) => value.toFixed(3)],
  ["mean_uncertainty", "uncertainty", true, (value) => value.toFixed(3)],
  ["mean_novelty", "novelty", true, (value) => value.toFixed(2)],
  ["flagged", "flagged patches", true, (value) => value.toLocaleString("en")],
];
const SHOWN = { probability: 0.6, called: 1 }; // layers at the start
const OPACITY = { probability: 0.6, unsmoothed: 0.6, smoothed: 0.6, cam: 0.7, labels: 0.5, errors: 0.5, flags: 0.8 };
const SAVE_MS = 250;
const $ = (id) => document.getElementById(id);
const AREA = { minimumFractionDigits: 2, maximumFractionDigits: 2 }; // a patch has about 0.04 mm²
const area = (mm2) => mm2.toLocaleString("en", AREA);

const view = {
  items: [],
  panes: [],
  order: [], // indices of the items in the order of the list
  layers: [], // names of the layers in the order of the controls
  state: {}, // for each layer: isShown, opacity
  isHidden: false, // whether all layers are hidden
  isMoving: false, // whether one pane is moving the other
};

view.settings = {
  isShown: (name) => !view.isHidden && Boolean(view.state[name] && view.state[name].isShown),
  opacity: (name) => (view.state[name] ? view.state[name].opacity : 1),
};

function layerState(name) {
  view.state[name] ||= { isShown: name in SHOWN, opacity: OPACITY[name] || 1 };
  return view.state[name];
}

function changed(what, pane) {
  if (what === "view") linkViews(pane);
  if (what === "map") { buildLayers(); buildThresholds(); showPatch(); showFacts(); }
  if (what === "threshold") { showThreshold(pane); showPatch(); }
  if (what === "patch") {
    for (const other of view.panes) {
      if (other !== pane && other.map) other.selectOnSlide(pane.selectedOnSlide);
    }
    showPatch();
  }
  if (what === "click" && pane.selected >= 0) {
    $("patch-section").scrollIntoView({ block: "nearest" }); // the layers can fill the window
  }
  if (what === "outlines") buildLayers();
  saveSoon();
}

function draw() { for (const pane of view.panes) pane.draw(); }

// The list of items.

function buildSorts() {
  const known = SORTS.filter(([column]) => view.items.some((item) => item[column] != null));
  for (const [column, name] of known) {
    const option = add($("sort"), "option", "", name);
    option.value = column;
  }
  $("sort").value = known.length > 1 ? "idc_fraction" : "name";
}

function sortItems() {
  const [column, , isDescending] = SORTS.find((sort) => sort[0] === $("sort").value);
  const byName = (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true });
  const sorted = [...view.items].sort((a, b) => {
    if (column === "name") return byName(a, b);
    if (a[column] == null || b[column] == null) return (a[column] == null) - (b[column] == null);
    return (a[column] - b[column]) * (isDescending ? -1 : 1) || byName(a, b);
  });
  const text = $("find").value.toLowerCase();
  view.order = sorted.filter((item) => item.name.toLowerCase().includes(text));
}

function buildList() {
  sortItems();
  const [column, , , format] = SORTS.find((sort) => sort[0] === $("sort").value);
  $("items").replaceChildren();
  for (const item of view.order) {
    const button = add(add($("items"), "li"), "button");
    button.type = "button";
    add(button, "span", "name", item.name);
    const value = item[column];
    add(button, "span", "value", column === "name" || value == null ? "" : format(value));
    button.addEventListener("click", () => show(item));
    button.dataset.index = item.index;
  }
  markItem();
}

function markItem() {
  const item = view.panes[0] && view.panes[0].item;
  for (const button of $("items").querySelectorAll("button")) {
    const isCurrent = Boolean(item) && Number(button.dataset.index) === item.index;
    button.setAttribute("aria-current", isCurrent);
    if (isCurrent) button.scrollIntoView({ block: "nearest" });
  }
}

// Show an item; the second pane shows the map of the same slide in its folder, if there is one.
function show(item, position = null) {
  const [first, second] = view.panes;
  if (second) {
    const folder = second.item.name.slice(0, -second.item.mapName.length);
    const other = view.items.find((one) => one.name === folder + item.mapName);
    if (other) second.show(other, position);
    else setSecond(null);
  }
  first.show(item, position);
  markItem();
  buildCompare();
}

function step(by) {
  const at = view.order.indexOf(view.panes[0].item);
  const next = view.order[(at + by + view.order.length) % view.order.length];
  if (next) show(next);
}

// Two panes.

function setSecond(item) {
  const [first, second] = view.panes;
  if (!item) {
    if (second) second.close();
    view.panes.length = 1;
    changed("map", first);
  } else {
    if (!second) view.panes.push(new Pane($("panes"), view.settings, changed));
    view.panes[1].show(item).then(() => linkViews(first));
  }
  buildCompare();
}

function buildCompare() {
  const [first, second] = view.panes;
  const others = view.items.filter(
    (item) => item !== first.item && item.mapName === first.item.mapName);
  $("compare-section").hidden = !others.length;
  $("compare").replaceChildren();
  add($("compare"), "option", "", "only this map").value = "";
  for (const item of others) {
    const option = add($("compare"), "option", "", item.name);
    option.value = item.index;
  }
  $("compare").value = second ? second.item.index : "";
}

function linkViews(pane) {
  if (view.isMoving || view.panes.length < 2) return;
  const position = pane.map && pane.slidePosition;
  if (!position) return;
  view.isMoving = true;
  for (const other of view.panes) {
    if (other !== pane && other.map && other.position) other.moveOnSlide(position);
  }
  view.isMoving = false;
}

// Controls of the layers.

function layersOfPanes() {
  const layers = new Map();
  for (const pane of view.panes) {
    for (const layer of pane.map ? pane.map.layers : []) layers.set(layer.name, layer);
  }
  const first = view.panes[0];
  if (view.hasAnnotations && first.map && first.map.tissue.kind === "slide") {
    layers.set("annotations", { name: "annotations", title: "Annotations", keys: outlineKeys() });
  }
  return layers;
}

function outlineKeys() {
  const { outlines, outlineError } = view.panes[0];
  if (outlineError) return [["#8a1c1c", outlineError]];
  return [...new Map((outlines || []).map(({ name, color }) => [name, color]))].map(
    ([name, color]) => [color, name]);
}

function buildLayers() {
  const layers = layersOfPanes();
  view.layers = [...layers.keys()];
  $("layers").replaceChildren();
  if (!view.layers.length) add($("layers"), "p", "hint", "This slide has no map.");
  [...layers.values()].forEach((layer, i) => buildLayer(layer, i + 1));
}

function buildLayer(layer, number) {
  const state = layerState(layer.name);
  const element = add($("layers"), "div", "layer");
  const line = add(element, "div", "line");
  const box = add(line, "input");
  box.type = "checkbox";
  box.id = `layer-${layer.name}`;
  box.checked = state.isShown;
  box.addEventListener("change", () => {
    state.isShown = box.checked;
    view.isHidden = false;
    draw();
    saveSoon();
  });
  const label = add(line, "label", "", layer.title);
  label.htmlFor = box.id;
  if (number < 10) add(label, "kbd", "", String(number));
  const range = add(line, "input");
  Object.assign(range, { type: "range", min: 0, max: 100, value: 100 * state.opacity });
  range.setAttribute("aria-label", `Opacity of ${layer.title}`);
  const legend = add(element, "div", "legend");
  const bar = layer.colors ? legend.appendChild(colorBar(layer)) : null;
  const setOpacity = () => { if (bar) bar.style.opacity = state.opacity; };
  range.addEventListener("input", () => {
    state.opacity = range.value / 100;
    setOpacity();
    draw();
    saveSoon();
  });
  setOpacity();
  if (bar) {
    const ends = add(legend, "div", "ends");
    add(ends, "span", "", "0");
    if (layer.note) add(ends, "span", "", layer.note);
    const top = Number(layer.vmax.toPrecision(3));
    add(ends, "span", "", layer.isOpen ? `${top} or more` : String(top));
  }
  for (const [color, name] of layer.keys || []) {
    const word = add(legend, "span", "word");
    add(word, "span", "key").style.background = color;
    word.append(name);
  }
}

// The bar has the colors of the layer over white glass.
function colorBar(layer) {
  const canvas = document.createElement("canvas");
  const num = layer.colors.length / 4;
  canvas.width = num;
  canvas.height = 1;
  const context = canvas.getContext("2d"), image = context.createImageData(num, 1);
  image.data.set(layer.colors);
  context.putImageData(image, 0, 0);
  return canvas;
}

// Thresholds: one for each pane, since two models have different thresholds.

function buildThresholds() {
  $("thresholds").replaceChildren();
  const panes = view.panes.filter((pane) => pane.map && pane.num);
  for (const part of ["threshold", "patch", "read"]) $(`${part}-section`).hidden = !panes.length;
  for (const pane of panes) {
    const element = add($("thresholds"), "div", "threshold");
    if (view.panes.length > 1) add(element, "div", "hint", pane.item.name);
    const line = add(element, "div", "line");
    add(line, "label", "", "probability of at least").htmlFor = `threshold-${pane.item.index}`;
    const output = add(line, "output");
    const range = add(element, "input");
    Object.assign(range, { type: "range", min: 0, max: 1, step: 0.001, value: pane.threshold });
    range.id = `threshold-${pane.item.index}`;
    range.className = "threshold-range";
    range.addEventListener("input", () => pane.setThreshold(Number(range.value)));
    const facts = add(element, "div", "hint facts");
    if (pane.hasFlags) addFlagBox(element, pane);
    const mistakes = add(element, "div", "mistakes");
    const count = add(mistakes, "span", "hint");
    const button = add(mistakes, "button", "", "next (m)");
    button.type = "button";
    button.title = "Go to the next mistake, from the most confident";
    button.addEventListener("click", () => pane.nextMistake());
    mistakes.hidden = !pane.hasLabels;
    pane.controls = { range, output, facts, count };
    showThreshold(pane);
  }
}

function addFlagBox(element, pane) {
  const label = add(element, "label", "hint");
  const box = add(label, "input");
  box.type = "checkbox";
  box.checked = pane.excludesFlagged;
  box.addEventListener("change", () => pane.setExcludesFlagged(box.checked));
  label.append(" leave out flagged patches");
}

function showThreshold(pane) {
  if (!pane.controls) return;
  const { range, output, facts, count } = pane.controls;
  const { probability, onSlide, labels } = pane.columns;
  let num = 0, cells = 0, fp = 0, fn = 0;
  for (let i = 0; i < pane.num; i++) {
    const called = probability[i] >= pane.threshold;
    num += called;
    cells += called && pane.isCounted(i) ? onSlide[i] : 0;
    fp += called && labels[i] === 0;
    fn += !called && labels[i] === 1;
  }
  const mm2 = cells * (pane.map.cellUm / 1000) ** 2;
  const own = pane.threshold === pane.threshold0 ? " at the map's threshold" : "";
  range.value = pane.threshold;
  output.textContent = pane.threshold.toFixed(3);
  facts.textContent = `${num.toLocaleString("en")} of ${pane.num.toLocaleString("en")} patches ` +
    `(${((100 * num) / pane.num).toFixed(1)} %), ${area(mm2)} mm²${own}`;
  count.textContent = `mistakes: ${fp} false pos., ${fn} false neg.`;
}

// Facts of a patch and of the map.

function showPatch() {
  const list = $("patch");
  list.replaceChildren();
  const panes = view.panes.filter((pane) => pane.map && pane.num && pane.selected >= 0);
  if (!panes.length) add(list, "dd", "hint", "Click a patch of the map.");
  for (const pane of panes) {
    if (view.panes.length > 1) add(list, "dd", "hint", pane.item.name);
    for (const [name, value] of patchFacts(pane)) {
      add(list, "dt", "", name);
      add(list, "dd", "", value);
    }
  }
}

function patchFacts({ map, columns, selected: i, threshold }) {
  const names = [...map.classNames, "unknown"], label = columns.labels[i];
  const facts = [
    ["row, column", `${columns.row[i]}, ${columns.col[i]}`],
    ["x, y", `${columns.x[i]}, ${columns.y[i]} px`],
    ["probability", columns.probability[i].toFixed(4)],
    ["call", map.classNames[columns.probability[i] >= threshold ? 1 : 0]],
    ["label", names[label < 0 ? 2 : label]],
  ];
  if (columns.smoothed) facts.splice(3, 0, ["smoothed", columns.smoothed[i].toFixed(4)]);
  if (columns.unsmoothed) facts.splice(3, 0, ["not smoothed", columns.unsmoothed[i].toFixed(4)]);
  if (columns.uncertainty) facts.push(["uncertainty", columns.uncertainty[i].toFixed(4)]);
  if (columns.flags) {
    const names = Object.entries(map.flagBits).filter(([, bit]) => columns.flags[i] & bit);
    facts.push(["flags", names.map(([name]) => name).join(", ") || "none"]);
  }
  if (columns.novelty) facts.push(["novelty", columns.novelty[i].toFixed(3)]);
  return facts;
}

function showFacts() {
  const { item, map } = view.panes[0];
  document.title = `${item.name}: wsi-idc view`;
  $("title").textContent = item.name;
  const role = map ? map.role : "";
  const isKnown = ["train", "val", "test"].includes(role);
  $("role").textContent = isKnown ? `${role} patient of the model` : role && "new for the model";
  $("role").hidden = !role;
  $("train-note").hidden = role !== "train";
  $("caution").hidden = !(map && map.caution);
  $("caution").textContent = map && map.caution
    ? `This tissue is ${map.caution}. The map can be wrong everywhere.` : "";
  for (const pane of view.panes) pane.caption.hidden = view.panes.length < 2;
  const notes = view.panes.filter((pane) => pane.map && pane.map.tissue.note).map((pane) => {
    const { kind, note } = pane.map.tissue;
    const shown = {
      picture: "The page shows the picture in the map, not the slide",
      thumbnail: "The page shows the thumbnail in the map, not the slide",
      blank: "There is no tissue to show",
    }[kind];
    return `${shown}: ${note}.`;
  });
  $("tissue-note").textContent = [...new Set(notes)].join(" ");
  $("tissue-note").hidden = !notes.length;
}

// The address: items in the query; position, layers and threshold in the part after "#".

let timer = 0;
function saveSoon() {
  clearTimeout(timer);
  timer = setTimeout(save, SAVE_MS);
}

function save() {
  const [first, second] = view.panes;
  if (!first.map || !first.position) return;
  const { x, y, z } = first.position;
  const query = new URLSearchParams({ left: first.item.name });
  if (second) query.set("right", second.item.name);
  const layers = view.layers.filter((name) => layerState(name).isShown).map(
    (name) => `${name}:${Math.round(100 * layerState(name).opacity)}`);
  const hash = new URLSearchParams({
    x: x.toFixed(1), y: y.toFixed(1), z: z.toPrecision(5), layers: layers.join(","),
  });
  if (first.num && first.threshold !== first.threshold0) hash.set("t", first.threshold);
  history.replaceState(null, "", `/?${query}#${hash}`);
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  const hash = new URLSearchParams(location.hash.slice(1));
  const [x, y, z, t] = ["x", "y", "z", "t"].map((name) => parseFloat(hash.get(name)));
  for (const part of hash.has("layers") ? hash.get("layers").split(",") : []) {
    const [name, opacity] = part.split(":");
    if (/^[a-z]+$/.test(name)) {
      const value = Math.min(100, Math.max(0, Number(opacity))) / 100;
      view.state[name] = { isShown: true, opacity: Number.isFinite(value) ? value : 1 };
    }
  }
  if (hash.has("layers")) {
    for (const name of Object.keys(SHOWN)) {
      view.state[name] ||= { isShown: false, opacity: OPACITY[name] || 1 };
    }
  }
  const find = (name) => view.items.find((item) => item.name === query.get(name));
  const position = [x, y, z].every(Number.isFinite) && z > 0 ? { x, y, z } : null;
  return { left: find("left"), right: find("right"), position, threshold: t };
}

// Keys.

const KEYS = {
  "+": (viewer) => zoomBy(viewer, 1.5),
  "=": (viewer) => zoomBy(viewer, 1.5),
  "-": (viewer) => zoomBy(viewer, 1 / 1.5),
  "0": (viewer) => viewer.viewport.goHome(),
  f: () => view.panes[0].move({ ...view.panes[0].position, z: FULL_RESOLUTION }),
  n: () => step(1),
  p: () => step(-1),
  m: () => view.panes[0].nextMistake(),
  t: () => document.querySelector(".threshold-range")?.focus(),
  " ": () => { view.isHidden = !view.isHidden; draw(); },
  "?": () => $("help").showModal(),
};

function zoomBy(viewer, factor) {
  viewer.viewport.zoomBy(factor);
  viewer.viewport.applyConstraints();
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input[type=search], select");
  const isControl = event.target.matches("button, input[type=checkbox]") && event.key === " ";
  if (isTyping || isControl || event.ctrlKey || event.metaKey || event.altKey) return;
  if ($("help").open || !view.panes.length) return;
  if (!view.panes[0].map && !"np?".includes(event.key)) return; // the item cannot be shown
  if (/^[1-9]$/.test(event.key)) {
    const box = $(`layer-${view.layers[Number(event.key) - 1]}`);
    if (box) box.click();
  } else if (Object.hasOwn(KEYS, event.key)) {
    KEYS[event.key](view.panes[0].viewer);
  } else {
    return;
  }
  event.preventDefault();
});

// Start.

async function start() {
  const { items, failed, hasAnnotations } = await get("items");
  view.items = items;
  view.hasAnnotations = hasAnnotations;
  buildSorts();
  buildList();
  if (failed.length) {
    $("failed").hidden = false;
    $("failed").textContent = `Not shown: ${failed.map((one) => one.join(": ")).join("; ")}`;
  }
  const { left, right, position, threshold } = readAddress();
  view.panes.push(new Pane($("panes"), view.settings, changed));
  const [first] = view.panes;
  await first.show(left || view.order[0], position);
  if (Number.isFinite(threshold)) first.setThreshold(Math.min(1, Math.max(0, threshold)));
  markItem();
  buildCompare();
  if (right && right !== first.item) setSecond(right);
}

$("sort").addEventListener("change", buildList);
$("find").addEventListener("input", buildList);
$("compare").addEventListener("change", () => {
  const { value } = $("compare");
  setSecond(value === "" ? null : view.items[Number(value)]);
});
$("help-button").addEventListener("click", () => $("help").showModal());
globalThis.view = view; // for the console of the browser
start().catch((error) => { $("title").textContent = error.message; });
