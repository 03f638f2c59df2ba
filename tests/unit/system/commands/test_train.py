"""`tempflow train` as far as it gets without Ray: dry runs, and mistakes."""


def test_dry_run_counts_what_a_step_costs_and_starts_nothing(recipe, in_process, tmp_path):
    done = in_process("train", recipe, "--dry-run")
    assert done.returncode == 0, done.stderr
    rows = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.count("│") > 4}
    nfe = 3 * (2 * 3 + 2 * 3 * (3 + 2 + 1))
    assert f" {nfe} " in rows["rollout"]
    assert f" {3 * 2 * 3 * 3} " in rows["rollout"]
    assert f" {3 * 3 * 2 * 3} " in rows["learner"]
    assert not (tmp_path / "runs").exists()
