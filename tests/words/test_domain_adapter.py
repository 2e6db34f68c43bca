"""The LoRA of a trial: training it beside its words, and edits with it."""

from pathlib import Path

import pytest

import fine_tune


@pytest.fixture
def tune(workdir, photos, small_model, called):
    """Run fine_tune.py on the small photos; returns exit status and what it says."""

    def tune(*flags, name="e", model=small_model):
        argv = [
            "--dataset=folder", f"--data_dir={photos}", f"--experiment_name={name}",
            f"--pretrained_model_name_or_path={model}", "--max_train_steps=2", "--device=cpu",
            "--train_batch_size=1", "--report_to=none", *flags,
        ]  # fmt: skip
        status, out, err = called(fine_tune.main, *argv)
        return status, out + err

    return tune


def test_smoke(tune):
    print(
        tune(
            "--lora_rank=2", "--lora_steps=3", "--lora_learning_rate=0.1", "--prior_preservation=2"
        )
    )
    print(*Path("output").rglob("*"), sep="\n")
    from safetensors import safe_open

    with safe_open("output/e/fine-tuned/seed=0_ex=1/pytorch_lora_weights.safetensors", "pt") as f:
        print(f.metadata())
        print(list(f.keys())[:4], len(list(f.keys())))
    print(
        tune(
            "--lora_rank=2", "--lora_steps=3", "--lora_learning_rate=0.1", "--prior_preservation=2"
        )
    )
    print(
        tune(
            "--lora_rank=3", "--lora_steps=3", "--lora_learning_rate=0.1", "--prior_preservation=2"
        )
    )
    assert 0
