// Opens pages of experiments/inspect --html in Chromium and says what a reader would see, as JSON. Arguments:
// the folder whose node_modules has playwright-core, the browser, then files. test_report.py judges.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [folder, browserPath, ...files] = process.argv.slice(2);
const {chromium} = createRequire(`${folder}/package.json`)("playwright-core");
const BOUND_MS = 60000;

// What filters leave: rows of tables, points of charts, and both for each chart.
function seen() {
  const shown = (element) => !element.closest("[hidden]");
  const figures = {};
  for (const figure of document.querySelectorAll("figure")) {
    const rows = [...figure.querySelectorAll("tbody tr")].filter(shown);
    const points = shown(figure.querySelector(".plot")) ? figure.querySelectorAll(".mark-symbol.role-mark path").length : 0;
    figures[figure.dataset.chart] = {points, ways: rows.map((row) => row.cells[0].textContent)};
  }
  return {figures, hash: location.hash, count: document.querySelector("output").textContent};
}

const settled = (page) => page.evaluate(() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100))));

async function filters(page) {
  const found = {};
  const controls = await page.$$eval("#filters select", (all) =>
    all.map((one) => ({name: one.name, values: [...one.options].map((option) => option.value)})));
  // The last one is cleared when the next one is set: to draw all rows takes seconds.
  let last;
  const clearLast = async () => {
    if (last) await page.selectOption(`select[name=${last}]`, "");
    await settled(page);
  };
  for (const {name, values} of controls) {
    if (values.length < 2) continue;
    await page.selectOption(`select[name=${name}]`, values.at(-1));
    await clearLast();
    found[name] = {value: values.at(-1), ...await page.evaluate(seen)};
    last = name;
  }
  await page.fill("input[name=way]", "POLL");
  await clearLast();
  found.way = {value: "poll", ...await page.evaluate(seen)};
  return found;
}

async function tooltip(page) {
  const point = page.locator("figure .mark-symbol.role-mark path").first();
  await point.scrollIntoViewIfNeeded();
  await point.hover();
  await page.waitForSelector("#tip:not([hidden])", {timeout: BOUND_MS});
  return page.locator("#tip").innerText();
}

const colours = (page) => page.evaluate(() => ({
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
  label: getComputedStyle(document.querySelector("figure svg .role-axis-label text")).fill,
}));

// What stands beside each axis, as it is shown.
const labels = (page) => page.evaluate(() => [...document.querySelectorAll("figure:not([hidden]) svg .role-axis")]
  .map((axis) => [...axis.querySelectorAll(".role-axis-label text")].map((label) => label.textContent).filter(Boolean))
  .filter((texts) => texts.length));

const overflow = (page) =>
  page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

// As a phone has it: opened at that width, with an axis each for the ways.
async function onPhone(browser, url) {
  const page = await browser.newPage({viewport: {width: 400, height: 800}});
  page.setDefaultTimeout(BOUND_MS);
  await page.goto(url);
  await page.waitForSelector("html[data-drawn]");
  const found = {labels: await labels(page), overflow: await overflow(page)};
  await page.close();
  return found;
}

async function look(browser, file) {
  const context = await browser.newContext({viewport: {width: 1400, height: 900}, colorScheme: "light"});
  const page = await context.newPage();
  page.setDefaultTimeout(BOUND_MS);
  const found = {errors: [], requests: []};
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && found.errors.push(message.text()));
  page.on("pageerror", (error) => found.errors.push(String(error)));
  page.on("dialog", (dialog) => { found.errors.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  const url = pathToFileURL(file).href;
  await context.route("**/*", (route) => {
    if (route.request().url().split("#")[0] !== url) found.requests.push(route.request().url());
    return route.continue();
  });
  await page.goto(url);
  found.text = await page.evaluate(() => document.body.innerText);
  found.elements = await page.evaluate(() => document.querySelectorAll("img, iframe, link, b, svg image").length);
  found.tables = await page.evaluate(() => [...document.querySelectorAll("table")].filter((one) => one.offsetHeight).length);
  if (await page.evaluate(() => document.scripts.length > 1)) {
    await page.waitForSelector("html[data-drawn]");
    found.all = await page.evaluate(seen);
    found.tooltip = await tooltip(page);
    found.filters = await filters(page);
    await page.reload();
    await page.waitForSelector("html[data-drawn]");
    found.reloaded = await page.evaluate(seen);
    await page.emulateMedia({media: "print"});
    found.printed = await page.locator("#filters").innerText();
    await page.emulateMedia({media: null});
    await page.fill("input[name=way]", "");
    await settled(page);
    found.light = await colours(page);
    await page.emulateMedia({colorScheme: "dark"});
    found.dark = await colours(page);
    await page.evaluate(() => {
      window.closedNow = () => [...document.querySelectorAll("details")].filter((one) => !one.open || !one.offsetHeight).length;
      addEventListener("beforeprint", () => { window.closedInPrint = window.closedNow(); });
    });
    found.closedOnScreen = await page.evaluate(() => window.closedNow());
    await page.emulateMedia({media: "print", colorScheme: "dark"});
    await settled(page);
    found.closedAsIfPrinted = await page.evaluate(() => window.closedNow());
    found.paper = await colours(page);
    await page.emulateMedia({media: null});
    await page.pdf();
    found.closedInPrint = await page.evaluate(() => window.closedInPrint);
    found.wide = await labels(page);
    await page.setViewportSize({width: 400, height: 800});
    await page.waitForFunction(() => innerWidth === 400);
    await settled(page);
    found.narrowed = await labels(page);
    found.phone = await onPhone(browser, url);
  } else {
    await page.setViewportSize({width: 400, height: 800});
    await page.waitForFunction(() => innerWidth === 400);
  }
  found.overflow = await overflow(page);
  await context.close();
  return found;
}

const browser = await chromium.launch({
  executablePath: browserPath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run"],
  timeout: BOUND_MS,
});
try {
  const found = {};
  for (const file of files) found[file] = await look(browser, file);
  process.stdout.write(JSON.stringify(found));
} finally {
  await browser.close();
}
