"""How the pages look. Colours are named by what they mean; the tests compute the contrast of each pair."""

from __future__ import annotations

# Of a light page and a dark one.
COLOURS = {
    "page": ("#f6f8f9", "#11171c"),
    "sheet": ("#ffffff", "#182027"),
    "ink": ("#17212b", "#e6ecf1"),
    "muted": ("#51606e", "#a3b2bf"),
    "rule": ("#d3dbe1", "#33414d"),
    "mark": ("#0a5f80", "#74c3e3"),
    "faint": ("#dcebf1", "#1f3a47"),
    "warn": ("#8a4600", "#f2b866"),
    "alarm": ("#9a1b1b", "#9a1b1b"),
    "on-alarm": ("#ffffff", "#ffffff"),
}
TEXT_ON = (
    ("ink", "page"),
    ("ink", "sheet"),
    ("ink", "faint"),
    ("muted", "page"),
    ("muted", "sheet"),
    ("mark", "page"),
    ("mark", "sheet"),
    ("warn", "sheet"),
    ("on-alarm", "alarm"),
)
"""Which colour of text stands on which ground."""


def style() -> str:
    """Return the style sheet of every page."""
    light, dark = ("".join(f"--{name}:{pair[which]};" for name, pair in COLOURS.items()) for which in (0, 1))
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{_RULES}"
    )


_RULES = """
*,*::before,*::after{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:1rem}
body{margin:0;background:var(--page);color:var(--ink);
 font:15px/1.5 "Source Sans 3","Segoe UI",system-ui,-apple-system,"Helvetica Neue",Arial,sans-serif;
 font-variant-numeric:tabular-nums lining-nums;overflow-wrap:break-word}
a{color:var(--mark);text-underline-offset:.15em}
:focus-visible{outline:2px solid var(--mark);outline-offset:2px}
.skip{position:absolute;left:-9999px}
.skip:focus{left:1rem;top:1rem;background:var(--sheet);padding:.5rem .75rem;z-index:1}
header,main,footer{max-width:68rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:2rem}
main{display:grid;gap:1.25rem;grid-template-columns:minmax(0,1fr);padding-bottom:2rem}
h1,h2,h3,h4{line-height:1.25;margin:0;font-weight:600}
h1{font-size:1.75rem;letter-spacing:-.01em}
h2{font-size:1.2rem;margin-bottom:.75rem}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
h4{font-size:.9rem;margin:1rem 0 .35rem;color:var(--muted)}
p{margin:.35rem 0 .75rem;max-width:46rem}
.kind{color:var(--muted);margin:0 0 .25rem}
code,.exact{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.85em;
 overflow-wrap:anywhere}
nav ul{list-style:none;margin:.75rem 0 1.25rem;padding:.5rem 0;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;
 border-top:1px solid var(--rule)}
nav a{text-decoration:none;padding:.2rem 0;display:inline-block}
nav a:hover{text-decoration:underline}
section{background:var(--sheet);border:1px solid var(--rule);border-radius:4px;padding:1.25rem 1.5rem}
section section{border:0;border-top:1px solid var(--rule);border-radius:0;padding:1rem 0 0;margin:1.25rem 0 0}
section section h3{margin-top:0}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(10.5rem,1fr));gap:.9rem 1.5rem;margin:1rem 0}
.facts dt{color:var(--muted);font-size:.85rem}
.facts dd{margin:0}
time{white-space:nowrap}
.scroll{overflow-x:auto;max-width:100%;position:relative}
table{border-collapse:collapse;width:100%;font-size:.9rem}
table.numbers,table.short{max-width:44rem}
table.wide{min-width:46rem;max-width:none}
th,td{padding:.35rem .75rem .35rem 0;text-align:left;vertical-align:baseline;border-bottom:1px solid var(--rule)}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--muted);font-weight:600;font-size:.85rem;vertical-align:bottom}
tbody th{font-weight:500}
.number{text-align:right}
td.number{white-space:nowrap}
.unit{color:var(--muted)}
.withheld{color:var(--warn);white-space:normal}
details{border-bottom:1px solid var(--rule);max-width:44rem}
details:has(.wide){max-width:none}
summary{cursor:pointer;padding:.35rem 0;color:var(--mark)}
details>*:not(summary){margin-bottom:.75rem}
.value{display:inline-flex;flex-wrap:wrap;gap:0 1rem;justify-content:space-between;width:calc(100% - 1.25rem);
 vertical-align:top}
.value b{font-weight:400;color:var(--ink)}
.exact{display:block;user-select:all;background:var(--page);border-left:3px solid var(--rule);padding:.5rem .75rem;
 white-space:pre-wrap;max-height:16rem;overflow:auto}
figure{margin:1rem 0 0;min-width:0}
figcaption{color:var(--muted);font-size:.85rem;margin-top:.35rem;max-width:46rem}
.classes{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));gap:0 2.5rem}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr));gap:1.25rem 2rem;
 align-items:start}
svg{display:block;width:100%;height:auto;max-width:100%;font-size:12px}
svg text{fill:var(--ink)}
svg .soft{fill:var(--muted)}
svg .line{stroke:var(--mark);fill:none;stroke-width:1.5}
svg .rule{stroke:var(--rule);fill:none;stroke-width:1}
svg .fill{fill:var(--mark)}
svg .node{fill:var(--sheet);stroke:var(--mark);stroke-width:1.5}
svg .cell{stroke:var(--rule)}
svg .on{fill:var(--sheet)}
svg.small{max-width:24rem}
svg.matrix{width:auto;max-width:none}
svg.large{max-width:44rem;min-width:34rem}
img{display:block;width:100%;height:auto;image-rendering:pixelated;background:#000}
.swatch{display:inline-block;width:.85em;height:.85em;margin-right:.5em;vertical-align:-.05em;overflow:visible}
.figures+.scroll{margin-top:1.25rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;margin:.5rem 0;padding:0}
.alarm{background:var(--alarm);color:var(--on-alarm);padding:1rem 0;font-size:1.5rem;font-weight:600;line-height:1.3}
.alarm p{max-width:68rem;margin:0 auto;padding:0 1.5rem}
.alarm .more{font-size:1rem;font-weight:400;margin-top:.35rem}
footer{color:var(--muted);font-size:.85rem;padding-bottom:2rem}
@media (max-width:40rem){
 header,main,footer{padding-left:1rem;padding-right:1rem}
 .alarm p{padding-left:1rem;padding-right:1rem}
 table.numbers{font-size:.8rem}
 time{white-space:normal}
 section{padding:1rem}
 section section{padding:1rem 0 0}
 .facts{grid-template-columns:repeat(auto-fill,minmax(8rem,1fr))}
 th,td{padding-right:.5rem}
}
@media print{
 body{background:#fff;font-size:10pt}
 header,main,footer{max-width:none;padding-left:0;padding-right:0}
 main{display:block}
 nav,.skip{display:none}
 section{border:0;border-top:1px solid var(--rule);padding:.75rem 0;border-radius:0}
 h2,h3,h4{break-after:avoid}
 tr,figure,.facts div{break-inside:avoid}
 .scroll,.exact{overflow:visible;max-height:none}
 table.wide{min-width:0}
 details::details-content{content-visibility:visible;display:block;height:auto}
 .alarm{border:2pt solid #000;background:#fff;color:#000}
}
"""
