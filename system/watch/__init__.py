"""A run seen from outside while it runs and after: `tempflow watch` (a page) and `tempflow top` (a terminal).

tail.py        reads only what was added to a file of lines since the last look
columns.py     the metrics of all steps as columns, and a long curve in few points
experience.py  the experience of one step: groups by spread, prompts, the tree of a task
step_tables.py the Parquet files of steps, the last ones in memory
prompt_history.py  the mean rewards of the prompts over the steps
warned.py      the warnings in the metrics and in the logs
panels.py      the figures of curves
reader.py      a run folder as plain data; all that the page and the terminal show comes from here
server.py      the page and its data over HTTP, on loopback
live.py        that page, served by the training process itself
page.html, page.js, page.css
terminal.py    the same in a terminal

Everything is read from the run folder alone: no Ray, no PyTorch, no connection to the run. Files may be written or
removed at any moment; what cannot be read now is read at the next look.
"""
