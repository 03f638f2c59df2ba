"""Builds the assets of the miniature from a seed. Runs read the assets and import nothing from here.

__main__.py  the command: `python -m system.miniature.build`
stages.py    what is built, in its order; each stage reads what earlier ones left in the folder
training/    the data and the training of each model
prompts.py   the prompt lists
figures.py   what the stages record of themselves
measure.py   what the finished assets can do
card.py      the page about the assets
"""
