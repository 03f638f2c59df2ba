"""The HTML report of a run: one file that needs no network.

data.py      reads a run folder, and computes paired differences
pictures.py  the images before and after
step_images.py  the images of some steps, to which the curves link
canvas.py    one figure as an SVG that follows the page's colours
figures.py   the figures
build.py     the page, from report.html.j2
"""
