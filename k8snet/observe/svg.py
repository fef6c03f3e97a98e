"""SVG for pages in light, dark and print: what dot drew, with the colours left to the theme."""

from __future__ import annotations

import html
import re

__all__ = ["figure", "finished", "standalone"]

# name: (what labels.py tells dot, in light, in dark); chosen so that the shapes differ
# for colour-blind readers too, and so that print in grey stays legible
COLOURS = {
    "ink": ("#0b0001", "#16202c", "#e8edf2"),
    "muted": ("#0b0002", "#54616f", "#a3b0be"),
    "line": ("#0b0003", "#7b8794", "#8593a3"),
    "accent": ("#0b0004", "#1f6fb2", "#6cb6f2"),
    "new": ("#0b0005", "#b45309", "#fbb040"),
    "paper": ("#0b0006", "#ffffff", "#1d2733"),
    "frame": ("#0b0007", "#eef3f8", "#131b24"),
    "bridge": ("#0b0008", "#fdf3d8", "#3a3220"),
    "note": ("#0b0009", "#e3e9ef", "#263341"),
}


def _variables(column: int) -> str:
    return "".join(f"--k8s-{name}:{colours[column]};" for name, colours in COLOURS.items())


STYLE = f"""
.k8snet-figure{{{_variables(1)}margin:1rem 0;}}
body[data-jp-theme-light="false"] .k8snet-figure,html[data-theme="dark"] .k8snet-figure{{{_variables(2)}}}
@media print{{html .k8snet-figure.k8snet-figure{{{_variables(1)}}}}}
.k8snet-figure .k8snet-canvas{{overflow-x:auto;}}
.k8snet-figure svg{{display:block;margin:0 auto;max-width:100%;height:auto;background:none;}}
.k8snet-figure svg text{{font-family:"DejaVu Sans",Verdana,"Segoe UI",sans-serif;}}
.k8snet-figure svg text[font-family*="Mono"]{{font-family:"DejaVu Sans Mono",Menlo,Consolas,monospace;}}
.k8snet-figure figcaption{{text-align:center;font-size:.9em;margin-top:.5em;opacity:.85;}}
""".replace("\n", "")


def finished(svg: str, *, keep_ids: bool = False) -> str:
    """Return SVG ready for a page: themed colours, no fixed size, no XML head.

    Args:
        keep_ids: its parts refer to each other; dot's do not, and its ids are the same in each figure.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)
    body = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>", "", body, flags=re.DOTALL)
    body = re.sub(r"<title>.*?</title>\n?", "", body, flags=re.DOTALL)  # dot's names, of no use to a reader
    body = body if keep_ids else re.sub(r' id="[^"]*"', "", body)
    body = re.sub(r"<metadata>.*?</metadata>\n?", "", body, flags=re.DOTALL)
    for name, (told, light, _) in COLOURS.items():
        for attribute in ("fill", "stroke"):
            body = body.replace(f'{attribute}="{told}"', f'{attribute}="{light}" style="{attribute}:var(--k8s-{name})"')
            body = body.replace(f"{attribute}: {told}", f"{attribute}: var(--k8s-{name})")  # matplotlib's way
    # an element with both would have two style attributes, which XML forbids
    body = re.sub(r'(<[^>]*?) style="([^"]*)"([^>]*?) style="([^"]*)"', r'\1 style="\2;\4"\3', body)
    return re.sub(r'<svg([^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', _sized, body, count=1).strip()


def _sized(match: re.Match[str]) -> str:
    width = round(float(match[2]) * 4 / 3)  # CSS pixels; a point is 4/3 of one
    least = min(width, max(540, round(width * 0.62)))  # smaller letters than that cannot be read: it scrolls
    return f'<svg{match[1]} style="width:{width}px;min-width:{least}px"'


def standalone(svg: str) -> str:
    """Return a drawing as an SVG file: its colours follow the viewer's theme."""
    style = (
        f"<style>svg{{{_variables(1)}background:var(--k8s-paper)}}"
        f"@media(prefers-color-scheme:dark){{svg{{{_variables(2)}}}}}</style>"
    )
    return svg.replace(">", f">{style}", 1)


def figure(svg: str, alt: str, caption: str | None) -> str:
    """Return a figure that stands by itself: style, drawing, description and caption."""
    label = html.escape(alt, quote=True)
    drawing = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    foot = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="k8snet-figure"><style>{STYLE}</style><div class="k8snet-canvas">{drawing}</div>{foot}</figure>'
    )
