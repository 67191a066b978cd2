"use strict";
// Draws the charts, and filters tables and charts alike. The filters stand in the URL's hash, so that a
// view of the page can be passed on. A point of a chart is a row of its table: that is what it says on hover.
const {config, charts} = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filters");
const tip = document.getElementById("tip");
const figures = [...document.querySelectorAll("figure")].map((element) => ({
  element,
  plot: element.querySelector(".plot"),
  details: element.querySelector("details"),
  heads: [...element.querySelectorAll("thead th")].map((head) => head.textContent),
  rows: [...element.querySelectorAll("tbody tr")],
  ...charts[element.dataset.chart],
}));
const NARROW = 600, PAPER = 690;  // pixels
const NARROW_LABELS = {
  labelLimit: 120,
  labelExpr: "length(datum.label) > 16 ? slice(datum.label, 0, 6) + '…' + slice(datum.label, -9) : datum.label",
};
let isNarrow = innerWidth < NARROW;

function matches(row, wanted) {
  const {way, ...equal} = wanted;
  return (!way || row.dataset.way.includes(way.toLowerCase()))
    && Object.entries(equal).every(([key, value]) => !value || row.dataset[key] === value);
}

function fillForm() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const control of form.elements) {
    if (control.name) control.value = wanted.get(control.name) ?? "";
    if (control.selectedIndex === -1) control.value = "";
  }
}

function apply() {
  const wanted = Object.fromEntries(new FormData(form));
  let shown = 0, all = 0;
  for (const figure of figures) {
    for (const row of figure.rows) row.hidden = !matches(row, wanted);
    const left = figure.rows.filter((row) => !row.hidden).length;
    shown += left;
    all += figure.rows.length;
    figure.element.hidden = left === 0;
  }
  const said = [...form.elements].filter((control) => control.name && control.value)
    .map((control) => `${control.labels[0].firstChild.textContent.trim()}: ${control.value}`);
  form.querySelector("output").textContent = [`${shown} of ${all} rows`, ...said].join("; ");
  return Promise.all(figures.map(show));
}

async function show(figure) {
  const points = figure.points.filter((point) => !figure.rows[point.row].hidden);
  figure.plot.hidden = points.length === 0;
  if (!points.length) return;
  figure.view ??= view(figure);
  await figure.view.width(figure.plot.clientWidth).data("points", points).runAsync();
}

function view(figure) {
  const spec = {
    ...figure.spec,
    config: {...config, axisY: {...config.axisY, ...(isNarrow ? NARROW_LABELS : {})}},
    width: figure.plot.clientWidth,
    description: figure.element.querySelector("h3").textContent,
  };
  // Said here, as Vega-Lite takes it for a mistake where the height is one of steps.
  const compiled = {...vegaLite.compile(spec).spec, autosize: {type: "fit-x", contains: "padding"}};
  const drawn = new vega.View(vega.parse(compiled), {renderer: "svg", container: figure.plot, hover: false});
  drawn.tooltip(() => {}).addEventListener("mousemove", (event, item) => hover(figure, event, item));
  return drawn;
}

function resized() {
  if (isNarrow !== innerWidth < NARROW) {
    isNarrow = !isNarrow;
    for (const figure of figures) {
      figure.view?.finalize();
      figure.view = null;
    }
  }
  return apply();
}

function change() {
  const wanted = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
  history.replaceState(null, "", `#${wanted}`);
  apply();
}

function line(list, name, value) {
  list.append(Object.assign(document.createElement("dt"), {textContent: name}));
  list.append(Object.assign(document.createElement("dd"), {textContent: value}));
}

function hover(figure, event, item) {
  const row = item?.mark?.marktype !== "line" && figure.rows[item?.datum?.row];
  tip.hidden = !row;
  if (!row) return;
  const [name, ...texts] = [...row.cells].map((cell) => cell.textContent);
  const list = document.createElement("dl");
  texts.forEach((text, index) => text !== "–" && line(list, figure.heads[index + 1], text));
  tip.replaceChildren(Object.assign(document.createElement("strong"), {textContent: name}), list);
  const {width, height} = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 4))}px`;
  tip.style.top = `${event.clientY + 14 + height < innerHeight ? event.clientY + 14 : Math.max(4, event.clientY - 14 - height)}px`;
}

async function start() {
  form.hidden = false;
  for (const {details, points} of figures) details.open = !points.length;
  fillForm();
  await apply();
  document.documentElement.dataset.drawn = "yes";
}

form.addEventListener("input", change);
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => { fillForm(); apply(); });
addEventListener("resize", resized);
addEventListener("scroll", () => { tip.hidden = true; }, {passive: true});
document.addEventListener("mouseout", (event) => { if (!event.target.closest?.(".plot")) return; tip.hidden = true; });
// On paper nothing can be opened, and a chart drawn for a screen would be too small to read. Browsers tell of
// printing by the events; the media query tells of a view as if printed.
let onPaper = false;
function paper(printing) {
  if (printing === onPaper) return;
  onPaper = printing;
  for (const figure of figures) {
    if (printing) figure.wasOpen = figure.details.open;
    figure.details.open = printing || figure.wasOpen;
    if (!figure.plot.hidden) figure.view?.width(printing ? PAPER : figure.plot.clientWidth).run();
  }
}
addEventListener("beforeprint", () => paper(true));
addEventListener("afterprint", () => paper(false));
matchMedia("print").addEventListener("change", ({matches: printing}) => paper(printing));
start();
