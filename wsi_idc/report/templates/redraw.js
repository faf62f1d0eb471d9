// After a change of the threshold: call the patches, redraw regions and errors, update the figures.
// Arguments: patches, errors, regions, threshold, toggle, second, line, grid.
const {rows, cols, cell_mm} = grid;
const {data} = patches;
const values = toggle.active === 1 ? data[second] : data.probability;
// Probabilities are float32. Round the threshold to float32 too, as Python does.
const limit = Math.fround(threshold.value);
const mask = new Uint8Array(rows * cols);
const on_slide = new Float32Array(rows * cols);
const codes = errors.data.errors[0];
const count = {called: 0, tp: 0, fp: 0, fn: 0, tn: 0};

codes.fill(0);
for (let i = 0; i < values.length; i++) {
  const called = values[i] >= limit;
  on_slide[data.cell[i]] = data.on_slide[i];
  if (called) {
    count.called += 1;
    if (data.is_counted[i]) mask[data.cell[i]] = 1;
  }
  if (data.label[i] >= 0) {
    const outcome = data.label[i] === 1 ? (called ? 1 : 3) : (called ? 2 : 4);
    codes[data.cell[i]] = outcome;
    count[["tp", "fp", "fn", "tn"][outcome - 1]] += 1;
  }
}
errors.change.emit();

// Edges between called and other cells, joined to lines.
const ends = {x0: [], y0: [], x1: [], y1: []};
const is_called = (row, col) =>
  row >= 0 && col >= 0 && row < rows && col < cols && mask[row * cols + col] === 1;
function trace(lines, steps, is_edge, add) {
  for (let line = 0; line <= lines; line++) {
    let start = -1;
    for (let step = 0; step <= steps; step++) {
      const edge = step < steps && is_edge(line, step);
      if (edge && start < 0) start = step;
      if (!edge && start >= 0) {
        add(line, start, step);
        start = -1;
      }
    }
  }
}
function add(x0, y0, x1, y1) {
  ends.x0.push(x0 * cell_mm);
  ends.y0.push(y0 * cell_mm);
  ends.x1.push(x1 * cell_mm);
  ends.y1.push(y1 * cell_mm);
}
trace(rows, cols, (row, col) => is_called(row - 1, col) !== is_called(row, col),
  (row, from, to) => add(from, row, to, row));
trace(cols, rows, (col, row) => is_called(row, col - 1) !== is_called(row, col),
  (col, from, to) => add(col, from, col, to));
regions.data = ends;

// The largest region. As in Python, cells of a region share an edge; a corner is not enough.
let largest = 0, area = 0;
for (let i = 0; i < mask.length; i++) area += mask[i] * on_slide[i];
for (let i = 0; i < mask.length; i++) {
  if (mask[i] !== 1) continue;
  let size = 0;
  const queue = [i];
  mask[i] = 2;
  while (queue.length > 0) {
    const cell = queue.pop(), row = Math.floor(cell / cols), col = cell % cols;
    size += on_slide[cell];
    for (const [r, c] of [[row - 1, col], [row, col - 1], [row, col + 1], [row + 1, col]]) {
      if (is_called(r, c)) {
        mask[r * cols + c] = 2;
        queue.push(r * cols + c);
      }
    }
  }
  largest = Math.max(largest, size);
}

const cell_mm2 = cell_mm * cell_mm;
const mm2 = (cells) => `${(cells * cell_mm2).toFixed(2)} mm²`;
const whole = (number) => number.toLocaleString("en");
const ratio = (part, total) => total > 0 ? (part / total).toFixed(3) : "–";
const {tp, fp, fn, tn} = count;
const texts = {
  "threshold-value": threshold.value.toFixed(3),
  "idc-fraction": `${(100 * count.called / values.length).toFixed(1)} %`,
  "idc-area": mm2(area),
  "largest-region": mm2(largest),
  "called-patches": `${whole(count.called)} of ${whole(values.length)}`,
  "sensitivity": ratio(tp, tp + fn),
  "specificity": ratio(tn, tn + fp),
  "dice": ratio(2 * tp, 2 * tp + fp + fn),
  ...Object.fromEntries(["tp", "fp", "fn", "tn"].map((id) => [id, whole(count[id])])),
};
for (const [id, text] of Object.entries(texts)) {
  const element = document.getElementById(id);
  if (element) element.textContent = text;
}
const mark = document.getElementById(toggle.active === 1 ? `mark-${second}` : "mark-probability");
for (const other of document.querySelectorAll(".mark")) other.hidden = other !== mark;
if (mark) mark.style.left = `${100 * threshold.value}%`;
line.location = threshold.value;
