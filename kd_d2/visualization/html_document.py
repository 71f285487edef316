"""What all pages have around them."""

import html

_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def html_document(title: str, style: str, body: str) -> str:
    """A page that needs no other file, with its title as first heading.

    Args:
        title: text.
        style: CSS.
        body: HTML.
    """
    return _DOCUMENT.format(title=html.escape(title), style=style, body=body)
