"""Whether a GPU can run a policy: its kernels, its number types and its attention back ends."""

import pytest

from actors.policy.card import card_fault
from actors.policy.settings import PolicySettings

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
"""The architectures of a build of PyTorch for CUDA 13."""
BF16, FP32 = {"dtype": "bf16"}, {"dtype": "fp32"}


@pytest.mark.parametrize(
    ("settings", "capability", "built_for", "fault"),
    [
        (BF16, (9, 0), CUDA_13, None),
        (BF16, (8, 9), CUDA_13, None),  # an L40S runs the code for 8.6 and 8.0
        (BF16, (9, 0), [], None),  # what the build is for is not known
        (BF16, (9, 0), ["gfx90a"], None),
        (FP32, (7, 5), CUDA_13, None),
        (FP32, (7, 0), CUDA_13, r"has compute capability 7.0, and PyTorch was built for sm_75, .*; install a build of"),
        (BF16, (8, 0), ["sm_86"], "has compute capability 8.0, and PyTorch was built for sm_86"),
        (BF16, (12, 0), ["sm_80", "sm_90"], "has compute capability 12.0, and"),
        (BF16, (12, 0), ["sm_80", "compute_90"], None),  # compiled for the GPU as it starts
        (BF16, (7, 5), CUDA_13, r"does not compute in bf16 \(.* is 7.5\); set policy.dtype to fp32$"),
        (FP32 | {"vae_dtype": "bf16"}, (7, 5), CUDA_13, r"; set policy.vae_dtype to fp32$"),
        (BF16 | {"vae_dtype": "bf16"}, (7, 5), CUDA_13, r"; set policy.dtype and policy.vae_dtype to fp32$"),
        (FP32 | {"attention": "flash"}, (7, 5), CUDA_13, "policy.attention=flash needs 8.0; name another back end"),
        (BF16 | {"attention": "_flash_3"}, (8, 9), CUDA_13, "8.9, and policy.attention=_flash_3 needs 9.0"),
        (BF16 | {"attention": "_flash_3"}, (9, 0), CUDA_13, None),
        (FP32 | {"attention": "_native_efficient"}, (7, 5), CUDA_13, None),
    ],
)
def test_what_a_gpu_lacks_is_named(settings, capability, built_for, fault):
    found = card_fault(PolicySettings(model="any", **settings), capability, built_for)
    if fault is None:
        assert found is None
    else:
        with pytest.raises(AssertionError, match=fault):
            raise AssertionError(found)
