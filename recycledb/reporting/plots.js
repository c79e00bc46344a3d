"use strict";
/* Draws the charts described in #charts from the points in #points, in the page's colours, and again when light turns to dark. */
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const points = JSON.parse(document.getElementById("points").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const draw = async () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const kinds = ["origin", "reflect_instruction", "reflect_response", "reflect_both"];
    const config = {
      background: "transparent",
      font: getComputedStyle(document.body).fontFamily,
      view: { stroke: colour("line") },
      axis: { labelColor: colour("soft"), titleColor: colour("soft"), gridColor: colour("line"), domainColor: colour("line"),
        tickColor: colour("line"), titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 13, titleLimit: 500 },
      legend: { labelColor: colour("ink"), titleColor: colour("soft"), titleFontWeight: "normal", labelFontSize: 12, symbolOpacity: 1 },
      header: { labelColor: colour("ink"), labelFontSize: 13 },
      range: { category: ["reflect_instruction", "reflect_response", "reflect_both", "compressed", "origin"].map(colour) },
    };
    const coloured = (spec) => JSON.parse(JSON.stringify(spec), (key, value) =>
      key === "scale" && Array.isArray(value?.domain) && value.domain[0] === kinds[0] ? { ...value, range: kinds.map(colour) } : value);
    for (const [name, spec] of Object.entries(charts)) {
      const whole = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", data: { values: points }, ...coloured(spec), config };
      await vegaEmbed(document.getElementById(`chart-${name}`), whole, { ast: true, actions: false, renderer: "svg", tooltip: { theme: dark.matches ? "dark" : "light" } });
    }
    document.documentElement.dataset.ready = "1";
  };
  dark.addEventListener("change", draw);
  draw();
})();
