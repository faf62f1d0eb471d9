"use strict";
// A pane shows the tissue of one item, and draws the layers of its map over the tissue.

const HALO = "#102a43";
const SELECTED = "#ff2bd6";
const OUTLINE_COLORS = ["#e6194b", "#3c78d8", "#f58231", "#8e44ad", "#117a65", "#7d6608"];
const FULL_RESOLUTION = 1; // screen px per px of the slide
const LOWEST_LEVEL = 7; // has at most 128 px

async function get(address, kind = "json") {
  const response = await fetch(address);
  if (!response.ok) throw new Error(await response.text());
  return response[kind]();
}

class Pane {
  // settings: the layers and their opacities; changed: called when the view or the values change.
  constructor(parent, settings, changed) {
    this.settings = settings;
    this.changed = changed;
    this.element = add(parent, "div", "pane");
    const osd = add(this.element, "div", "osd");
    this.caption = add(this.element, "div", "caption");
    this.readout = add(this.element, "div", "readout");
    this.readout.hidden = true;
    const scale = add(this.element, "div", "scale");
    this.scaleText = add(scale, "div");
    this.scaleBar = add(scale, "div", "bar");
    this.magnification = add(scale, "div");
    this.message = add(this.element, "div", "message");
    this.viewer = OpenSeadragon({
      element: osd,
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "TOP_RIGHT",
      navigatorWidth: "130px",
      navigatorHeight: "100px",
      navigatorOpacity: 1,
      navigatorAutoFade: false,
      imageSmoothingEnabled: false,
      maxZoomPixelRatio: 8,
      minZoomImageRatio: 0.7,
      visibilityRatio: 0.3,
      animationTime: 0.4,
      zoomPerScroll: 1.5,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      maxImageCacheCount: 400,
      imageLoaderLimit: 6,
      keyboardNavEnabled: false,
    });
    this.overlay = add(this.viewer.canvas, "canvas", "overlay"); // under the small overview
    for (const name of ["update-viewport", "resize", "open"]) {
      this.viewer.addHandler(name, () => this.draw());
    }
    this.viewer.addHandler("tile-load-failed", () => {
      this.message.hidden = false;
      this.message.textContent =
        "A part of the slide cannot be shown: it is damaged, or wsi-idc view has ended.";
    });
    this.viewer.addHandler("viewport-change", () => this.changed("view", this));
    this.viewer.addHandler("canvas-click", (event) => {
      if (!event.quick) return;
      this.select(this.patchAt(event.position));
      this.changed("click", this);
    });
    osd.addEventListener("pointermove", (event) => {
      const box = this.element.getBoundingClientRect();
      this.hover(new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top));
    });
    osd.addEventListener("pointerleave", () => { this.readout.hidden = true; });
  }

  close() {
    this.viewer.destroy();
    this.element.remove();
  }

  // Show an item of the catalog; position: x, y and z of ``position``, or null.
  async show(item, position = null) {
    const request = (this.request = (this.request || 0) + 1);
    this.item = item;
    this.caption.textContent = item.name;
    this.message.hidden = false;
    this.message.textContent = "loading";
    this.map = this.outlines = null;
    this.pictures = {};
    this.selected = -1;
    this.viewer.close();
    try {
      const map = await get(`items/${item.index}`);
      const values = item.isMap ? await get(`items/${item.index}/values`, "arrayBuffer") : null;
      if (request !== this.request) return;
      this.read(map, values);
      await this.open(map, item, position);
      if (request !== this.request) return;
      this.message.hidden = true;
    } catch (error) {
      if (request !== this.request) return;
      this.message.textContent = error.message;
    }
    this.changed("map", this);
    this.draw();
  }

  open(map, item, position) {
    const { width, height, tilePx, overlapPx, maxLevel } = map.tissue;
    return new Promise((resolve, reject) => {
      this.viewer.addOnceHandler("open", () => {
        if (position) this.move(position, true);
        resolve();
      });
      this.viewer.addOnceHandler("open-failed", (event) => reject(new Error(event.message)));
      this.viewer.open({
        width, height, tileSize: tilePx, tileOverlap: overlapPx, maxLevel,
        minLevel: Math.min(LOWEST_LEVEL, maxLevel),
        getTileUrl: (level, x, y) => `items/${item.index}/tiles/${level}/${x}_${y}.jpg`,
      });
    });
  }

  // Prepare the values of the patches: columns, the patch of each cell, pictures of the layers.
  read(map, values) {
    this.map = map;
    this.threshold = this.threshold0 = map.threshold;
    const numbers = values ? new Float32Array(values) : new Float32Array(0);
    this.num = map.columns.length ? numbers.length / map.columns.length : 0;
    this.columns = {};
    map.columns.forEach((name, i) => {
      this.columns[name] = numbers.subarray(i * this.num, (i + 1) * this.num);
    });
    this.cells = new Int32Array((map.rows || 0) * (map.cols || 0)).fill(-1);
    const { row, col } = this.columns;
    for (let i = 0; i < this.num; i++) this.cells[row[i] * map.cols + col[i]] = i;
    this.hasLabels = this.num > 0 && this.columns.labels.some((label) => label >= 0);
    this.hasFlags = Boolean(this.columns.flags) && this.columns.flags.some((bits) => bits);
    this.excludesFlagged = map.excludesFlagged;
    this.grids = {};
    this.called = null;
  }

  layer(name) { return this.map && this.map.layers.find((layer) => layer.name === name); }

  // Paint a layer as a picture with one px per cell; color(i) is a color of ``packed``.
  paintGrid(name, color) {
    const { rows, cols } = this.map;
    const canvas = document.createElement("canvas");
    canvas.width = cols;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const image = context.createImageData(cols, rows), { row, col } = this.columns;
    const px = new Uint32Array(image.data.buffer);
    for (let i = 0; i < this.num; i++) px[row[i] * cols + col[i]] = color(i);
    context.putImageData(image, 0, 0);
    this.grids[name] = canvas;
  }

  paint(layer) {
    const values = this.columns[layer.name], colors = packed(layer.colors);
    this.paintGrid(layer.name, (i) => {
      const value = values[i];
      if (Number.isNaN(value)) return 0;
      const fraction = Math.min(1, Math.max(0, value / layer.vmax));
      return colors[Math.round(fraction * (colors.length - 1))];
    });
  }

  paintLabels() {
    const { labels } = this.columns;
    const colors = packed(this.layer("labels").keys.flatMap((key) => rgba(key[0]))); // 0, 1, -1
    this.paintGrid("labels", (i) => colors[labels[i] < 0 ? 2 : labels[i]]);
  }

  // A patch with several flags has the color of the last of them.
  paintFlags() {
    const { flags } = this.columns, bits = Object.values(this.map.flagBits);
    const colors = packed(this.layer("flags").keys.flatMap((key) => rgba(key[0])));
    this.paintGrid("flags", (i) => {
      const last = bits.findLastIndex((bit) => flags[i] & bit);
      return last < 0 ? 0 : colors[last];
    });
  }

  // Return whether a patch belongs to areas and to the outline of the patches called IDC.
  isCounted(patch) {
    return !(this.excludesFlagged && this.columns.flags && this.columns.flags[patch]);
  }

  setExcludesFlagged(value) {
    this.excludesFlagged = value;
    this.called = null;
    this.draw();
    this.changed("threshold", this);
  }

  // The colors of true and false positives, false and true negatives depend on the threshold.
  paintErrors() {
    const { labels, probability } = this.columns;
    const colors = packed(this.layer("errors").keys.flatMap((key) => rgba(key[0])));
    this.paintGrid("errors", (i) => {
      if (labels[i] < 0) return 0;
      const called = probability[i] >= this.threshold;
      return colors[labels[i] ? (called ? 0 : 2) : called ? 1 : 3];
    });
  }

  // Return the picture of a layer; paint it when it is first shown.
  grid(name) {
    if (name === "cam") return this.picture("cam");
    if (!this.grids[name]) {
      if (name === "labels") this.paintLabels();
      else if (name === "errors") this.paintErrors();
      else if (name === "flags") this.paintFlags();
      else if (this.columns[name]) this.paint(this.layer(name));
    }
    return this.grids[name];
  }

  // Return the border of the cells whose patch is inside, as a path in cells.
  boundary(inside) {
    const { rows, cols } = this.map, { row, col } = this.columns, path = new Path2D();
    const isInside = (r, c) => {
      const i = r < 0 || c < 0 || r >= rows || c >= cols ? -1 : this.cells[r * cols + c];
      return i >= 0 && inside(i);
    };
    const edge = (x, y, endX, endY) => { path.moveTo(x, y); path.lineTo(endX, endY); };
    for (let i = 0; i < this.num; i++) {
      if (!inside(i)) continue;
      const r = row[i], c = col[i];
      if (!isInside(r - 1, c)) edge(c, r, c + 1, r);
      if (!isInside(r + 1, c)) edge(c, r + 1, c + 1, r + 1);
      if (!isInside(r, c - 1)) edge(c, r, c, r + 1);
      if (!isInside(r, c + 1)) edge(c + 1, r, c + 1, r + 1);
    }
    return path;
  }

  setThreshold(value) {
    if (!this.num) return;
    this.threshold = value;
    this.called = this.grids.errors = null; // painted again when they are drawn
    this.draw();
    this.changed("threshold", this);
  }

  // Position of the view: x, y of the center in px of the tissue, z px of the tissue per screen px.
  get position() {
    const item = this.viewer.world.getItemAt(0);
    if (!item) return null;
    const center = item.viewportToImageCoordinates(this.viewer.viewport.getCenter());
    const bounds = this.viewer.viewport.getBounds();
    const width = this.map.tissue.width * bounds.width;
    return { x: center.x, y: center.y, z: width / this.viewer.viewport.getContainerSize().x };
  }

  move({ x, y, z }, immediately = false) {
    const { width } = this.map.tissue, { viewport } = this.viewer;
    viewport.zoomTo(width / (z * viewport.getContainerSize().x), null, immediately);
    viewport.panTo(new OpenSeadragon.Point(x / width, y / width), immediately);
  }

  // The same position in level-0 px of the slide, for two panes whose tissue differs.
  get slidePosition() {
    const at = this.position, { scale, left, top } = this.map.tissue;
    return at && { x: at.x / scale + left, y: at.y / scale + top, z: at.z / scale };
  }

  moveOnSlide({ x, y, z }) {
    const { scale, left, top } = this.map.tissue;
    this.move({ x: (x - left) * scale, y: (y - top) * scale, z: z * scale }, true);
  }

  // Return x, y of the tissue's corner on the screen, and the screen px per px of the tissue.
  get screen() {
    const item = this.viewer.world.getItemAt(0);
    if (!item || !this.map) return null;
    const { width } = this.map.tissue;
    const corner = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const end = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(width, 0));
    return { x: corner.x, y: corner.y, zoom: (end.x - corner.x) / width };
  }

  // Return the patch at a point of the screen, or -1.
  patchAt(point) {
    const screen = this.screen;
    if (!screen) return -1;
    return this.patchOnTissue(
      (point.x - screen.x) / screen.zoom, (point.y - screen.y) / screen.zoom);
  }

  patchOnTissue(px, py) {
    if (!this.num) return -1;
    const { x, y, side, width, height } = this.map.tissue, { rows, cols } = this.map;
    const col = Math.floor((px - x) / side), row = Math.floor((py - y) / side);
    const isOutside = px < 0 || py < 0 || px >= width || py >= height;
    if (isOutside || row < 0 || col < 0 || row >= rows || col >= cols) return -1;
    return this.cells[row * cols + col];
  }

  // Center of the selected patch in level-0 px of the slide.
  get selectedOnSlide() {
    const { x, y, side, scale, left, top } = this.map.tissue, i = this.selected;
    if (i < 0) return null;
    return {
      x: (x + (this.columns.col[i] + 0.5) * side) / scale + left,
      y: (y + (this.columns.row[i] + 0.5) * side) / scale + top,
    };
  }

  // Select the patch at a position of the slide that was selected in the other pane.
  selectOnSlide(at) {
    const { scale, left, top } = this.map.tissue;
    this.selected = at ? this.patchOnTissue((at.x - left) * scale, (at.y - top) * scale) : -1;
    this.draw();
  }

  select(patch) {
    this.selected = patch;
    this.draw();
    this.changed("patch", this);
  }

  hover(point) {
    const patch = this.patchAt(point);
    this.readout.hidden = patch < 0;
    if (patch >= 0) {
      const p = this.columns.probability[patch];
      const called = p >= this.threshold ? `called ${this.map.classNames[1]}` : "not called";
      const { row, col } = this.columns;
      this.readout.textContent =
        `row ${row[patch]}, col ${col[patch]}: probability ${p.toFixed(3)}, ${called}`;
    }
  }

  // Go to a patch: the screen shows about five patches.
  goTo(patch) {
    const { x, y, side } = this.map.tissue, { row, col } = this.columns;
    const size = this.viewer.viewport.getContainerSize();
    this.move({
      x: x + (col[patch] + 0.5) * side,
      y: y + (row[patch] + 0.5) * side,
      z: (5 * side) / Math.min(size.x, size.y),
    });
    this.select(patch);
  }

  // Return the patches whose call differs from the label, the most confident first.
  mistakes() {
    if (!this.hasLabels) return [];
    const { labels, probability } = this.columns, found = [];
    for (let i = 0; i < this.num; i++) {
      const label = labels[i];
      if (label >= 0 && probability[i] >= this.threshold !== (label === 1)) found.push(i);
    }
    return found.sort((a, b) => this.error(b) - this.error(a));
  }

  error(patch) { return Math.abs(this.columns.probability[patch] - this.columns.labels[patch]); }

  nextMistake() {
    const found = this.mistakes();
    if (!found.length) return;
    this.goTo(found[(found.indexOf(this.selected) + 1) % found.length]);
  }

  // Load a picture or the outlines of a layer when it is first shown; draw again afterwards.
  picture(name) {
    if (!(name in this.pictures)) {
      const image = this.pictures[name] = new Image();
      image.onload = () => this.draw();
      image.src = `items/${this.item.index}/${name}.png`;
    }
    const image = this.pictures[name];
    return image.complete && image.naturalWidth ? image : null;
  }

  annotations() {
    if (!this.outlines) {
      this.outlines = [];
      const { index } = this.item;
      get(`items/${index}/outlines`).then((outlines) => {
        if (index !== this.item.index) return;
        const names = [...new Set(outlines.map((outline) => outline.name))];
        this.outlines = outlines.map(({ name, rings }) => {
          const path = new Path2D();
          for (const ring of rings) {
            ring.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
            path.closePath();
          }
          const color = OUTLINE_COLORS[names.indexOf(name) % OUTLINE_COLORS.length];
          return { name: name || "Unclassified", path, color };
        });
        this.outlineError = "";
        this.changed("outlines", this);
        this.draw();
      }).catch((error) => {
        this.outlineError = error.message;
        this.changed("outlines", this);
      });
    }
    return this.outlines;
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.element;
    const width = Math.round(clientWidth * ratio), height = Math.round(clientHeight * ratio);
    if (this.overlay.width !== width || this.overlay.height !== height) {
      this.overlay.width = width;
      this.overlay.height = height;
    }
    const context = this.overlay.getContext("2d"), screen = this.screen;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!screen) return;
    this.drawScale(screen);
    const tissue = this.map.tissue, { zoom } = screen;
    context.setTransform(ratio * zoom, 0, 0, ratio * zoom, ratio * screen.x, ratio * screen.y);
    context.imageSmoothingEnabled = false;
    context.save();
    context.beginPath();
    context.rect(0, 0, tissue.width, tissue.height); // cells may reach beyond the slide
    context.clip();
    if (this.num) this.drawGrid(context, screen, tissue);
    if (this.settings.isShown("tissue") && tissue.kind !== "picture" && this.layer("tissue")) {
      const mask = this.picture("tissue");
      context.globalAlpha = this.settings.opacity("tissue");
      if (mask) context.drawImage(mask, 0, 0, tissue.width, tissue.height);
    }
    context.globalAlpha = this.settings.opacity("annotations");
    if (this.settings.isShown("annotations") && tissue.kind === "slide") {
      for (const { path, color } of this.annotations()) stroke(context, path, color, zoom);
    }
    context.restore();
  }

  // Draw the layers that have the grid of the map; only the visible cells.
  drawGrid(context, screen, tissue) {
    const { rows, cols } = this.map, { zoom } = screen;
    context.translate(tissue.x, tissue.y);
    context.scale(tissue.side, tissue.side);
    const cell = (px, start) => ((px - start) / zoom) / tissue.side;
    const left = clamp(Math.floor(cell(0, screen.x + tissue.x * zoom)), cols);
    const top = clamp(Math.floor(cell(0, screen.y + tissue.y * zoom)), rows);
    const right = clamp(
      Math.ceil(cell(this.element.clientWidth, screen.x + tissue.x * zoom)), cols);
    const bottom = clamp(
      Math.ceil(cell(this.element.clientHeight, screen.y + tissue.y * zoom)), rows);
    const w = right - left, h = bottom - top;
    if (w > 0 && h > 0) {
      for (const { name } of this.map.layers) {
        if (!this.settings.isShown(name)) continue;
        const grid = this.grid(name);
        if (!grid) continue;
        const sx = grid.width / cols, sy = grid.height / rows;
        context.globalAlpha = this.settings.opacity(name);
        context.drawImage(grid, left * sx, top * sy, w * sx, h * sy, left, top, w, h);
      }
    }
    const perCell = zoom * tissue.side;
    if (this.settings.isShown("called")) {
      const { probability } = this.columns;
      this.called ||= this.boundary(
        (i) => probability[i] >= this.threshold && this.isCounted(i));
      context.globalAlpha = this.settings.opacity("called");
      stroke(context, this.called, this.layer("called").keys[0][0], perCell);
    }
    if (this.selected >= 0) {
      context.globalAlpha = 1;
      context.lineWidth = 3 / perCell;
      context.strokeStyle = SELECTED;
      const { row, col } = this.columns;
      context.strokeRect(col[this.selected], row[this.selected], 1, 1);
    }
    context.scale(1 / tissue.side, 1 / tissue.side);
    context.translate(-tissue.x, -tissue.y);
  }

  drawScale({ zoom }) {
    const um = this.map.tissue.mpp / zoom; // microns per screen px
    const most = um * 160, power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((n) => n * power).find((n) => n <= most);
    this.scaleText.textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
    this.scaleBar.style.width = `${length / um}px`;
    const times = 10 / um; // a 10x objective gives about 1 um per px
    this.magnification.textContent =
      `${times < 10 ? times.toPrecision(2) : Math.round(times)}x · ${um.toPrecision(3)} µm/px`;
  }
}

function clamp(value, end) { return Math.min(end, Math.max(0, value)); }

function stroke(context, path, color, zoom) {
  for (const [style, width] of [[HALO, 4], [color, 2]]) {
    context.strokeStyle = style;
    context.lineWidth = width / zoom;
    context.stroke(path);
  }
}

// Return a color of 32 bits, in the order of ImageData, for each four numbers.
function packed(colors) { return new Uint32Array(new Uint8ClampedArray(colors).buffer); }

function rgba(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).concat(255);
}

function add(parent, tag, name = "", text = "") {
  const element = parent.appendChild(document.createElement(tag));
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
}
