// Vega-Lite specifications on stdin, {name: specification}; their pictures on stdout, {name: SVG}.
import {readFileSync} from "node:fs";
import * as vega from "vega";
import {compile} from "vega-lite";

// Without a canvas nothing can measure text. Vega then reckons with 0.8 of the font's size for a character, which
// leaves a third of the room for labels empty; this is a wide font's mean.
vega.textMetrics.width = (item, text) => 0.62 * String(text ?? "").length * (item.fontSize ?? 11);

const pictures = {};
for (const [name, specification] of Object.entries(JSON.parse(readFileSync(0, "utf8")))) {
  const view = new vega.View(vega.parse(compile(specification).spec), {renderer: "none"});
  pictures[name] = await view.toSVG();
  view.finalize();
}
process.stdout.write(JSON.stringify(pictures));
