"""How the page looks: paper and ink, one column of names beside one of content, light and dark, on a phone and in print."""
from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfcf9; --wash: #f4f2ec; --ink: #1d1c1a; --soft: #625f58; --line: #e3e0d8; --rule: #b9b5aa;
  --good: #1f66a8; --bad: #bd4a10; --care: #fbf3dc; --care-line: #d9b95c;
  --s0: #1f66a8; --s1: #c8570f; --s2: #0b8a66; --s3: #a8508a; --s4: #3d98c9; --s5: #b07d00;
  --serif: Charter, "Bitstream Charter", "Sitka Text", "Iowan Old Style", Cambria, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161614; --wash: #1f1f1c; --ink: #ebe8e1; --soft: #a5a198; --line: #302f2b; --rule: #57544d;
    --good: #6fb3ea; --bad: #f0935a; --care: #2b2615; --care-line: #7a6726;
    --s0: #6fb3ea; --s1: #f0935a; --s2: #3fc39b; --s3: #dd97c5; --s4: #a5d8f3; --s5: #e3b341;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 var(--sans); font-variant-numeric: tabular-nums;
  text-rendering: optimizeLegibility; }
main { max-width: 1120px; margin: 0 auto; padding: 56px 32px 72px; }
h1, h2, h3, p, figure, dl, dd, ol, ul { margin: 0; padding: 0; }
ol, ul { list-style: none; }
bdi, .said { overflow-wrap: anywhere; }

.eyebrow { color: var(--soft); font-size: 14px; }
h1 { font: 600 38px/1.18 var(--serif); letter-spacing: -0.012em; margin: 10px 0 12px; text-wrap: balance;
  overflow-wrap: anywhere; }
h1 small { font-size: 1em; font-weight: 400; color: var(--soft); }
.about { color: var(--soft); max-width: 88ch; text-wrap: pretty; }
.about bdi { color: var(--ink); }

.result { display: grid; grid-template-columns: minmax(230px, 1fr) 2.4fr; gap: 24px 48px; align-items: center;
  margin-top: 40px; padding: 32px 0 36px; border-top: 2px solid var(--ink); border-bottom: 1px solid var(--line); }
.big b { display: block; font: 600 76px/1 var(--serif); letter-spacing: -0.03em; white-space: nowrap; }
.big b i { font-style: normal; font-size: 0.5em; font-weight: 400; letter-spacing: 0; margin-left: 0.08em; }
.big span { display: block; margin-top: 12px; color: var(--soft); }
.big span strong { color: var(--ink); font-weight: 600; }

.forest { display: grid; gap: 13px; }
.forest li { display: grid; grid-template-columns: minmax(0, 11.5rem) 1fr auto; gap: 4px 20px; align-items: center; }
.forest .who { line-height: 1.3; }
.forest .what { display: grid; grid-template-columns: minmax(4.4rem, auto) minmax(6.2rem, auto); text-align: right;
  white-space: nowrap; align-items: baseline; column-gap: 10px; }
.forest .what b { font-weight: 600; }
.forest .what span { color: var(--soft); font-size: 14px; }
.forest .other { color: var(--soft); }
.forest .other .what b { font-weight: 400; color: var(--ink); }
.forest .one { font-size: 14px; }
.track { position: relative; height: 22px; }
.track::before { content: ""; position: absolute; inset: 50% 0 auto; border-top: 1px solid var(--line); }
.track u { position: absolute; top: 50%; height: 6px; margin-top: -3px; border-radius: 3px; background: var(--soft);
  opacity: .45; }
.track i { position: absolute; top: 50%; width: 12px; height: 12px; margin: -6px 0 0 -6px; border-radius: 50%;
  background: var(--soft); border: 2px solid var(--paper); }
.mine .track u { background: var(--good); opacity: .4; }
.mine .track i { background: var(--good); width: 16px; height: 16px; margin: -8px 0 0 -8px; }
.one .track u { height: 2px; margin-top: -1px; }
.one .track i { width: 9px; height: 9px; margin: -4.5px 0 0 -4.5px; border-width: 1px; }
.scale .track { height: 18px; font-size: 13px; color: var(--soft); }
.scale .track::before { display: none; }
.scale .track span { position: absolute; transform: translateX(-50%); white-space: nowrap; }

.verdict { margin: 28px 0 0; display: grid; gap: 6px; font: 21px/1.42 var(--serif); max-width: 82ch; text-wrap: pretty; }
.verdict li { padding-left: 24px; text-indent: -24px; }
.verdict li::before { content: "●"; display: inline-block; width: 24px; text-indent: 0; font-size: .62em;
  vertical-align: .2em; color: var(--rule); }
.verdict .better::before { color: var(--good); }
.verdict .worse::before { color: var(--bad); }

.warnings { margin-top: 36px; padding: 18px 24px 20px; background: var(--care); border-left: 4px solid var(--care-line);
  border-radius: 0 6px 6px 0; }
.warnings h2 { font: 600 17px/1.4 var(--sans); margin-bottom: 6px; }
.warnings li { margin-top: 6px; max-width: 100ch; text-wrap: pretty; overflow-wrap: anywhere; }

section { display: grid; grid-template-columns: 13.5rem minmax(0, 1fr); gap: 16px 48px; margin-top: 56px; padding-top: 18px;
  border-top: 1px solid var(--line); }
section header { font-size: 14px; line-height: 1.5; color: var(--soft); }
section header h2 { font: 600 21px/1.25 var(--serif); color: var(--ink); margin-bottom: 8px; }
section header p { overflow-wrap: anywhere; }
.body { min-width: 0; display: grid; grid-template-columns: minmax(0, 1fr); gap: 28px; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 24px 32px; }
h3 { font: 600 15px/1.4 var(--sans); margin-bottom: 8px; }
.note { color: var(--soft); font-size: 15px; max-width: 68ch; }

figure { min-width: 0; }
figcaption { margin-top: 6px; font-size: 14px; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; }
.legend i { display: inline-block; width: 18px; margin-right: 7px; vertical-align: middle;
  border-top: 2.5px solid currentColor; }
.legend i.faint { opacity: .35; }
.legend i.dashed { border-top-style: dashed; }
.legend i.ideal { border-top: 1.5px dashed var(--soft); }
.legend i.box { width: 13px; height: 13px; border: 0; border-radius: 3px; background: currentColor; }
svg.chart { display: block; width: 100%; height: auto; overflow: visible; font-family: var(--sans); }
.chart text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.chart .name { font-size: 12px; fill: var(--ink); }
.chart .mark { fill: var(--ink); font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 4px;
  stroke-linejoin: round; }
.chart .grid { stroke: var(--line); }
.chart .axis { stroke: var(--rule); }
.chart .ideal { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 4 4; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart .faint { stroke-width: 1; opacity: .28; }
.chart .dashed { stroke-dasharray: 5 4; stroke-width: 1.6; }
.chart .ring { fill: none; stroke-width: 2; }
.chart .whisker { stroke-width: 1.5; opacity: .55; }
.chart .count { font-size: 10px; }
.chart .empty { fill: var(--wash); }
.chart .right { fill: var(--good); } .chart .wrong { fill: var(--bad); }
.chart .on { fill: var(--paper); } .chart .off { fill: var(--ink); }
.chart .label { fill: var(--ink); font-size: 12.5px; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); }
.s4 { color: var(--s4); } .s5 { color: var(--s5); }
.chart .line, .chart .ring, .chart .whisker { stroke: currentColor; }
.chart .dot, .chart .point { fill: currentColor; }
.chart .bar { fill: currentColor; fill-opacity: .35; }
i.good { color: var(--good); } i.bad { color: var(--bad); }

.scroll, .grid-chart { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 12px, transparent 36px) left / 36px 100% no-repeat local,
  linear-gradient(to left, var(--paper) 12px, transparent 36px) right / 36px 100% no-repeat local,
  linear-gradient(to right, var(--line), transparent) left / 12px 100% no-repeat scroll,
  linear-gradient(to left, var(--line), transparent) right / 12px 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { padding: 6px 0 6px 20px; text-align: right; vertical-align: baseline; border-bottom: 1px solid var(--line);
  font-weight: 400; white-space: nowrap; }
th:first-child { padding-left: 0; text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7em; }
thead th { color: var(--soft); font-size: 13.5px; vertical-align: bottom; border-bottom-color: var(--rule); }
td small { color: var(--soft); font-size: 13.5px; margin-left: 5px; }
table.words td:nth-child(2), table.words th:nth-child(2) { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.plain td, table.plain th { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 5em;
  font-size: 14px; }
.meter { display: inline-block; width: 72px; height: 6px; margin-right: 10px; border-radius: 3px; background: var(--wash);
  vertical-align: 2px; }
.meter i { display: block; height: 6px; border-radius: 3px; background: var(--good); }

.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(205px, 1fr)); gap: 22px 32px; align-content: start; }
.facts dt { font-size: 14px; color: var(--soft); }
.facts dd b { display: block; font: 600 25px/1.25 var(--serif); white-space: nowrap; }
.facts dd span { display: block; font-size: 14px; color: var(--soft); overflow-wrap: anywhere; }

.cards { display: grid; gap: 0; }
.cards > li { padding: 16px 0; border-bottom: 1px solid var(--line); display: grid;
  grid-template-columns: 4.6rem minmax(0, 1fr); }
.cards > li:first-child { padding-top: 0; } .cards > li:last-child { border-bottom: 0; padding-bottom: 0; }
.cards .number { color: var(--soft); font-size: 14px; padding-top: 2px; }
.cards blockquote { margin: 0; font: 17.5px/1.45 var(--serif); white-space: pre-line; overflow-wrap: anywhere;
  unicode-bidi: isolate; }
.cards blockquote + blockquote { margin-top: 6px; padding-top: 6px; border-top: 1px dotted var(--line); }
.cards .fate { margin-top: 6px; font-size: 15px; color: var(--soft); overflow-wrap: anywhere; }
.cards .fate b { font-weight: 600; unicode-bidi: isolate; }
.cards .fate .bad { color: var(--bad); } .cards .fate .good { color: var(--good); }
.cards img { display: block; width: 112px; height: 112px; object-fit: contain; background: var(--wash); border-radius: 6px;
  image-rendering: auto; }
.cards.pictures { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 24px 20px; }
.cards.pictures > li { display: block; padding: 0; border: 0; }
.threefold { display: grid; grid-template-columns: 5em minmax(0, 1fr); gap: 6px 14px; }
.threefold dt { font-size: 14px; color: var(--soft); padding-top: 2px; }
.threefold dd { font: 16.5px/1.45 var(--serif); white-space: pre-line; overflow-wrap: anywhere; unicode-bidi: isolate; }
.threefold dd.source { color: var(--soft); }
.tokens { display: flex; flex-wrap: wrap; gap: 4px 8px; font: 17px/1.4 var(--serif); }
.tokens span { display: inline-block; text-align: left; overflow-wrap: anywhere; }
.tokens span small { display: block; font: 12px/1.3 var(--sans); color: var(--soft); }
.tokens .odd { border-bottom: 2px solid var(--bad); } .tokens .odd small b { color: var(--bad); font-weight: 600; }
.tokens .fine { border-bottom: 2px solid var(--good); }
.choices { margin-top: 6px; font-size: 15px; display: grid; gap: 2px; color: var(--soft); }
.choices b { font-weight: 600; }

details { border-bottom: 1px solid var(--line); }
details > summary { cursor: pointer; padding: 10px 0; font-weight: 600; font-size: 15px; list-style-position: outside;
  margin-left: 1.1em; }
details > summary span { font-weight: 400; color: var(--soft); margin-left: 8px; }
details > div { padding: 2px 0 18px 1.1em; }
pre { margin: 0; padding: 14px 18px; background: var(--wash); border-radius: 6px; font: 14px/1.55 var(--mono);
  white-space: pre-wrap; overflow-wrap: anywhere; }
.record { display: grid; grid-template-columns: minmax(6em, max-content) minmax(0, 1fr); gap: 3px 20px; font-size: 14.5px; }
.record dt { color: var(--soft); overflow-wrap: anywhere; max-width: 16em; }
.record dd { overflow-wrap: anywhere; min-width: 0; }
.record .record { padding-bottom: 6px; } .record ol > li + li { margin-top: 6px; }
summary:focus-visible { outline: 2px solid var(--good); outline-offset: 2px; border-radius: 3px; }
footer { margin-top: 64px; padding-top: 16px; border-top: 1px solid var(--line); font-size: 14px; color: var(--soft); }

@media (max-width: 860px) {
  section { grid-template-columns: minmax(0, 1fr); }
  section header p { max-width: 68ch; }
  .result { grid-template-columns: minmax(0, 1fr); }
}
@media (max-width: 600px) {
  main { padding: 32px 20px 48px; }
  h1 { font-size: 29px; }
  .result { margin-top: 28px; padding: 24px 0 28px; }
  .big b { font-size: 64px; }
  .forest li { grid-template-columns: minmax(0, 1fr) auto; }
  .forest .track { grid-column: 1 / -1; grid-row: 2; }
  .forest .scale span.who, .forest .scale span.what { display: none; }
  .verdict { font-size: 19px; }
  .warnings { margin-left: -20px; margin-right: -20px; padding-left: 18px; border-radius: 0; }
  section { margin-top: 40px; }
  .pair { grid-template-columns: minmax(0, 1fr); }
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px 20px; }
  .facts dd b { font-size: 22px; }
  th, td { padding-left: 10px; } th:first-child { min-width: 5em; } table { font-size: 14px; } thead th { font-size: 13px; }
  td small { font-size: 12.5px; }
  td .meter { display: none; } td small { display: block; margin: 0; } thead th { white-space: normal; }
  .cards > li { grid-template-columns: minmax(0, 1fr); } .cards .number { padding-bottom: 2px; }
  .threefold { grid-template-columns: minmax(0, 1fr); gap: 0; } .threefold dd + dt { margin-top: 6px; }
  .record { grid-template-columns: minmax(0, 1fr); gap: 0; } .record dd { margin-bottom: 6px; padding-left: 12px; }
}
@media print {
  :root { --paper: #fff; --wash: #f4f2ec; --ink: #000; --soft: #444; --line: #ddd; --rule: #999; --good: #1f66a8;
    --bad: #bd4a10;
    --s0: #1f66a8; --s1: #c8570f; --s2: #0b8a66; --s3: #a8508a; --s4: #3d98c9; --s5: #b07d00; --care: #fff;
      --care-line: #999; color-scheme: light; }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  section { grid-template-columns: 10rem minmax(0, 1fr); gap: 12px 24px; margin-top: 28px; }
  figure, tr, .cards > li, .facts > div, .result, .warnings { break-inside: avoid; }
  section header { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .scroll, .grid-chart { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
