"""`tempflow bench gpu`: proves on one GPU that the numbers are right, and measures what it can do.

Needs neither Ray nor a network nor weights: models are random ones of the real shapes. Each part is a file with one
function, `measure`, and runs in a process of its own, so that a part that fails leaves nothing behind.

parts.py      the parts, with their bounds on time
card.py  parity.py  ratio.py  determinism.py  training.py  forward.py  surroundings.py
record.py     what a part has found: checks and tables, on the disk as soon as they are there
process.py    one part in a process of its own
run.py        all parts, one after the other, and gpu.json
page.py       gpu.html, and the same tables as Markdown
models.py     the models that numbers are compared on
work.py       one task and one update of a model
tiny/         a tiny random pipeline of each family, through the real classes
"""
