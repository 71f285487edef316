"""A report as one HTML file without any other, for desktop and phone."""

import html
import json
from typing import Any

from kd_d2.visualization.html_document import html_document

from .report_figures import AMBER, BLUE, GREY, data_uri, figures, spark
from .report_tables import Table, by_count, caution, class_table, tables
from .statistics import Statistics

_BODY = """\
<p class="quiet">{subtitle}</p>
<div class="cards">{cards}</div>{caution}
<h2>Look at this first</h2>
{alarms}
<div class="figures">{figures}</div>
{classes}
<div class="tables">{tables}</div>
<h2>Where the labels come from</h2>
<details><summary>Teachers, thresholds, filters, images</summary><pre>{provenance}</pre></details>\
"""

STYLE = """  :root { color-scheme: light; }
  body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1340px;
         padding: 0 1rem; color: #222; background: #fff; overflow-wrap: anywhere; }
  h1 { font-size: 1.4rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
  .quiet { color: #667; margin-top: 0; font-size: .88rem; }
  .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(135px, 1fr));
           gap: .6rem; }
  .card { background: #f3f5f8; border-radius: 8px; padding: .55rem .8rem; font-size: .82rem;
          color: #556; }
  .card b { display: block; font-size: 1.35rem; line-height: 1.3; color: #222; }
  .alarms { list-style: none; padding: 0; margin: 0; }
  .alarms li { background: #fff4e0; border-left: 4px solid #e0a030; padding: .45rem .8rem;
               margin: .4rem 0; border-radius: 0 6px 6px 0; }
  .fine { background: #eaf6ec; border-left: 4px solid #3f9b52; padding: .45rem .8rem;
          border-radius: 0 6px 6px 0; }
  .figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
             gap: .5rem 2rem; align-items: start; }
  figure { margin: 1.2rem 0 0; } figcaption { font-weight: 600; margin-bottom: .2rem; }
  figure img { width: 100%; height: auto; display: block; max-width: 560px; }
  .tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
            gap: 0 2.5rem; align-items: start; }
  .wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
  table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
  th, td { padding: .22rem .45rem; text-align: right; white-space: nowrap;
           border-bottom: 1px solid #e6e9ee; }
  th { color: #556; font-weight: 600; }
  th:first-child, td:first-child { text-align: left; position: sticky; left: 0; z-index: 1;
                                   background: #fff; white-space: normal; min-width: 6rem; }
  .words { white-space: normal; text-align: left; color: #667; min-width: 9rem; }
  tr.loud td { background: #fff4e0; } td svg { display: block; }
  summary { cursor: pointer; } pre { font-size: .78rem; white-space: pre-wrap; }
  i.key { display: inline-block; width: .8em; height: .8em; margin: 0 .25em 0 .6em; }"""


def html_page(title: str, s: Statistics, sentences: list[str], provenance: dict[str, Any]) -> str:
    """
    Args:
        sentences: the alarms.
    """
    teachers = ", ".join(t["name"] for t in provenance["teachers"])
    images = provenance["images"]
    subtitle = f"Teachers: {teachers}. {images['count']:,} images, list {images['list'][:12]}."
    if sentences:
        lines = "\n".join(f"<li>{html.escape(x)}</li>" for x in sentences)
        shown = f'<ul class="alarms">\n{lines}\n</ul>'
    else:
        shown = '<p class="fine">Nothing stands out. Look at the check sheet all the same.</p>'
    drawn = "".join(
        f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="{data_uri(svg)}"></figure>'
        for name, svg in figures(s).items()
    )
    body = _BODY.format(
        subtitle=html.escape(subtitle),
        cards="".join(f'<div class="card"><b>{n}</b>{words}</div>' for words, n in cards(s)),
        caution=f'\n<p class="quiet">{caution(s)}</p>' if caution(s) else "",
        alarms=shown,
        figures=drawn,
        classes=_classes(s),
        tables="".join(f"<section>{_table(x)}</section>" for x in tables(s)),
        provenance=html.escape(json.dumps(provenance, indent=1, sort_keys=True)),
    )
    return html_document(title, STYLE, body)


def cards(s: Statistics) -> list[tuple[str, str]]:
    """The numbers to begin with: words, number."""
    images = s.images
    found = [
        ("images used", f"{images['used']:,}"),
        ("pseudo boxes", f"{s.kept:,}"),
        ("per used image", f"{s.mean_boxes:.1f}"),
        ("ignore boxes", f"{sum(x.ignored for x in s.classes):,}"),
        ("images without box", f"{images['without_boxes']:,}"),
        ("images dropped", f"{images['read'] - images['used']:,}"),
        ("images failed", f"{images['failed']:,}"),
    ]
    q = s.quality
    if q is not None:
        for words, share in (("precision", q.precision), ("recall", q.recall)):
            found.append((words, "–" if share is None else f"{100 * share:.0f} %"))
        found.append(("AP of the boxes", "–" if q.ap is None else f"{q.ap:.1f}"))
    return found


def _classes(s: Statistics) -> str:
    sparks = [spark(x) for x in by_count(s)]
    keys = ((BLUE, "kept"), (AMBER, "ignore boxes"), (GREY, "below"))
    legend = "".join(f'<i class="key" style="background:{c}"></i>{w}' for c, w in keys)
    note = f"scores: histogram from 0 to 1, heights are square roots;{legend}."
    return _table(class_table(s), ("scores", sparks), note)


def _explained(words: str) -> str:
    """A note; a long one is shown when it is asked for."""
    if len(words) < 200:
        return f'<p class="quiet">{words}</p>\n' * bool(words)
    return (
        f'<details class="quiet"><summary>What the columns are</summary><p>{words}</p></details>\n'
    )


def _table(table: Table, pictures: tuple[str, list[str]] | None = None, note: str = "") -> str:
    """
    Args:
        pictures: title and contents, in HTML, of one more column after the first.
        note: in HTML, what that column shows.
    """
    name, contents = pictures or ("", [])
    head = [f"<th>{html.escape(x)}</th>" for x in table.head]
    lines = []
    for i, row in enumerate(table.rows):
        cells = [f"<td>{html.escape(x)}</td>" for x in row]
        if table.has_words:
            cells[-1] = f'<td class="words">{html.escape(row[-1])}</td>'
        if pictures:
            cells.insert(1, f"<td>{contents[i] if i < len(contents) else ''}</td>")
        lines.append(f"<tr{' class=loud' * (i in table.loud)}>{''.join(cells)}</tr>")
    if table.has_words:
        head[-1] = f'<th class="words">{html.escape(table.head[-1])}</th>'
    if pictures:
        head.insert(1, f"<th>{name}</th>")
    words = " ".join(x for x in (html.escape(table.note), note) if x)
    return (
        f"<h2>{html.escape(table.title)}</h2>\n"
        + _explained(words)
        + f'<div class="wide"><table>\n<tr>{"".join(head)}</tr>\n'
        + "\n".join(lines)
        + "\n</table></div>\n"
    )
