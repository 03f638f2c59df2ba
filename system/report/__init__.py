"""The HTML report of a run: one file that needs no network.

data.py      reads a run folder, and computes paired differences
pictures.py  the images before and after
prompts.py   all held-out prompts from the largest gain to the largest loss
step_images.py  the images of some steps, to which the curves link
canvas.py    one figure as an SVG that follows the page's colours
figures/     the figures, one file for each section
build.py     the page, from report.html.j2
"""
