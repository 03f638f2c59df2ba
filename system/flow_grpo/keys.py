"""Which key of flow_grpo is which key of a recipe, and what has no counterpart."""

import re
from typing import Any

PLAIN = {
    "seed": "seed",
    "eval_freq": "eval.every",
    "save_freq": "checkpoint.every",
    "num_checkpoint_limit": "checkpoint.keep",
    "activation_checkpointing": "policy.gradient_checkpointing",
    "pretrained.model": "policy.model",
    "sample.num_steps": "policy.num_steps",
    "sample.eval_num_steps": "eval.num_steps",
    "sample.guidance_scale": "policy.guidance",
    "sample.noise_level": "kernel.noise_level",
    "sample.num_image_per_prompt": "plan.seeds",
    "sample.same_latent": "plan.shared_noise",
    "sample.test_batch_size": "eval.batch",
    "train.batch_size": "learner.micro_batch",
    "train.learning_rate": "learner.lr",
    "train.adam_weight_decay": "learner.weight_decay",
    "train.adam_epsilon": "learner.eps",
    "train.max_grad_norm": "learner.max_grad_norm",
    "train.adv_clip_max": "advantage.clip",
    "train.num_inner_epochs": "objective.epochs",
    "train.clip_range": "objective.clip_range",
    "train.beta": "objective.kl",
    "train.lora_path": "policy.adapter",
}
"""The keys whose value is taken over as it is."""
WITHOUT: dict[str, tuple[Any, str]] = {
    "allow_tf32": (True, "PyTorch's own setting is used"),
    "pretrained.revision": ("main", "download that revision and name its folder in policy.model"),
    "train.use_8bit_adam": (False, "AdamW is in fp32; learner.optimizer=adamw_offload saves GPU memory"),
    "fsdp_optimizer_offload": (False, "see learner.optimizer=adamw_offload"),
    "per_prompt_stat_tracking": (True, "rewards are always compared within a prompt"),
    "sample.kl_reward": (0, "objective.kl is a term of the loss"),
    "train.clip_range_lt": (None, "objective.clip_range is the same on both sides"),
    "train.clip_range_gt": (None, "objective.clip_range is the same on both sides"),
    "resume_from": (None, "continue a run with `tempflow train runs/NAME --resume`"),
}
"""Keys without a counterpart: the value that needs none, and what to do instead."""
SILENT = {"run_name", "logdir", "save_dir", "prompt_fn_kwargs", "debug", "sample.batch_size"}
"""Keys of names and folders, which follow from the recipe's name, and keys that no script of flow_grpo reads."""
MODELS = {
    "stable-diffusion-3": "sd35_medium",
    "sd3": "sd35_medium",
    "flux.1-dev": "flux_dev",
    "qwen-image": "qwen_image",
}
"""The layer of a model, by the beginning of its name."""
OTHER_KINDS = re.compile(r"wan2|kontext|edit|bagel", re.IGNORECASE)
"""Models that edit images or make videos."""
PROMPTS = {
    "general_ocr": ("train.txt", "test.txt"),
    "geneval": ("train_metadata.jsonl", "test_metadata.jsonl"),
}
"""The files of a data set, by `prompt_fn`."""
REWARDS: dict[str, dict[str, Any]] = {
    "jpeg_compressibility": {"scorer": "jpeg_size", "options": {"sign": -1}},
    "jpeg_incompressibility": {"scorer": "jpeg_size"},
}
"""Rewards that have another name here."""
STEPS = 1200
"""Training steps of a recipe whose file does not say when to stop."""
ENDLESS = 100_000
"""flow_grpo's `num_epochs` where a run is stopped by hand."""
