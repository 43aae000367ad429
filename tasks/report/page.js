"use strict";
// Draws the charts of a report from the data block of the page, and redraws them as filters change. No library, no
// request: SVG elements in the page's own colours, so that dark mode and print need nothing of their own.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const SVG = "http://www.w3.org/2000/svg";

// ---- elements, numbers ----
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "rect", "text", "title", "clipPath", "defs"].includes(name);
  const element = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const unique = (values) => [...new Set(values)];
const upTo = (a, b) => a - b;
function group(items, key) {
  const groups = new Map();
  for (const item of items) {
    const name = key(item);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return groups;
}
// Student's interval of a mean; none of one value.
function interval(values) {
  const count = values.length, middle = mean(values);
  if (count < 2) return { mean: middle, low: null, high: null, count };
  const variance = values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (count - 1);
  const half = DATA.t[Math.min(count - 2, DATA.t.length - 1)] * Math.sqrt(variance / count);
  return { mean: middle, low: middle - half, high: middle + half, count };
}
function short(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}
const percent = (value) => `${Number((100 * value).toFixed(value > 0.99 || value < 0.01 ? 2 : 1))} %`;
const score = (cell, value) => (value === null ? "" : cell.percent ? (100 * value).toFixed(1) : short(value, 4));
const unit = (cell) => (cell.percent ? " (%)" : "");
const signed = (text) => (text.startsWith("−") || text.startsWith("-") ? text.replace("-", "−") : `+${text}`);
const probability = (value) => (value === null || value === undefined ? "" : value < 0.001 ? "< 0.001" : value.toPrecision(2));

// ---- state of the filters ----
const boxes = (name) => $$(`input[name="${name}"]`);
const chosen = (name) => new Set(boxes(name).filter((box) => box.checked).map((box) => box.value));
const muted = new Set();
let state = {};
function readFilters() {
  state = { cells: chosen("cell"), methods: chosen("method"), sparsities: chosen("sparsity"), seeds: chosen("seed") };
  state.all = $("#all-variants").checked;
  state.band = $("#band") ? $("#band").value : "interval";
}
function passes(run) {
  return state.cells.has(String(run.cell)) && state.methods.has(DATA.curves[run.curve].method)
    && state.seeds.has(String(run.seed)) && (run.dense || state.sparsities.has(String(run.target)));
}
const shown = (run) => passes(run) && (state.all || run.picked) && !muted.has(run.curve);
const line = (run) => (state.all ? run.variant : DATA.curves[run.curve].label);
const cellsShown = () => DATA.cells.map((cell, index) => ({ ...cell, index })).filter((cell) => state.cells.has(String(cell.index)));

// ---- a chart ----
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / size - 1e-9); at * size <= high + size * 1e-9; at++) found.push(at * size);
  return found;
}
function decades(low, high) {
  const found = [];
  for (let power = Math.ceil(low - 1e-9); power <= high + 1e-9; power++) found.push(10 ** power);
  const every = Math.ceil(found.length / 6);
  return found.length > 1 ? found.filter((_, index) => index % every === 0) : [10 ** low, 10 ** high];
}
function widen(values, share, least = 0) {
  let low = Math.min(...values), high = Math.max(...values);
  if (high - low < least) { const middle = (low + high) / 2; low = middle - least / 2; high = middle + least / 2; }
  if (low === high) { const half = Math.abs(low) * 0.05 || 0.5; low -= half; high += half; }
  const room = (high - low) * share;
  return [low - room, high + room];
}
let clips = 0;
// The frame of a chart: scales, grid, labels. Returns where to draw and how.
function frame(host, { label, x, y, height, left = 52, focusable = false, xTicks, yLog = false, xFormat = short, yFormat = short, xLabel, yLabel }) {
  const width = Math.max(host.clientWidth, 240), tall = height || Math.min(Math.max(width * 0.5, 240), 440);
  const box = { left, right: width - 12, top: yLabel ? 22 : 10, bottom: tall - (xLabel ? 42 : 24) };
  const svg = make("svg", { viewBox: `0 0 ${width} ${tall}`, width, height: tall, role: focusable ? "group" : "img", "aria-label": label });
  const toY = yLog ? Math.log10 : (value) => value;
  const yBounds = yLog ? y.map(Math.log10) : y;
  const sx = (value) => box.left + ((value - x[0]) / (x[1] - x[0])) * (box.right - box.left);
  const sy = (value) => box.bottom - ((toY(value) - yBounds[0]) / (yBounds[1] - yBounds[0])) * (box.bottom - box.top);
  const grid = make("g", { class: "grid", "aria-hidden": "true" });
  for (const tick of yLog ? decades(...yBounds) : ticks(...y, Math.max(2, Math.round((box.bottom - box.top) / 48)))) {
    grid.append(make("line", { x1: box.left, x2: box.right, y1: sy(tick), y2: sy(tick) }),
      make("text", { x: box.left - 6, y: sy(tick) + 4, "text-anchor": "end" }, yFormat(tick)));
  }
  let last = -Infinity;
  for (const tick of xTicks || ticks(...x, Math.max(2, Math.round((box.right - box.left) / 68)))) {
    grid.append(make("line", { class: "tick", x1: sx(tick), x2: sx(tick), y1: box.bottom, y2: box.bottom + 4 }));
    if (sx(tick) - last < 34) continue;
    last = sx(tick);
    grid.append(make("text", { x: sx(tick), y: box.bottom + 17, "text-anchor": "middle" }, xFormat(tick)));
  }
  if (xLabel) grid.append(make("text", { class: "name", x: box.right, y: tall - 6, "text-anchor": "end" }, xLabel));
  if (yLabel) grid.append(make("text", { class: "name", x: box.left, y: 9, "text-anchor": "start" }, yLabel));
  const id = `clip${clips++}`;
  svg.append(make("defs", {}, make("clipPath", { id }, make("rect", { x: box.left - 6, y: box.top - 6, width: box.right - box.left + 12, height: box.bottom - box.top + 12 }))));
  const area = make("g", { "clip-path": `url(#${id})` });
  svg.append(grid, area);
  host.replaceChildren(svg);
  return { svg, area, sx, sy, box };
}
const path = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
function marker(shape, x, y, size) {
  const s = size;
  const d = [
    `M${x - s} ${y}A${s} ${s} 0 1 0 ${x + s} ${y}A${s} ${s} 0 1 0 ${x - s} ${y}Z`,
    `M${x - s} ${y - s}H${x + s}V${y + s}H${x - s}Z`,
    `M${x} ${y - s * 1.2}L${x + s * 1.15} ${y + s}H${x - s * 1.15}Z`,
    `M${x} ${y - s * 1.35}L${x + s * 1.35} ${y}L${x} ${y + s * 1.35}L${x - s * 1.35} ${y}Z`,
    `M${x} ${y + s * 1.2}L${x + s * 1.15} ${y - s}H${x - s * 1.15}Z`,
  ][shape % 5];
  return make("path", { class: "marker", d });
}
const look = (curve) => `k${DATA.curves[curve].colour} d${DATA.curves[curve].dash}`;

// ---- tooltips: of whatever has data-tip, by pointer and by keyboard ----
const tip = $("#tip");
function tell(target, x, y) {
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const width = tip.offsetWidth, height = tip.offsetHeight;
  tip.style.left = `${Math.max(4, Math.min(x + 12, document.documentElement.clientWidth - width - 4))}px`;
  tip.style.top = `${y + 16 + height > window.innerHeight ? Math.max(4, y - height - 10) : y + 16}px`;
}
document.addEventListener("pointermove", (event) => {
  const target = event.target.closest ? event.target.closest("[data-tip]") : null;
  if (target) tell(target, event.clientX, event.clientY);
  else if (!document.activeElement.dataset.tip) tip.hidden = true;
});
document.addEventListener("focusin", (event) => {
  if (!event.target.dataset || !event.target.dataset.tip) { tip.hidden = true; return; }
  const place = event.target.getBoundingClientRect();
  tell(event.target, place.left + place.width / 2, place.top + place.height / 2);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

// ---- pieces of a section ----
function figure(parent, title, caption) {
  const holder = make("figure", {}), host = make("div", { class: "chart" });
  if (title) holder.append(make("h3", {}, title));
  holder.append(host);
  if (caption) holder.append(make("figcaption", {}, caption));
  parent.append(holder);
  return { holder, host };
}
function table(head, rows, caption) {
  const body = make("tbody");
  for (const row of rows) {
    body.append(make("tr", {}, ...row.map((cell, index) => make(index ? "td" : "th", index ? { class: "num" } : { scope: "row" }, cell))));
  }
  const heads = head.map((name, index) => make("th", { scope: "col", class: index ? "num" : null }, name));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    make("table", {}, make("caption", { class: "sr" }, caption), make("thead", {}, make("tr", {}, ...heads)), body));
}
const folded = (summary, ...content) => make("details", { class: "numbers" }, make("summary", {}, summary), ...content);
const nothing = (parent, text = "No run passes the filters.") => parent.append(make("p", { class: "none" }, text));
function legend(curves) {
  const list = make("div", { class: "legend", role: "group", "aria-label": "Curves: press to hide or show" });
  for (const curve of curves) {
    const swatch = make("svg", { viewBox: "0 0 26 12", width: 26, height: 12, "aria-hidden": "true", class: look(curve) },
      make("path", { class: "line", d: "M1 6H25" }), marker(DATA.curves[curve].marker, 13, 6, 3.4));
    const button = make("button", { type: "button", "aria-pressed": String(!muted.has(curve)), "data-curve": curve }, swatch, DATA.curves[curve].label);
    button.addEventListener("click", () => {
      if (!muted.delete(curve)) muted.add(curve);
      draw();
      const again = $(`.legend button[data-curve="${curve}"]`);
      if (again) again.focus();
    });
    const mark = (on) => $$(".chart [data-curve]").forEach((each) => each.classList.toggle("faded", on && each.dataset.curve !== String(curve)));
    for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => mark(true));
    for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => mark(false));
    list.append(button);
  }
  return list;
}

// ---- sections ----
// From where to where a point's band is drawn.
function reach(runs) {
  const values = runs.map((run) => run.score), found = interval(values);
  if (values.length < 2 || state.band === "none") return { from: null, to: null };
  return state.band === "range" ? { from: Math.min(...values), to: Math.max(...values) } : { from: found.low, to: found.high };
}
function drawScores(parent) {
  for (const cell of cellsShown()) {
    const here = DATA.runs.filter((run) => run.cell === cell.index && passes(run) && (state.all || run.picked));
    const pruned = here.filter((run) => !run.dense && !muted.has(run.curve));
    const denseRuns = here.filter((run) => run.dense && run.picked && !muted.has(run.curve)), dense = denseRuns.map((run) => run.score);
    const { holder, host } = figure(parent, DATA.cells.length > 1 ? cell.label : null, null);
    if (!pruned.length) {
      host.remove();
      nothing(holder, dense.length ? `Dense runs only: ${score(cell, mean(dense))}${cell.percent ? " %" : ""}, mean of ${dense.length}.` : undefined);
      continue;
    }
    const lines = [...group(pruned, (run) => `${run.curve}|${line(run)}`)].map(([, runs]) => ({
      curve: runs[0].curve, name: line(runs[0]),
      points: [...group(runs, (run) => run.target)].map(([target, same]) => ({
        target, x: mean(same.map((run) => run.encoder)), ...interval(same.map((run) => run.score)), runs: same, ...reach(same),
      })).sort((a, b) => a.x - b.x),
    }));
    const reference = dense.length ? { ...interval(dense), ...reach(denseRuns) } : null;
    const xs = pruned.flatMap((run) => [run.encoder, run.target]), values = pruned.map((run) => run.score).concat(dense);
    const width = host.clientWidth;
    const chart = frame(host, {
      label: `${cell.metric} on ${cell.label} against sparsity: ${lines.length} curves. The numbers are in the table below.`,
      x: widen(xs, 0.04, 0.1), y: widen(values, 0.06), focusable: true, height: Math.min(Math.max(width * 0.52, 280), 480),
      xTicks: unique(pruned.map((run) => run.target)).sort(upTo),
      xFormat: (value) => short(100 * value), yFormat: (value) => (cell.percent ? short(100 * value) : short(value)),
      xLabel: "encoder sparsity (%)", yLabel: `test ${cell.metric.replaceAll("_", " ")}${unit(cell)}${cell.smaller ? ", less is better" : ""}`,
    });
    if (reference) {
      const { left, right } = chart.box;
      if (reference.from !== null) chart.area.append(make("rect", { class: "dense-band", x: left, width: right - left, y: chart.sy(reference.to), height: chart.sy(reference.from) - chart.sy(reference.to) }));
      chart.area.append(make("line", { class: "dense-line", x1: left, x2: right, y1: chart.sy(reference.mean), y2: chart.sy(reference.mean) }));
      const below = chart.sy(reference.mean) - chart.box.top < 13;
      chart.svg.append(make("text", { class: "dense-name", x: right - 2, y: chart.sy(reference.mean) + (below ? 15 : -6), "text-anchor": "end" }, `dense ${score(cell, reference.mean)}`));
    }
    for (const each of lines) {
      const g = make("g", { class: look(each.curve), "data-curve": each.curve });
      const banded = each.points.filter((point) => point.from !== null);
      // Of many curves bands would hide each other; their whiskers stay.
      if (banded.length > 1 && lines.length <= 6) {
        g.append(make("path", { class: "band", d: `${path(banded.map((p) => [chart.sx(p.x), chart.sy(p.to)]))}${path([...banded].reverse().map((p) => [chart.sx(p.x), chart.sy(p.from)])).replace("M", "L")}Z` }));
      }
      for (const point of each.points) {
        if (point.from !== null) g.append(make("line", { class: "whisker", x1: chart.sx(point.x), x2: chart.sx(point.x), y1: chart.sy(point.from), y2: chart.sy(point.to) }));
        if (point.count > 1) for (const run of point.runs) g.append(make("circle", { class: "seed", cx: chart.sx(run.encoder), cy: chart.sy(run.score), r: 1.8 }));
      }
      g.append(make("path", { class: "line", d: path(each.points.map((p) => [chart.sx(p.x), chart.sy(p.mean)])) }));
      for (const point of each.points) {
        const dot = marker(DATA.curves[each.curve].marker, chart.sx(point.x), chart.sy(point.mean), 4.2);
        const range = point.low === null ? "one seed" : `95 % interval ${score(cell, point.low)} to ${score(cell, point.high)}, ${point.count} seeds`;
        const text = `${point.runs[0].variant} at ${percent(point.target)}: ${score(cell, point.mean)} (${range})`;
        for (const [key, value] of Object.entries({ tabindex: "0", role: "img", "aria-label": text, "data-tip": text })) dot.setAttribute(key, value);
        g.append(dot);
      }
      chart.area.append(g);
    }
    const present = unique(here.filter((run) => !run.dense).map((run) => run.curve)).sort(upTo);
    holder.append(legend(present));
    const targets = unique(pruned.map((run) => run.target)).sort(upTo);
    const rows = lines.map((each) => [each.name, ...targets.map((target) => {
      const point = each.points.find((candidate) => candidate.target === target);
      if (!point) return "";
      return score(cell, point.mean) + (point.low === null ? "" : ` ± ${score(cell, point.high - point.mean)}`) + ` (${point.count})`;
    })]);
    if (reference) rows.push(["dense", ...targets.map(() => `${score(cell, reference.mean)} (${reference.count})`)]);
    holder.append(folded("The numbers", table(["curve", ...targets.map(percent)], rows, `Test ${cell.metric}${unit(cell)}: mean ± half of the 95 % interval (number of seeds), by sparsity`)));
  }
}

function drawDifferences(parent) {
  const base = $("#baseline") ? DATA.curves[Number($("#baseline").value)].label : null;
  if (base === null) return;
  let any = false;
  for (const cell of cellsShown()) {
    const pairs = DATA.comparisons.filter((pair) => pair.cell === cell.index && state.sparsities.has(String(pair.target)))
      .map((pair) => (pair.second === base ? pair : pair.first === base ? flipped(pair) : null))
      .filter((pair) => pair && state.methods.has(methodOf(pair.first)) && !muted.has(curveOf(pair.first)));
    if (!pairs.length) continue;
    any = true;
    pairs.sort((a, b) => a.target - b.target || b.difference - a.difference);
    const { holder, host } = figure(parent, DATA.cells.length > 1 ? cell.label : null, null);
    const best = (pair) => (pair.examples ? [pair.elow, pair.ehigh] : [pair.slow, pair.shigh]);
    const step = 22, width = Math.max(host.clientWidth, 240), longest = Math.max(...pairs.map((pair) => pair.first.length));
    const left = Math.min(Math.max(70, longest * 7 + 18), 340, width * 0.46);
    // Intervals of few seeds may be far wider than all differences are: then they run out of the chart.
    const most = 3 * Math.max(...pairs.map((pair) => Math.abs(pair.difference)), 1e-9);
    const ends = pairs.flatMap((pair) => best(pair).filter((end) => end !== null && Math.abs(end) <= most));
    const bounds = widen([...pairs.map((pair) => pair.difference), ...ends, 0], 0.06, cell.percent ? 0.02 : 0);
    const chart = frame(host, {
      label: `Difference of test ${cell.metric} to ${base} on ${cell.label}: ${pairs.length} pairs. The numbers are in the table below.`,
      x: bounds, y: [0, 1], height: pairs.length * step + 24 * unique(pairs.map((pair) => pair.target)).length + 58, left,
      xFormat: (value) => (value === 0 ? "0" : signed(cell.percent ? short(100 * value) : short(value))), yFormat: () => "",
      xLabel: `difference to ${base}${cell.percent ? ", in points" : ""}`,
    });
    $$(".grid line:not(.tick)", chart.svg).forEach((each) => each.remove());
    chart.area.append(make("line", { class: "zero", x1: chart.sx(0), x2: chart.sx(0), y1: chart.box.top, y2: chart.box.bottom }));
    let y = 14, target = null;
    for (const pair of pairs) {
      if (pair.target !== target) {
        target = pair.target;
        y += 14;
        chart.svg.append(make("text", { class: "cell", x: 2, y: y + 2 }, `at ${percent(target)}`));
        y += 14;
      }
      const [low, high] = best(pair), clear = low !== null && (low > 0 || high < 0);
      const g = make("g", { class: `${look(curveOf(pair.first))}${clear ? "" : " unclear"}`, "data-curve": curveOf(pair.first) });
      if (low !== null) g.append(make("line", { class: "bar", x1: chart.sx(Math.max(low, bounds[0])), x2: chart.sx(Math.min(high, bounds[1])), y1: y, y2: y }));
      const text = `${pair.first} less ${base} at ${percent(pair.target)}: ${told(cell, pair)}`;
      const dot = marker(DATA.curves[curveOf(pair.first)].marker, chart.sx(pair.difference), y, 4);
      dot.dataset.tip = text;
      g.append(dot);
      chart.area.append(g);
      const room = Math.floor((left - 12) / 6.4), name = pair.first.length > room ? `${pair.first.slice(0, room - 1)}…` : pair.first;
      chart.svg.append(make("text", { x: left - 8, y: y + 4, "text-anchor": "end", "data-tip": pair.first }, name));
      y += step;
    }
    const rows = pairs.map((pair) => [pair.first, percent(pair.target), signed(score(cell, pair.difference)), String(pair.seeds),
      range(cell, pair.slow, pair.shigh), probability(pair.sp), probability(pair.spholm), pair.examples ? String(pair.examples) : "",
      range(cell, pair.elow, pair.ehigh), probability(pair.ep), probability(pair.epholm), budget(pair)]);
    holder.append(folded("The numbers", table(
      [`less ${base}`, "sparsity", "difference", "pairs of seeds", "95 % over seeds", "p, sign flips", "adjusted", "pairs of examples", "95 % over examples", "p, bootstrap", "adjusted", "steps"],
      rows, `Paired differences to ${base}${cell.percent ? ", in points" : ""}`)));
  }
  if (!any) nothing(parent, `Nothing that passes the filters has a seed in common with ${base}.`);
}
const flipped = (pair) => ({ ...pair, first: pair.second, second: pair.first, difference: -pair.difference, firstSteps: pair.secondSteps, secondSteps: pair.firstSteps,
  slow: negative(pair.shigh), shigh: negative(pair.slow), elow: negative(pair.ehigh), ehigh: negative(pair.elow) });
const negative = (value) => (value === null ? null : -value);
const CURVES = new Map(DATA.curves.map((curve, index) => [curve.label, index]));
const curveOf = (label) => CURVES.get(label);
const methodOf = (label) => DATA.curves[curveOf(label)].method;
const range = (cell, low, high) => (low === null || low === undefined ? "" : `${signed(score(cell, low))} to ${signed(score(cell, high))}`);
const budget = (pair) => (pair.firstSteps === pair.secondSteps ? String(pair.firstSteps ?? "") : `${pair.firstSteps} against ${pair.secondSteps}`);
function told(cell, pair) {
  const parts = [signed(score(cell, pair.difference))];
  if (pair.examples) parts.push(`95 % over ${pair.examples} examples ${range(cell, pair.elow, pair.ehigh)}, p ${probability(pair.ep)}`);
  parts.push(pair.seeds > 1 ? `${pair.seeds} pairs of seeds, 95 % ${range(cell, pair.slow, pair.shigh)}, p ${probability(pair.sp)}` : "one pair of seeds");
  return parts.join("; ");
}

// The runs that a section looks at more closely: those of one sparsity, mean over seeds by curve.
function closer(select) {
  const value = $(select) ? $(select).value : null;
  return (run) => shown(run) && (run.dense ? false : String(run.target) === value);
}
function drawLayers(parent) {
  const by = $("#layers-by").value, wanted = closer("#layers-sparsity");
  let any = false;
  for (const cell of cellsShown()) {
    const runs = DATA.runs.filter((run) => run.cell === cell.index && wanted(run) && DATA.layers[run.index]);
    if (!runs.length) continue;
    any = true;
    const rows = [], heads = [];
    for (const [, same] of group(runs, line)) {
      const sums = new Map();
      for (const run of same) {
        const layer = DATA.layers[run.index], names = DATA.matrices[layer.names];
        layer.sparsity.forEach((value, index) => {
          const name = names[index][by === "kind" ? 1 : 0], weight = layer.sizes ? layer.sizes[index] : 1;
          const sum = sums.get(name) || [0, 0];
          sums.set(name, [sum[0] + weight * value, sum[1] + weight]);
        });
      }
      for (const name of sums.keys()) if (!heads.includes(name)) heads.push(name);
      rows.push({ name: line(same[0]), curve: same[0].curve, values: new Map([...sums].map(([name, [total, weight]]) => [name, total / weight])) });
    }
    rows.sort((a, b) => a.name.localeCompare(b.name));
    const all = rows.flatMap((row) => [...row.values.values()]), low = Math.min(...all), high = Math.max(...all);
    const body = make("tbody");
    for (const row of rows) {
      const cells = heads.map((head) => {
        const value = row.values.get(head);
        const box = make("td", { class: "heat num" }, value === undefined ? "" : (100 * value).toFixed(1));
        if (value !== undefined) box.style.setProperty("--share", `${(8 + 62 * (value - low) / Math.max(high - low, 0.02)).toFixed(0)}%`);
        return box;
      });
      body.append(make("tr", {}, make("th", { scope: "row" }, row.name), ...cells));
    }
    if (DATA.cells.length > 1) parent.append(make("h3", {}, cell.label));
    const names = heads.map((head) => make("th", { scope: "col", class: "num" }, by === "kind" ? head : head === "" ? "other" : `layer ${head}`));
    parent.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Sparsity by ${by}, ${cell.label}` },
      make("table", { class: "heatmap" }, make("caption", { class: "sr" }, `Sparsity in percent by ${by}, mean over seeds, on ${cell.label}`),
        make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "zeros (%)"), ...names)), body)));
  }
  if (!any) nothing(parent);
}

const PLAIN = { loss: "training loss", sparsity: "encoder sparsity", learning_rate: "learning rate", grad_norm: "norm of the gradient", nu: "dual of the count, ν", held_out: "layer error on held-out tokens", error: "layer error on calibration tokens" };
const told_ = (name) => PLAIN[name] || name.replaceAll("_", " ");
function drawTraining(parent) {
  const wanted = closer("#training-sparsity");
  let any = false;
  for (const cell of cellsShown()) {
    const runs = DATA.runs.filter((run) => run.cell === cell.index && wanted(run));
    const ids = new Set(runs.map((run) => run.index));
    const quantities = Object.keys(DATA.logs).filter((name) => Object.keys(DATA.logs[name]).some((id) => ids.has(Number(id))));
    if (!quantities.length) continue;
    any = true;
    if (DATA.cells.length > 1) parent.append(make("h3", {}, cell.label));
    const panel = make("div", { class: "panels" });
    parent.append(panel, legend(unique(DATA.runs.filter((run) => run.cell === cell.index && passes(run) && !run.dense && (state.all || run.picked) && String(run.target) === $("#training-sparsity").value).map((run) => run.curve)).sort(upTo)));
    for (const name of quantities) {
      const series = runs.filter((run) => DATA.logs[name][run.index]).map((run) => ({ run, steps: DATA.steps[DATA.logs[name][run.index][0]], values: DATA.logs[name][run.index][1] }));
      const values = series.flatMap((each) => each.values).filter((value) => value !== null);
      const steps = series.flatMap((each) => each.steps);
      if (!values.length) continue;
      const positive = values.filter((value) => value > 0);
      const log = positive.length === values.length && Math.max(...values) / Math.min(...values) > 200;
      const { holder, host } = figure(panel, null, null);
      holder.prepend(make("h4", {}, told_(name) + (log ? " (log scale)" : "")));
      const bounds = log ? [Math.min(...values) / 1.3, Math.max(...values) * 1.3] : widen(values, 0.05);
      const chart = frame(host, { label: `${told_(name)} by step, ${series.length} runs: ${unique(series.map((each) => line(each.run))).slice(0, 8).join("; ")}.`, x: [0, Math.max(...steps) * 1.01 || 1], y: bounds, yLog: log, height: 190, left: 50, xLabel: "step" });
      for (const each of series) {
        const points = each.steps.map((step, index) => [step, each.values[index]]).filter(([, value]) => value !== null).map(([step, value]) => [chart.sx(step), chart.sy(value)]);
        const end = each.values[each.values.length - 1];
        chart.area.append(make("g", { class: look(each.run.curve), "data-curve": each.run.curve, "data-tip": `${each.run.variant}, seed ${each.run.seed}: ${told_(name)} ${short(end, 4)} at step ${each.steps[each.steps.length - 1]}` },
          make("path", { class: "hit", d: path(points) }), make("path", { class: "trace", d: path(points) }),
          points.length === 1 ? make("circle", { class: "marker", cx: points[0][0], cy: points[0][1], r: 3 }) : null));
      }
    }
  }
  if (!any) nothing(parent, "No run at this sparsity passes the filters, or none kept a log.");
}

function drawSpeed(parent) {
  const rows = DATA.exports.filter((row) => row.method === null || state.methods.has(row.method));
  if (!rows.length) { nothing(parent); return; }
  for (const [setting, same] of group(rows, (row) => `batch ${row.batch}, ${row.length} tokens, ${row.threads} ${row.threads === 1 ? "thread" : "threads"}`)) {
    const { holder, host } = figure(parent, setting, "Each line goes from the model before to the export; down and to the left is better.");
    const xs = same.flatMap((row) => [row.mb, row.mbBefore]), ys = same.flatMap((row) => [row.ms, row.msBefore]);
    const chart = frame(host, { label: `Milliseconds against megabytes of ${same.length} exports at ${setting}. The numbers are in the table below.`, x: [0, Math.max(...xs) * 1.08], y: [0, Math.max(...ys) * 1.1], focusable: true, xLabel: "size (MB)", yLabel: "milliseconds a batch", height: 320 });
    same.forEach((row, index) => {
      const text = `${row.name}, ${row.format}: ${short(row.ms)} ms, ${short(row.mb)} MB; before ${short(row.msBefore)} ms, ${short(row.mbBefore)} MB`;
      const g = make("g", { class: `k${row.curve === null ? index % 10 : DATA.curves[row.curve].colour}`, "data-curve": row.curve });
      g.append(make("line", { class: "bar thin", x1: chart.sx(row.mbBefore), y1: chart.sy(row.msBefore), x2: chart.sx(row.mb), y2: chart.sy(row.ms) }),
        make("circle", { class: "before", cx: chart.sx(row.mbBefore), cy: chart.sy(row.msBefore), r: 3.5 }));
      const dot = marker(DATA.formats.indexOf(row.format), chart.sx(row.mb), chart.sy(row.ms), 5);
      for (const [key, value] of Object.entries({ tabindex: "0", role: "img", "aria-label": text, "data-tip": text })) dot.setAttribute(key, value);
      g.append(dot);
      const right = chart.sx(row.mb) > (chart.box.left + chart.box.right) / 2;
      chart.svg.append(g, make("text", { class: "mark", x: chart.sx(row.mb) + (right ? -9 : 9), y: chart.sy(row.ms) + 4, "text-anchor": right ? "end" : "start" }, row.format));
    });
    holder.append(folded("The numbers", table(["export", "format", "ms before", "ms", "times as fast", "MB before", "MB", "times smaller"],
      same.map((row) => [row.name, row.format, short(row.msBefore), short(row.ms), (row.msBefore / row.ms).toFixed(2), short(row.mbBefore), short(row.mb), (row.mbBefore / row.mb).toFixed(2)]), `Latency and size at ${setting}`)));
  }
}

const PARTS = [["solver", "solver gap"], ["sampling", "sampling error"], ["model", "model error"]];
function drawCriteria(parent) {
  for (const file of DATA.criteria) {
    const rows = file.rows.filter((row) => row.regret !== null);
    const { holder, host } = figure(parent, file.label, null);
    if (!rows.length) { host.remove(); nothing(holder, "All masks lose the same: these blocks do not tell criteria apart."); continue; }
    const step = 26, width = Math.max(host.clientWidth, 240), left = Math.min(210, width * 0.42);
    const sums = rows.flatMap((row) => {
      const parts = PARTS.map(([key]) => row[key] || 0);
      return [parts.filter((v) => v > 0).reduce((a, b) => a + b, 0), parts.filter((v) => v < 0).reduce((a, b) => a + b, 0), row.regret - (row.spread || 0), row.regret + (row.spread || 0)];
    });
    const bounds = [Math.min(0, ...sums) * 1.05, Math.max(1.05, ...sums.map((value) => value * 1.05))];
    const chart = frame(host, { label: `True regret of ${rows.length} criteria, 0 for the best mask and 1 for random ones. The numbers are in the table below.`, x: bounds, y: [0, 1], height: rows.length * step + 66, left, yFormat: () => "", xLabel: "true regret: 0 the best mask, 1 random masks" });
    $$(".grid line:not(.tick)", chart.svg).forEach((each) => each.remove());
    for (const at of [0, 1]) chart.area.append(make("line", { class: "zero", x1: chart.sx(at), x2: chart.sx(at), y1: chart.box.top, y2: chart.box.bottom }));
    rows.forEach((row, index) => {
      const y = 26 + index * step, from = { true: 0, false: 0 };
      PARTS.forEach(([key, name], part) => {
        const value = row[key];
        if (!value) return;
        const start = from[value > 0];
        from[value > 0] += value;
        const a = chart.sx(start), b = chart.sx(start + value);
        chart.area.append(make("rect", { class: `part p${part}`, x: Math.min(a, b), width: Math.abs(b - a), y: y - 7, height: 14, "data-tip": `${row.name}: ${name} ${value.toFixed(2)}` }));
      });
      const low = row.regret - (row.spread || 0), high = row.regret + (row.spread || 0);
      chart.area.append(make("line", { class: "sum", x1: chart.sx(low), x2: chart.sx(high), y1: y, y2: y }), make("circle", { class: "sum", cx: chart.sx(row.regret), cy: y, r: 3.6, "data-tip": `${row.name}: true regret ${row.regret.toFixed(2)} ± ${(row.spread || 0).toFixed(2)} over blocks` }));
      chart.svg.append(make("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, row.name));
    });
    const keys = make("div", { class: "keys" });
    PARTS.forEach(([, name], part) => keys.append(make("span", {}, make("svg", { viewBox: "0 0 12 12", width: 12, height: 12, "aria-hidden": "true" }, make("rect", { class: `part p${part}`, width: 12, height: 12 })), name)));
    holder.append(keys, folded("The numbers", table(["criterion", "true regret", "±", "solver gap", "sampling error", "model error", "proved optimal"],
      rows.map((row) => [row.name, ...[row.regret, row.spread, row.solver, row.sampling, row.model].map((value) => (value === null ? "" : value.toFixed(2).replace("-", "−"))), `${row.proved ?? ""} of ${row.blocks ?? ""}`]), "True regret of criteria and its parts")));
  }
}

// ---- what the server has written: rows and pictures of runs ----
function filterMarked() {
  for (const each of $$("[data-run]")) each.hidden = !passes(DATA.runs[Number(each.dataset.run)]);
  const picture = $("#patterns .none");
  if (picture) picture.hidden = $$("#patterns figure").some((each) => !each.hidden);
}
function sortTable(button) {
  const head = button.closest("th"), position = [...head.parentNode.children].indexOf(head);
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = $("tbody", head.closest("table")), value = (row) => row.children[position].dataset.value ?? row.children[position].textContent;
  const rows = [...body.rows].sort((a, b) => {
    const [first, second] = [value(a), value(b)], numbers = first !== "" && second !== "" && !Number.isNaN(Number(first)) && !Number.isNaN(Number(second));
    return (up ? 1 : -1) * (numbers ? Number(first) - Number(second) : first.localeCompare(second));
  });
  body.append(...rows);
}

const SECTIONS = { scores: drawScores, differences: drawDifferences, layers: drawLayers, training: drawTraining, speed: drawSpeed, criteria: drawCriteria };
function draw() {
  readFilters();
  tip.hidden = true;
  const open = $$("details.numbers").map((each) => each.open);
  for (const [id, fill] of Object.entries(SECTIONS)) {
    const parent = $(`#${id} .body`);
    if (!parent) continue;
    parent.replaceChildren();
    fill(parent);
  }
  $$("details.numbers").forEach((each, index) => { each.open = Boolean(open[index]); });
  filterMarked();
  const count = DATA.runs.filter(passes).length;
  $("#count").textContent = `${count} of ${DATA.runs.length} runs pass the filters`;
  document.documentElement.dataset.drawn = "true";
}

for (const box of $$("#filters input, section select")) box.addEventListener("change", draw);
for (const button of $$("#filters button[data-set]")) {
  button.addEventListener("click", () => {
    for (const box of boxes(button.dataset.of)) box.checked = button.dataset.set === "all";
    draw();
  });
}
$("#reset").addEventListener("click", () => {
  for (const box of $$("#filters input[name]")) box.checked = true;
  $("#all-variants").checked = false;
  muted.clear();
  draw();
});
for (const button of $$("th button")) button.addEventListener("click", () => sortTable(button));
for (const button of $$("button.copy")) {
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(button.previousElementSibling.textContent); button.textContent = "copied"; }
    catch { button.textContent = "select and copy"; }
  });
}
let timer = 0, before = document.documentElement.clientWidth;
window.addEventListener("resize", () => {
  clearTimeout(timer);
  timer = setTimeout(() => { if (document.documentElement.clientWidth !== before) { before = document.documentElement.clientWidth; draw(); } }, 120);
});
window.addEventListener("beforeprint", () => $$("details.numbers").forEach((each) => { each.open = true; }));
if (window.matchMedia("(min-width: 1100px)").matches) $("#filters details").open = true;
draw();
