"""TempFlow-GRPO with a small budget: one trunk for each prompt, whose branches are completed in a single step.

This plan is our own and has no paper. Most of TempFlow-GRPO's cost is the ODE that completes every branch. Here the
velocity after the action is followed to the end in one step, and the saving is spent on more prompts in an update.

Cost of a prompt at T = 10: 63 sampling forwards, 54 images, 9 rows of training, where `tempflow` has 1,116, 216 and 36.
Evidence and limits, on the miniature only: `docs/results/budget.md`. It learns faster for each forward and then
wanders, so it is for a first look and not for a final run.

Deviations from TempFlow-GRPO: the reward is that of a one-step completion, which is biased: the first branches' images
are blurred, and their rewards agree least with those of full completions. `plan.first_strides` completes the branches
of the first step in smaller steps, which did not help on the miniature.
"""

from dataclasses import replace

from actors.methods.tempflow import METHOD as TEMPFLOW

METHOD = replace(TEMPFLOW, plan=TEMPFLOW.plan.model_copy(update={"seeds": 1, "strides": (100.0,)}))
