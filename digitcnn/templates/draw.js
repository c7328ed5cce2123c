// Draws each figure of the page in the element of its name, the first one first. Figures and plotly.js are packed: a
// third of their size.
const unpacked = (name) => {
  const bytes = Uint8Array.from(atob(document.getElementById(name).textContent), (each) => each.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
// What a chart shows: the cells of a confusion matrix, or else the trace and the place of each point.
const rowsOf = ({ _fullData: traces, _fullLayout: layout }) => {
  const shown = (value) => (typeof value === "number" ? Number(value.toPrecision(6)) : value);
  if (traces[0].type === "heatmap") {
    return [["", ...traces[0].x], ...Array.from(traces[0].text, (row, index) => [traces[0].y[index], ...row])];
  }
  const points = traces.flatMap(({ name, x, y }) => Array.from(x, (each, index) => [name, shown(each), shown(y[index])]));
  return [["", layout.xaxis.title.text, layout.yaxis.title.text], ...points.filter(([, x]) => x !== null)];
};
// The table behind a chart is made when it is opened: for screen readers, and to copy from. That of the parallel
// coordinates is the leaderboard.
const addTable = (chart) => {
  const details = document.createElement("details");
  details.append(document.createElement("summary"));
  details.firstChild.textContent = "Show as a table";
  details.addEventListener("toggle", () => {
    if (details.children.length > 1) return;
    const table = document.createElement("table");
    for (const [index, cells] of rowsOf(chart).entries()) {
      const row = table.insertRow();
      for (const cell of cells) row.appendChild(document.createElement(index ? "td" : "th")).textContent = cell ?? "";
    }
    const frame = details.appendChild(document.createElement("div"));
    frame.className = "scroll tall";
    frame.tabIndex = 0;
    frame.append(table);
  });
  (chart.closest(".scroll") ?? chart).after(details);
};
const draw = async () => {
  const library = document.createElement("script");
  library.textContent = await unpacked("library");
  document.head.append(library);
  const narrow = window.innerWidth < 600;
  const figures = JSON.parse(await unpacked("figures"));
  for (const chart of document.querySelectorAll(".chart")) {
    // A chart of a thousand trials takes 0.2 s: the page can be read and scrolled between two of them.
    await new Promise((drawNext) => setTimeout(drawNext));
    const figure = figures[chart.id];
    if (narrow) {
      figure.layout.font.size = 11;
      // A finger that moves over a chart moves the page.
      figure.layout.dragmode = false;
    }
    Plotly.newPlot(chart, figure.data, figure.layout, { responsive: true, displayModeBar: false });
    if (chart.id !== "parallel") addTable(chart);
  }
};
// A sheet of paper is narrower than a window.
const resize = (width) => {
  for (const chart of document.querySelectorAll(".js-plotly-plot")) {
    Plotly.relayout(chart, { width: width && (chart.closest(".grid") ? width / 2 : width), autosize: !width });
  }
};
window.addEventListener("beforeprint", () => resize(660));
window.addEventListener("afterprint", () => resize(null));
if (window.DecompressionStream) draw();
else document.querySelector("main").prepend("The charts need a browser of 2023 or later. All else can be read without.");
