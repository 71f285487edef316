"""The report of a run: report.json for programs, report.md and report.html for people."""

import json
from pathlib import Path

from kd_d2.checkpoint import atomic_write

from .alarms import alarms
from .provenance import provenance
from .report_page import cards, html_page
from .report_tables import caution, class_table, markdown, tables
from .run_folder import RunFolder
from .statistics import Statistics

FOLDER = "report"


def write_report(run: RunFolder, statistics: Statistics) -> list[Path]:
    """Writes what is known of a run's labels, with what is suspicious on top.

    Returns:
        the paths of report.json, report.md and report.html, which needs no other file.
    """
    sentences, made_of = alarms(statistics), provenance(run)
    title = f"Pseudo labels: {run.folder.resolve().name}"
    content = {"alarms": sentences, **statistics.record(), "provenance": made_of}
    texts = {
        "report.json": json.dumps(content, indent=1) + "\n",
        "report.md": _markdown(title, statistics, sentences),
        "report.html": html_page(title, statistics, sentences, made_of),
    }
    folder = run.folder / FOLDER
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        with atomic_write(str(folder / name)) as f:
            f.write(text.encode())
    return [folder / name for name in texts]


def _markdown(title: str, statistics: Statistics, sentences: list[str]) -> str:
    parts = [f"# {title}", ", ".join(f"{words} {n}" for words, n in cards(statistics)) + "."]
    parts += [caution(statistics), "## Look at this first"]
    parts += ["\n".join(f"- {x}" for x in sentences) or "Nothing stands out."]
    for table in (class_table(statistics), *tables(statistics)):
        parts += [f"## {table.title}", table.note, markdown(table)]
    return "\n\n".join(x for x in parts if x) + "\n"
