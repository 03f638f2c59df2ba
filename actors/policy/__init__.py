"""The policy: model families, schedule, SDE kernels, LoRA. Plain PyTorch, no Ray."""
