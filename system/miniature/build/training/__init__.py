"""The training data of the assets, and how each model of the miniature is made and trained.

data.py         images of the world, and tensors of images
corruptions.py  ways to spoil an image
tokenizer.py    the tokenizer of policy and reward
optimizer.py    the optimizer of all models
vae.py          the autoencoder
policy.py       the policy: a small Stable Diffusion 3
reward.py       the reward: a small PickScore
hps.py          the second reward: a small HPSv3
"""
