"""The look of report and comparison pages: one style sheet and two Jinja2 templates, as strings.

They are Python because the bundle of a Flower app carries no HTML files. The pages load nothing: no script, no font,
no picture from elsewhere, and a content security policy says so to the browser. Everything a run wrote is escaped by
Jinja2's autoescape; only charts and legends, which escape for themselves, are marked as safe.
"""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --panel: #ffffff; --ink: #1a1f26; --muted: #59636f; --faint: #e4e7eb; --wash: #f0f2f5;
  --accent: #0a5fb4; --alarm: #b4161c; --alarm-ink: #ffffff; --amber: #8a5a00; --amber-wash: #fdf3df;
  --good: #00755a; --bad: #b8460a;
  --c1: #0a66c2; --c2: #c8530a; --c3: #6b7683; --c4: #007f5f; --c5: #b0558f; --c6: #a67c00; --c7: #2a9fd0;
  --c8: #7a4fbf;
  --answered: #a9cdf0; --late: #f3cf6b; --away: #e3d5f2; --silent: #d5d9de; --failed: #e5814f; --sign: #1a1f26;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1318; --panel: #171c23; --ink: #e7ebf0; --muted: #9ca7b4; --faint: #2a323c; --wash: #1f262f;
    --accent: #7db8f7; --alarm: #b3242a; --alarm-ink: #ffffff; --amber: #f0c46a; --amber-wash: #2d2615;
    --good: #4fd0a5; --bad: #ff9a62;
    --c1: #6cb2ff; --c2: #ff9550; --c3: #98a3b0; --c4: #3cc79b; --c5: #e48cc4; --c6: #e0b83a; --c7: #7fd3f5;
    --c8: #b497f0;
    --answered: #2f6299; --late: #b98a1d; --away: #5b4878; --silent: #4a535e; --failed: #c4571f; --sign: #ffffff;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: clamp(16px, 3vw, 36px) clamp(12px, 3vw, 28px) 48px; }
h1, h2, h3, p { margin: 0; }
h1 { font-size: clamp(22px, 4vw, 30px); line-height: 1.2; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 40px 0 14px; font-size: 13px; font-weight: 600; letter-spacing: .06em; text-transform: uppercase;
  color: var(--muted); }
h3 { font-size: 16px; line-height: 1.3; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
.eyebrow { color: var(--muted); font-size: 13px; }
.facts { color: var(--muted); margin-top: 6px; overflow-wrap: anywhere; }
.facts b { color: var(--ink); font-weight: 600; }
.tag { display: inline-block; margin-left: 8px; padding: 1px 9px; border-radius: 99px; background: var(--amber-wash);
  color: var(--amber); font-size: 13px; font-weight: 600; letter-spacing: 0; vertical-align: middle; }
.banner { margin-top: 20px; padding: 14px 18px; border-radius: 10px; background: var(--alarm); color: var(--alarm-ink);
  overflow-wrap: anywhere; }
.banner strong { display: block; font-size: 18px; letter-spacing: .01em; }
.banner.calm { background: var(--panel); color: var(--ink); border: 1px solid var(--good); }
.note { margin-top: 12px; padding: 10px 14px; border-radius: 10px; background: var(--amber-wash); color: var(--amber);
  overflow-wrap: anywhere; }
.note ul { margin: 4px 0 0; padding-left: 20px; }
.card { min-width: 0; padding: 18px; border: 1px solid var(--faint); border-radius: 12px; background: var(--panel); }
.verdict { margin-top: 20px; padding: clamp(16px, 2.5vw, 26px); }
.sentence { max-width: 62em; font-size: clamp(17px, 2vw, 20px); line-height: 1.45; overflow-wrap: anywhere; }
.sentence strong { color: var(--accent); }
.sentence strong.bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(126px, 1fr)); gap: 18px 20px; margin: 24px 0 0; }
.tile { min-width: 0; }
.tile dt { color: var(--muted); font-size: 13px; }
.tile dd { margin: 0; font-size: 24px; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums;
  letter-spacing: -.01em; }
.tile dd.word { font-size: 18px; line-height: 30px; }
.tile:first-child dd { color: var(--accent); }
.tile .aside { display: block; color: var(--muted); font-size: 13px; line-height: 1.4; font-weight: 400;
  letter-spacing: 0; overflow-wrap: anywhere; }
.meter { display: block; height: 4px; margin: 5px 0 6px; border-radius: 2px; background: var(--faint); }
.meter i { display: block; height: 4px; border-radius: 2px; background: var(--c3); print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.tile:first-child .meter i { background: var(--c1); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
.grid.one { grid-template-columns: minmax(0, 1fr); }
.caption { margin-top: 4px; color: var(--muted); font-size: 14px; overflow-wrap: anywhere; }
.caption b { color: var(--ink); font-weight: 600; }
.unknown { margin: 18px 0 4px; color: var(--muted); font-style: italic; }
.card > svg { display: block; width: 100%; max-width: 520px; height: auto; margin: 12px auto 0; overflow: visible; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 12px 0 0; padding: 0; list-style: none;
  font-size: 13px; }
.legend li { display: flex; align-items: center; gap: 6px; overflow-wrap: anywhere; min-width: 0; }
.swatch { flex: none; width: 22px; height: 12px; overflow: visible; }
details { margin-top: 12px; font-size: 13px; }
summary { width: fit-content; color: var(--accent); cursor: pointer; }
.scroll { max-height: 340px; margin-top: 8px; overflow: auto; }
.scroll.free { max-height: none; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 0 4px 16px; border-bottom: 1px solid var(--faint); text-align: right; vertical-align: top;
  white-space: nowrap; }
thead th { color: var(--muted); font-weight: 600; }
tbody th { font-weight: 400; }
th:first-child { padding-left: 0; text-align: left; }
.t { min-width: 8em; max-width: 40em; text-align: left; white-space: normal; overflow-wrap: break-word; }
#provenance .t { overflow-wrap: anywhere; }
thead th.t { white-space: nowrap; }
tr.best th, tr.best td { font-weight: 600; color: var(--accent); }
pre { margin: 8px 0 0; padding: 12px 14px; overflow-x: auto; border-radius: 8px; background: var(--wash); }
.repeat { user-select: all; -webkit-user-select: all; }
footer { margin-top: 36px; color: var(--muted); font-size: 13px; }

svg text { fill: var(--ink); font-size: 10.5px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg .tick, svg .axis, svg .hint { fill: var(--muted); }
svg .axis { font-size: 10.5px; }
svg .hint { font-style: italic; }
svg .end { text-anchor: end; } svg .mid, svg .cell { text-anchor: middle; }
svg .value { font-weight: 600; }
svg .value.up { fill: var(--good); } svg .value.down { fill: var(--bad); }
svg .halo { paint-order: stroke; stroke: var(--panel); stroke-width: 4px; stroke-linejoin: round; }
svg .cell.on { fill: var(--panel); }
.rule { stroke: var(--faint); stroke-width: 1; fill: none; }
.axis-line { stroke: var(--muted); stroke-width: 1; fill: none; opacity: .6; }
.mark { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 4 3; fill: none; }
.reference { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 3; fill: none; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.thin { stroke-width: 1.4; }
.line.s1 { stroke-width: 2.4; }
.dot { fill: var(--c); stroke: var(--panel); stroke-width: 1.2; }
.fill { fill: var(--c); } .band { fill: var(--c); opacity: .16; }
.ring { fill: var(--panel); stroke: var(--c); stroke-width: 1.8; }
svg .value[class*=" s"] { fill: var(--c); }
.joint { stroke-width: 2.4; fill: none; opacity: .55; }
.joint.up { stroke: var(--good); } .joint.down { stroke: var(--bad); }
.d1 { stroke-dasharray: 6 4; } .d2 { stroke-dasharray: 1 4; } .d3 { stroke-dasharray: 9 3 2 3; }
.s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); } .s4 { --c: var(--c4); }
.s5 { --c: var(--c5); } .s6 { --c: var(--c6); } .s7 { --c: var(--c7); } .s8 { --c: var(--c8); }
.st-answered { fill: var(--answered); } .st-late { fill: var(--late); } .st-away { fill: var(--away); }
.st-silent { fill: var(--silent); } .st-failed { fill: var(--failed); }
.glyph { fill: none; stroke: var(--sign); stroke-width: 1.5; stroke-linecap: round; }
.level-1, .level-2, .level-3, .level-4, .level-5 { fill: var(--c1); }
.level-1 { fill-opacity: .14; } .level-2 { fill-opacity: .32; } .level-3 { fill-opacity: .52; }
.level-4 { fill-opacity: .74; } .level-5 { fill-opacity: 1; }
.hit { fill: var(--c1); } .miss { fill: var(--c2); } .empty { fill: var(--wash); }
.o1 { fill-opacity: .1; } .o2 { fill-opacity: .2; } .o3 { fill-opacity: .3; } .o4 { fill-opacity: .4; }
.o5 { fill-opacity: .5; } .o6 { fill-opacity: .6; } .o7 { fill-opacity: .7; } .o8 { fill-opacity: .8; } 
.o9 { fill-opacity: .9; }
@media (max-width: 560px) {
  body { font-size: 15px; }
  .card { padding: 14px 12px; }
  svg text, svg .axis { font-size: 12px; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 16px 14px; }
  .tile dd { font-size: 21px; }
}
@media print {
  @page { margin: 14mm; }
  :root { color-scheme: light; --page: #fff; --panel: #fff; --ink: #000; --muted: #444; --faint: #ddd; --wash: #f3f3f3;
    --accent: #0a5fb4; --amber: #6b4600; --amber-wash: #fdf3df; --good: #00755a; --bad: #b8460a;
    --c1: #0a66c2; --c2: #c8530a; --c3: #6b7683; --c4: #007f5f; --c5: #b0558f; --c6: #a67c00; --c7: #2a9fd0;
  --c8: #7a4fbf;
    --answered: #a9cdf0; --late: #f3cf6b; --away: #e3d5f2; --silent: #d5d9de; --failed: #e5814f; --sign: #000; }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  .grid { grid-template-columns: 1fr 1fr; }
  .card, .banner, .note { break-inside: avoid; }
  h2 { break-after: avoid; }
  .banner, svg, .meter { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scroll { max-height: none; overflow: visible; }
  details:not([open]):not(.keep) { display: none; }
  details.keep > summary { color: var(--ink); }
  details.keep::details-content { content-visibility: visible; block-size: auto; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{{ page_title }}</title>
<style>{{ css }}</style>
</head>
<body>
<main>
{% macro words(data, column) %}{% if column in data.text %} class="t"{% endif %}{% endmacro %}
{% macro note_box(title, lines) %}
{% if lines %}
<div class="note" id="notes"><b>{{ title }}</b>
<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul></div>
{% endif %}
{% endmacro %}
{% macro table(data, scroll="scroll") %}
<div class="{{ scroll }}" tabindex="0" role="region" aria-label="{{ data.title }}"><table>
<thead><tr>
{%- for cell in data.head %}<th{{ words(data, loop.index0) }} scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in data.rows %}
<tr{% if loop.index0 == data.best %} class="best"{% endif %}>
{%- for cell in row -%}
{% if loop.first %}<th{{ words(data, 0) }} scope="row">{{ cell }}</th>
{%- else %}<td{{ words(data, loop.index0) }}>{{ cell }}</td>{% endif %}
{%- endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% if data.note %}<p class="caption">{{ data.note }}</p>{% endif %}
{% endmacro %}
{% macro panel(p) %}
<section class="card" id="{{ p.id }}" aria-labelledby="{{ p.id }}-title">
<h3 id="{{ p.id }}-title">{{ p.title }}</h3>
<p class="caption">{{ p.caption }}</p>
{% if p.svg %}{{ p.legend }}{{ p.svg }}{% elif not p.shown %}<p class="unknown">{{ p.unknown }}</p>{% endif %}
{% if p.shown %}{{ table(p.shown, "scroll free") }}{% endif %}
{% for data in p.tables if data.rows %}<details><summary>{{ data.title }}</summary>
{{ table(data) }}</details>
{% endfor %}
</section>
{% endmacro %}
"""

REPORT = (
    _HEAD
    + """
<header>
<p class="eyebrow">fedkd report</p>
<h1>{{ name }}{% if not finished %} <span class="tag">unfinished</span>{% endif %}</h1>
<p class="facts">{% for fact in facts %}{% if not loop.first %} · {% endif %}{{ fact }}{% endfor %}</p>
</header>
<div class="banner{{ '' if privacy.alarm else ' calm' }}" id="privacy" role="note">
<strong>{{ privacy.headline }}</strong> {{ privacy.text }}</div>
{{ note_box("About this run", notes) }}
<section class="card verdict" id="verdict" aria-label="Verdict">
<p class="sentence">
<strong{% if verdict.bad %} class="bad"{% endif %}>{{ verdict.lead }}</strong> {{ verdict.rest }}</p>
<dl class="tiles">
{% for tile in tiles %}
<div class="tile"><dt>{{ tile.label }}</dt>
<dd{% if tile.share is none and tile.value | length > 9 %} class="word"{% endif %}>{{ tile.value }}
{% if tile.share is not none %}<span class="meter"><i style="width:{{ tile.share }}%"></i></span>{% endif %}
<span class="aside">{{ tile.aside }}</span></dd></div>
{% endfor %}</dl>
</section>
{% for section in sections %}
<h2>{{ section.title }}</h2>
<div class="grid{{ ' one' if section.panels | length == 1 }}">
{% for p in section.panels %}{{ panel(p) }}{% endfor %}
</div>
{% endfor %}
<h2>How to repeat it</h2>
<section class="card" id="provenance" aria-label="Provenance">
<h3>Provenance</h3>
<p class="caption">Which command, code and data made these numbers?</p>
{% if command %}<pre class="repeat" tabindex="0"><code>{{ command }}</code></pre>
{% else %}<p class="unknown">The command is not known.</p>
{% endif %}
{% if provenance.rows %}{{ table(provenance, "scroll free") }}{% endif %}
{% if config %}
<details class="keep"><summary>Resolved configuration</summary>
<pre tabindex="0"><code>{{ config }}</code></pre></details>
{% endif %}
</section>
<footer>This page is one file. It holds no script and loads nothing; save it, mail it, open it offline.</footer>
</main>
</body>
</html>
"""
)

COMPARISON = (
    _HEAD
    + """
<header>
<p class="eyebrow">fedkd compare</p>
<h1>{{ page_title }}</h1>
<p class="facts">{{ verdict }}</p>
</header>
{{ note_box("About these runs", notes) }}
<h2>Scoreboard</h2>
<section class="card" id="scoreboard" aria-label="Scoreboard">
<h3>Where every run ended</h3>
<p class="caption">Which run has the best student, at what price? It is set in bold, if runs can be ranked.</p>
{{ table(scoreboard, "scroll free") }}
</section>
<h2>On the way</h2>
<div class="grid">
{% for p in panels %}{{ panel(p) }}{% endfor %}
</div>
<h2>What differs</h2>
<section class="card" id="settings" aria-label="Settings that differ">
<h3>Settings that differ</h3>
<p class="caption">What was changed from one run to the next? Keys that are the same in all runs are left out.</p>
{% if settings.rows %}{{ table(settings, "scroll free") }}
{% else %}<p class="unknown">{{ settings.note }}</p>
{% endif %}
</section>
<footer>This page is one file. It holds no script and loads nothing; save it, mail it, open it offline.</footer>
</main>
</body>
</html>
"""
)

AUDIT = (
    _HEAD
    + """
<header>
<p class="eyebrow">fedkd audit</p>
<h1>{{ page_title }}</h1>
<p class="facts">{{ facts | join(" · ") }}</p>
</header>
<div class="banner{{ '' if alarm else ' calm' }}" role="note"><strong>{{ headline }}</strong> {{ adversary }}</div>
<h2>What was found</h2>
<section class="card" id="found" aria-label="What was found">
{{ table(found, "scroll free") }}
</section>
{% if panels %}
<h2>In a picture</h2>
<div class="grid one">
{% for p in panels %}{{ panel(p) }}{% endfor %}
</div>
{% endif %}
{{ note_box("How to read it", notes) }}
<footer>This page is one file. It holds no script and loads nothing; save it, mail it, open it offline.</footer>
</main>
</body>
</html>
"""
)
