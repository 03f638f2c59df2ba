"""Shapes: a true small copy of SD3.5 and PickScore, with a judge that knows the right answer."""
