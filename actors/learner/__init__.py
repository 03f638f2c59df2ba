"""Learning: objectives, the weight sets, the optimizer, and the actor that runs them."""
