"""Two configurations of flow_grpo with the settings of its config/grpo.py, written in its form."""

CONFIG = """
import os
import imp
import ml_collections

base = imp.load_source("base", os.path.join(os.path.dirname(__file__), "base.py"))


def shared():
    config = base.get_config()
    config.pretrained.model = "stabilityai/stable-diffusion-3.5-medium"
    config.dataset = os.path.join(os.getcwd(), "dataset/pickscore")
    config.use_lora = True
    config.sample.batch_size = 8
    config.prompt_fn = "general_ocr"
    config.reward_fn = {"jpeg_compressibility": 1}
    return config


def batches(config, gpus, prompts):
    config.sample.num_batches_per_epoch = int(
        prompts / (gpus * config.sample.train_batch_size / config.sample.num_image_per_prompt)
    )
    assert config.sample.num_batches_per_epoch % 2 == 0, "two optimizer steps in an epoch"
    config.train.batch_size = config.sample.train_batch_size
    config.train.gradient_accumulation_steps = config.sample.num_batches_per_epoch // 2


def general_ocr_sd3():
    gpu_number = 32
    config = shared()
    config.dataset = os.path.join(os.getcwd(), "dataset/ocr")
    config.sample.num_steps = 10
    config.sample.eval_num_steps = 40
    config.sample.guidance_scale = 4.5
    config.resolution = 512
    config.sample.train_batch_size = 9
    config.sample.num_image_per_prompt = 24
    batches(config, gpu_number, 48)
    config.sample.test_batch_size = 16
    config.train.num_inner_epochs = 1
    config.train.timestep_fraction = 0.99
    config.train.beta = 0.04
    config.sample.global_std = True
    config.train.ema = True
    config.save_freq = config.eval_freq = 60
    config.save_dir = f"logs/{config.prompt_fn}/sd3.5-M"
    config.reward_fn = {"ocr": 1.0}
    return config


def pickscore_flux_fast():
    gpu_number = 32
    config = shared()
    config.pretrained.model = "black-forest-labs/FLUX.1-dev"
    config.sample.num_steps = 6
    config.sample.eval_num_steps = 28
    config.sample.guidance_scale = config.sample.eval_guidance_scale = 3.5
    config.resolution = 512
    config.sample.train_batch_size = 3
    config.sample.num_image_per_prompt = 24
    batches(config, gpu_number, prompts=48)
    config.sample.test_batch_size = 16
    config.train.clip_range = 1e-5
    config.train.beta = 0
    config.sample.global_std = False
    config.sample.same_latent = False
    config.sample.noise_level = 0.8
    config.sample.sde_window_size = 3
    config.sample.sde_window_range = (0, config.sample.num_steps // 2)
    config.sample.sde_type = "cps"
    config.train.ema = True
    config.mixed_precision = "bf16"
    config.save_freq = config.eval_freq = 30
    config.reward_fn = {"pickscore": 1.0}
    return config


def get_config(name):
    return globals()[name]()
"""
