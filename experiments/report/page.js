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
const NARROW = 600;

function matches(row, wanted) {
  const {way, ...equal} = wanted;
  return (!way || row.dataset.way.includes(way.toLowerCase()))
    && Object.entries(equal).every(([key, value]) => !value || row.dataset[key] === value);
}

function shownPoints(figure) {
  return figure.points.filter((point) => !figure.rows[point.row].hidden);
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
  form.querySelector("output").textContent = `${shown} of ${all} rows`;
  return Promise.all(figures.map(show));
}

async function show(figure) {
  const points = shownPoints(figure);
  const drawn = figure.view && !figure.plot.hidden;
  figure.plot.hidden = points.length === 0;
  if (drawn && points.length) await figure.view.data("points", points).runAsync();
  else if (points.length) await draw(figure, points);  // what is hidden has no width to draw in
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

function looks() {
  const limit = innerWidth < NARROW ? 120 : 260;
  return {...config, axisY: {...config.axisY, labelLimit: limit}};
}

async function draw(figure, points) {
  const spec = {
    ...figure.spec,
    config: looks(),
    width: "container",
    autosize: {type: "fit-x", contains: "padding"},
    description: figure.element.querySelector("h3").textContent,
  };
  figure.view?.finalize();
  figure.view = new vega.View(vega.parse(vegaLite.compile(spec).spec), {renderer: "svg", container: figure.plot, hover: false});
  figure.view.tooltip(() => {}).data("points", points);
  figure.view.addEventListener("mousemove", (event, item) => hover(figure, event, item));
  await figure.view.runAsync();
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
addEventListener("scroll", () => { tip.hidden = true; }, {passive: true});
document.addEventListener("mouseout", (event) => { if (!event.target.closest?.(".plot")) return; tip.hidden = true; });
// On paper nothing can be opened.
matchMedia("print").addEventListener("change", ({matches: printing}) => {
  for (const figure of figures) {
    if (printing) figure.wasOpen = figure.details.open;
    figure.details.open = printing || figure.wasOpen;
  }
});
start();
