"use strict";
// Light and dark. Colours of runs are Okabe and Ito's, which colour-blind readers can tell apart, brightened on dark.
const media = matchMedia("(prefers-color-scheme: dark)");
const THEMES = ["system", "light", "dark"];
let choice = "system";

const PALETTES = {
  light: {
    runs: ["#0072b2", "#d55e00", "#009e73", "#a8487f", "#8a6d00", "#3f8fc4"],
    bins: ["#c8501a", "#f0ad7c", "#86bde0", "#0b67a3", "#c3c9d2"],
    parts: ["#0072b2", "#e69f00", "#009e73", "#b5588f", "#b8bfc9"],
    ink: "#16191f", muted: "#5b6472", grid: "#e9ecf1", band: "#8593a8", card: "#ffffff",
  },
  dark: {
    runs: ["#56aee8", "#ff8b4a", "#33c596", "#e08fc0", "#e3c04d", "#9cc9ee"],
    bins: ["#e8703a", "#a8683f", "#3f7fac", "#63b5ee", "#4a525e"],
    parts: ["#56aee8", "#f0b440", "#33c596", "#e08fc0", "#5b6472"],
    ink: "#e9ecf1", muted: "#9aa4b2", grid: "#262c36", band: "#8fa0b8", card: "#171b22",
  },
};

function isDark() { return choice === "system" ? media.matches : choice === "dark"; }
function palette() { return PALETTES[isDark() ? "dark" : "light"]; }
function runColour(index) { const colours = palette().runs; return colours[index % colours.length]; }
function runDash(index) { return [[], [5, 3], [2, 2]][Math.floor(index / palette().runs.length) % 3]; }

function vegaConfig() {
  const p = palette();
  const font = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif";
  return {
    background: null, font, view: {stroke: null},
    axis: {
      labelColor: p.muted, titleColor: p.muted, labelFontSize: 11, titleFontSize: 11, titleFontWeight: 400,
      gridColor: p.grid, domain: false, ticks: false, labelPadding: 6, titlePadding: 8, labelOverlap: true,
    },
    axisX: {grid: false, domain: true, domainColor: p.grid, tickCount: 6},
    axisY: {tickCount: 5},
    line: {strokeCap: "round", strokeJoin: "round", strokeWidth: 2},
    text: {font, color: p.muted},
  };
}

function applyTheme() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  document.getElementById("theme").textContent = `Theme: ${choice}`;
}
