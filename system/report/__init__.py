"""The HTML report of a run: one file, no network.

data.py      what a run folder holds, and the paired differences
pictures.py  the images before and after
canvas.py    one figure as an SVG that follows the page's colours
figures.py   the figures
build.py     the page, from report.html.j2
"""
