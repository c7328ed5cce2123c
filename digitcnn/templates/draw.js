// Draws each figure of the page in the element of its name. Figures and plotly.js are packed: a third of their size.
const unpacked = (name) => {
  const bytes = Uint8Array.from(atob(document.getElementById(name).textContent), (each) => each.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
const draw = async () => {
  const library = document.createElement("script");
  library.textContent = await unpacked("library");
  document.head.append(library);
  const narrow = window.innerWidth < 600;
  for (const [name, figure] of Object.entries(JSON.parse(await unpacked("figures")))) {
    if (narrow) {
      figure.layout.font.size = 11;
      // A finger that moves over a chart moves the page.
      figure.layout.dragmode = false;
    }
    Plotly.newPlot(name, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  }
};
if (window.DecompressionStream) draw();
else document.querySelector("main").prepend("The charts need a browser of 2023 or later. All else can be read without.");
