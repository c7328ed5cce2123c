// Draws each figure of the page in the element of its name.
const figures = JSON.parse(document.getElementById("figures").textContent);
const narrow = window.innerWidth < 600;
for (const [name, figure] of Object.entries(figures)) {
  if (narrow) {
    figure.layout.font.size = 11;
    // A finger that moves over a chart moves the page.
    figure.layout.dragmode = false;
  }
  Plotly.newPlot(name, figure.data, figure.layout, { responsive: true, displayModeBar: false });
}
