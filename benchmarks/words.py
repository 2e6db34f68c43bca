"""Photos and words of the sample that two benchmarks share, and the losses of words."""

import statistics

K, SEED, NUM_VECTORS = 4, 0, 4


def class_names(args) -> list[str]:
    return dataset(args, "train").class_names[: args.classes]


def dataset(args, split: str):
    from semantic_aug.datasets import build_dataset

    few = {"seed": SEED, "examples_per_class": K} if split == "train" else {}
    return build_dataset("mvip", split, data_dir=args.data_dir, **few)


def load_model(args):
    import torch

    from semantic_aug.diffusion.inspecting import inspect_model
    from semantic_aug.diffusion.loading import load_pipeline

    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.precision]
    return load_pipeline(inspect_model(args.model), torch.device(args.device), dtype)


def losses_on_validation_photos(args, pipeline, rows_of: dict, seeds: int = 4) -> dict:
    """Denoising loss of each class, on photos that no word has seen, over fixed noises.

    Args:
        rows_of: for each name of a set of words, `{class: rows}`, or None for the initial words.
        seeds: of 32 noises each.
    """
    import torch

    from semantic_aug.diffusion.loading import noise_scheduler_of, text_encoders
    from semantic_aug.images.reading import image_to_tensor
    from semantic_aug.words.losses import latent_posterior
    from semantic_aug.words.prompts import tokenise
    from semantic_aug.words.rows import initial_rows, initializer_id
    from semantic_aug.words.training import TrainingSettings, Word, validation_losses

    noise_scheduler = noise_scheduler_of(pipeline)
    prompts = tokenise(pipeline, ["a photo of a {}"], "<word>", NUM_VECTORS)
    settings = TrainingSettings(1, 1, 1, 0.0, "constant", 0)
    (tokenizer, encoder), *_ = text_encoders(pipeline)
    table = encoder.get_input_embeddings().weight
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    photos, posteriors, losses = dataset(args, "val"), {}, {}
    for name in class_names(args):
        images = [image_to_tensor(photos.get_image_by_idx(i), side) for i in photos.indices([name])]
        each = [latent_posterior(pipeline.vae, image) for image in images]
        posteriors[name] = tuple(torch.stack(parts) for parts in zip(*each))
    for key, rows in rows_of.items():
        words = []
        for name in class_names(args):
            start = table[initializer_id(tokenizer, None, name)]
            first = initial_rows(start, NUM_VECTORS, torch.Generator().manual_seed(0))
            own = first if rows is None else rows[name]
            words.append(
                Word([own], posteriors[name], settings, torch.Generator(), pipeline.device)
            )
        draws = []
        for seed in range(seeds):
            generators = [torch.Generator().manual_seed(seed) for _ in words]
            draws.append(validation_losses(pipeline, noise_scheduler, words, generators, prompts))
        losses[key] = [statistics.mean(of_class) for of_class in zip(*draws)]
    return losses
