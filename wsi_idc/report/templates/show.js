// After a click: show the patch enlarged beside its CAM, and its numbers.
// Arguments: patches, grids, tissue, grid, cam_palette, side_px, label_names, flag_bits.
const {data} = patches;
data.label_name ??= Array.from(data.label, (label) => label_names[label]);  // for the tooltips
data.flag_names ??= Array.from(data.flags ?? [], (bits) =>
  flag_bits.filter(([, bit]) => bits & bit).map(([name]) => name).join(", ") || "none");
const index = patches.selected.indices[0];
const panel = document.getElementById("patch");
panel.classList.toggle("empty", index === undefined);
if (index === undefined) return;
const cell = data.cell[index], row = Math.floor(cell / grid.cols), col = cell % grid.cols;

const number = (name, digits) => name in data ? data[name][index].toFixed(digits) : "";
const texts = {
  "patch-cell": `${data.row[index]}, ${data.col[index]}`,
  "patch-xy": `${data.x[index]}, ${data.y[index]} px`,
  "patch-probability": number("probability", 3),
  "patch-unsmoothed": number("unsmoothed", 3),
  "patch-smoothed": number("smoothed", 3),
  "patch-uncertainty": number("uncertainty", 3),
  "patch-novelty": number("novelty", 3),
  "patch-cam": number("cam_max", 4),
  "patch-label": data.label_name[index],
  "patch-flags": data.flag_names[index],
};
for (const [id, text] of Object.entries(texts)) {
  const element = document.getElementById(id);
  if (element) element.textContent = text;
}

const tissue_canvas = document.getElementById("patch-tissue");
if (tissue_canvas && side_px > 0) {
  const context = tissue_canvas.getContext("2d");
  const urls = tissue.data.url;
  const image = new Image();
  image.onload = () => {
    // Ignore the picture if another patch was clicked in the meantime.
    if (patches.selected.indices[0] !== index) return;
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, tissue_canvas.width, tissue_canvas.height);
    context.drawImage(image, col * side_px, row * side_px, side_px, side_px,
      0, 0, tissue_canvas.width, tissue_canvas.height);
    tissue_canvas.dataset.shown = index;
  };
  image.src = urls[urls.length - 1];
}

const cam_canvas = document.getElementById("patch-map");
if (cam_canvas && "cam" in grids.data) {
  const levels = grids.data.cam[0], columns = levels.shape[1];
  const cam_rows = levels.shape[0] / grid.rows, cam_cols = columns / grid.cols;
  const context = cam_canvas.getContext("2d");
  context.fillStyle = "white"; // as below the color bar
  context.fillRect(0, 0, cam_canvas.width, cam_canvas.height);
  const width = cam_canvas.width / cam_cols, height = cam_canvas.height / cam_rows;
  for (let r = 0; r < cam_rows; r++) {
    for (let c = 0; c < cam_cols; c++) {
      const level = levels[(row * cam_rows + r) * columns + col * cam_cols + c];
      context.fillStyle = cam_palette[level];
      context.fillRect(Math.floor(c * width), Math.floor(r * height), Math.ceil(width), Math.ceil(height));
    }
  }
  cam_canvas.dataset.shown = index;
}
