"""The page's style sheet and script: everything is inside the page, nothing is ever loaded."""

# The browser itself is told to load nothing from anywhere. Bokeh compiles the tooltips' formatter, hence unsafe-eval.
POLICY = ("default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
          "script-src 'unsafe-inline' 'unsafe-eval'; font-src data:")

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1d2126; --soft: #646c76; --rule: #e3e6ea; --fill: #f5f6f8; --heat: #3f8ed8; --accent: #2f6fb5;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --bk-axis-label-text-color: var(--soft); --bk-major-label-text-color: var(--soft);
}
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e4e7eb; --soft: #98a1ad; --rule: #2c3138; --fill: #1d2126; --heat: #3577b8;
          --accent: #74aee8; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 var(--sans); }
main, header, footer { max-width: 72rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 3.5rem; }
.kicker { margin: 0; color: var(--soft); font-size: .8rem; letter-spacing: .09em; text-transform: uppercase; }
h1 { margin: .3rem 0 .9rem; font-size: clamp(1.8rem, 4.5vw, 2.7rem); font-weight: 650; line-height: 1.15;
     letter-spacing: -.02em; text-wrap: balance; }
h2 { margin: 0 0 .6rem; font-size: 1.45rem; font-weight: 650; letter-spacing: -.01em; }
h3 { margin: 2.4rem 0 .5rem; font-size: 1.08rem; font-weight: 650; }
p { margin: 0 0 .8rem; max-width: 46rem; text-wrap: pretty; }
.lead { font-size: 1.08rem; }
.note, .none { color: var(--soft); font-size: .88rem; line-height: 1.5; }
ul.notes { margin: 1.2rem 0 0; padding: 0; list-style: none; max-width: 50rem; color: var(--soft); font-size: .88rem;
           line-height: 1.5; overflow-wrap: anywhere; }
ul.notes li { margin-top: .35rem; }
nav { position: sticky; top: 0; z-index: 5; margin-top: 1.8rem; background: var(--paper);
      border-bottom: 1px solid var(--rule); }
nav div { display: flex; gap: 1.3rem; max-width: 72rem; margin: 0 auto; padding: .7rem 1.5rem; overflow-x: auto;
          white-space: nowrap; font-size: .9rem; scrollbar-width: none; }
nav a { color: var(--soft); text-decoration: none; }
nav a:hover, nav a:focus-visible { color: var(--accent); }
section { padding: 2.6rem 0 .4rem; }
section + section { border-top: 1px solid var(--rule); margin-top: 1.6rem; }
.swatch { display: inline-block; width: .72em; height: .72em; margin-right: .45em; border-radius: 2px;
          box-shadow: 0 0 0 1px rgb(128 128 128 / .35); print-color-adjust: exact;
          -webkit-print-color-adjust: exact; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1.6rem 2rem; margin: 0; }
.tiles div { border-top: 2px solid var(--ink); padding-top: .55rem; }
.tiles dt { color: var(--soft); font-size: .84rem; }
.tiles dd { margin: 0; font-size: 1.85rem; font-weight: 600; line-height: 1.25; letter-spacing: -.02em;
            font-variant-numeric: tabular-nums; }
.tiles small { display: block; color: var(--soft); font-size: .84rem; font-weight: 400; letter-spacing: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; text-align: right; white-space: nowrap; font-weight: 400; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
.text { text-align: left; }
thead th { color: var(--soft); font-size: .82rem; line-height: 1.3; vertical-align: bottom; }
thead small { display: block; font-size: .92em; opacity: .8; }
tbody tr { border-top: 1px solid var(--rule); }
tr.total th, tr.total td { font-weight: 650; border-top: 1px solid var(--soft); }
td.heat { background: color-mix(in srgb, var(--heat) calc(var(--v) * .75%), transparent);
          print-color-adjust: exact; -webkit-print-color-adjust: exact; }
table.classes td, table.classes th { padding: .3rem .6rem; }
table.classes th:first-child { padding-left: 0; }
table.wide { width: 100%; }
.chips { display: flex; flex-wrap: wrap; gap: .4rem; margin: .8rem 0; }
.chips button { font: inherit; font-size: .84rem; line-height: 1.2; color: var(--ink); background: var(--fill);
                border: 1px solid var(--rule); border-radius: 1rem; padding: .3rem .75rem; cursor: pointer; }
.chips button[aria-pressed=false] { color: var(--soft); background: none; }
.chips button[aria-pressed=false] .swatch { opacity: .3; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.small-planes { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.1rem; }
.caption { color: var(--soft); font-size: .84rem; margin-bottom: .2rem; }
.bars { display: grid; grid-template-columns: auto 1fr auto; gap: .3rem .8rem; align-items: center; font-size: .86rem;
        font-variant-numeric: tabular-nums; margin: .8rem 0 1.6rem; }
.bars > span { color: var(--soft); text-align: right; white-space: nowrap; }
.bar { display: flex; height: 1.05rem; }
.bar i { height: 100%; min-width: 0; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.bar i:first-child { border-radius: 2px 0 0 2px; } .bar i:last-child { border-radius: 0 2px 2px 0; }
details { margin: .4rem 0; }
summary { cursor: pointer; padding: .3rem 0; color: var(--soft); }
summary b { color: var(--ink); font-weight: 600; margin-right: .4rem; }
summary:hover { color: var(--accent); }
details.seed { border-top: 1px solid var(--rule); padding-top: .3rem; }
details.seed > summary { color: var(--ink); }
.keys { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: center; margin: .4rem 0 1rem; font-size: .84rem;
        color: var(--soft); }
.scale { display: flex; align-items: center; gap: .5rem; }
.scale i { width: 9rem; height: .75rem; border-radius: 2px; print-color-adjust: exact;
           -webkit-print-color-adjust: exact; }
ul.classes { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none; margin: 0; padding: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 31rem), 1fr)); gap: 1.1rem 1.8rem;
         padding: .6rem 0 1.2rem; }
.card { margin: 0; break-inside: avoid; }
.quad { display: grid; grid-template-columns: repeat(4, 1fr); gap: 3px; }
.quad img { display: block; width: 100%; height: auto; border-radius: 2px; background: var(--fill); }
.px { image-rendering: pixelated; }
figcaption { margin-top: .3rem; color: var(--soft); font-size: .8rem; line-height: 1.4; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.4rem; margin: .6rem 0;
           font-size: .9rem; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: .4rem 0 1rem; padding: 1rem; overflow-x: auto; background: var(--fill); border-radius: 6px;
      font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { padding-top: 2.5rem; padding-bottom: 3rem; color: var(--soft); font-size: .84rem; }
@media (max-width: 44rem) {
  main, header, footer, nav div { padding-left: 1rem; padding-right: 1rem; }
  header { padding-top: 2rem; } section { padding-top: 1.8rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tiles dd { font-size: 1.5rem; }
  th, td { padding: .34rem .5rem; }
}
@media print {
  body { font-size: 10.5pt; } nav, .chips button[aria-pressed=false] { display: none; }
  section { break-inside: auto; padding-top: 1rem; } h2, h3 { break-after: avoid; }
  .figure, .tiles { break-inside: avoid; }
  .scroll { overflow: visible; }
}
"""

SCRIPT = """
(() => {
  const draw = (place) => {
    if (place.dataset.drawn) return;
    place.dataset.drawn = "yes";
    const data = document.querySelector(`script[data-figure="${place.id}"]`);
    Bokeh.embed.embed_item(JSON.parse(data.textContent), place.id);
  };
  // A figure inside something closed has no size yet: it is drawn when that is opened.
  const visible = (place) => !place.closest("details:not([open])");
  const drawVisible = (root) => [...root.querySelectorAll(".figure")].filter(visible).forEach(draw);
  drawVisible(document);
  document.addEventListener("toggle", (event) => { if (event.target.open) drawVisible(event.target); }, true);

  const glyph = (name) => {
    for (const shown of Bokeh.documents) {
      const found = shown.get_model_by_name(name);
      if (found) return found;
    }
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-glyphs]");
    if (!button) return;
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    for (const name of button.dataset.glyphs.split(" ").filter(Boolean)) {
      const found = glyph(name);
      if (found) found.visible = on;
    }
  });
})();
"""
