// Vega-Lite specifications on stdin, {name: specification}; their pictures on stdout, {name: SVG}.
import {readFileSync} from "node:fs";
import * as vega from "vega";
import {compile} from "vega-lite";

const pictures = {};
for (const [name, specification] of Object.entries(JSON.parse(readFileSync(0, "utf8")))) {
  const view = new vega.View(vega.parse(compile(specification).spec), {renderer: "none"});
  pictures[name] = await view.toSVG();
  view.finalize();
}
process.stdout.write(JSON.stringify(pictures));
