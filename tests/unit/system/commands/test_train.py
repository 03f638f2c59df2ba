"""`tempflow train` as far as it gets without Ray: dry runs, and mistakes."""


def test_dry_run_counts_what_a_step_costs_and_starts_nothing(recipe, in_process, tmp_path):
    done = in_process("train", recipe, "--dry-run")
    assert done.returncode == 0, done.stderr
    nfe = 3 * (2 * 3 + 2 * 3 * (3 + 2 + 1))
    images, learning = 3 * 2 * 3 * 3, 3 * 3 * 2 * 3
    assert f"{nfe} NFE of sampling, {images} images, {learning} NFE of learning" in done.stdout
    assert not (tmp_path / "runs").exists()
