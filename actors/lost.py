"""What is lost with a process or a node, and is made again from the latest checkpoint."""


class Lost(Exception):
    """Something that a role held is lost with its process or its node: the state of the learner since its latest
    checkpoint, or the weights, experience or images of a step.
    """


class LearnerLost(Lost):
    """A rank of the learner died or does not answer."""


class LearnerLate(LearnerLost):
    """A rank of the learner does not answer in time."""
