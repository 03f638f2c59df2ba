"""Learning: advantage rules, objectives, the optimizer, and the actor that runs them."""
