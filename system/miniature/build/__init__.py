"""Builds the assets of the miniature from a seed. Runs read the assets, but import nothing from this package.

__main__.py  the command: `python -m system.miniature.build`
stages.py    the stages in order; each reads the results of earlier ones
training/    the data and the training of each model
prompts.py   the prompt lists
figures.py   the figures that stages record about their training
measure.py   measurements of the finished assets
card.py      the page about the assets
"""
