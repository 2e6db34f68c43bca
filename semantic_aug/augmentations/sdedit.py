"""Image-to-image edits by SDEdit (arXiv 2108.01073), and their prompts.

Both diffusion augmentations are thin classes over these functions; they differ in the words for
the class.
"""

import functools
import hashlib
import itertools
import logging
import math
import string
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from semantic_aug import UserError, counted
from semantic_aug.diffusion.adapters import canny_edges
from semantic_aug.diffusion.inspecting import inspect_model, side_of
from semantic_aug.diffusion.loading import (
    encode_image,
    load_pipeline,
    pick_device,
    pick_dtype,
    scale_latents,
)
from semantic_aug.generative_augmentation import Edit
from semantic_aug.images.framing import (
    blend,
    frame_of,
    from_square,
    grow,
    mask_to_square,
    to_square,
)
from semantic_aug.settings.generation import DEFAULT_PROMPT, SAFETY_RETRIES
from semantic_aug.words.class_names import older_words

log = logging.getLogger(__name__)

PROMPT_FIELDS = ("name", "description", "token")


def check_prompt(prompt: str) -> str:
    """`prompt`, if its only fields are plain fields of PROMPT_FIELDS.

    Raises:
        UserError: unbalanced braces, another field, or attributes, indices and formats.
    """
    known = ", ".join(f"{{{field}}}" for field in PROMPT_FIELDS)
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise UserError(f"--prompt: {prompt!r}: {error}; {{{{ means a plain brace") from error
    for _, field, spec, conversion in parts:
        if field is not None and (field not in PROMPT_FIELDS or spec or conversion):
            raise UserError(f"--prompt: {prompt!r} has the field {{{field}}}; known: {known}")
    return prompt


def denoising_steps(strength: float, num_inference_steps: int) -> int:
    """The number of steps that SDEdit runs at this strength (equation 4 with t0 = strength)."""
    return min(int(num_inference_steps * strength), num_inference_steps)


def check_strength(strength: float, num_inference_steps: int, flag: str = "--strength") -> float:
    """`strength`, if it lies in (0, 1] and leaves at least one denoising step."""
    if not 0 < strength <= 1:
        raise UserError(f"{flag}: got {strength:g}, expected a number in (0, 1]")
    if denoising_steps(strength, num_inference_steps) < 1:
        at_least = itertools.count(int(1 / strength))  # rounding may ask for one more
        least = next(n for n in at_least if denoising_steps(strength, n))
        raise UserError(
            f"{flag}: {strength:g} of {num_inference_steps} steps is no step at all; "
            f"use --num_inference_steps {least} or more"
        )
    return strength


def check_guidance_scale(guidance_scale: float) -> float:
    """`guidance_scale`, if it is finite; other values make every image black."""
    if not math.isfinite(guidance_scale):
        raise UserError(f"--guidance_scale: got {guidance_scale:g}, expected a finite number")
    return guidance_scale


class SDEditor:
    """A pipeline with all settings of an edit that are the same for all images.

    Args:
        pipeline: a loaded diffusers pipeline of Stable Diffusion, which does not change.
        aug: the name of this edit in records.
        components: parts that replace the pipeline's parts, by name.
        prompt: a prompt or several; each image draws a prompt.
        negative_prompt: what images must not show. It replaces the empty prompt in classifier-free
            guidance (arXiv 2207.12598, equation 6), and has no effect without guidance.
        strength: share of the photo that is replaced, in (0, 1].
        guidance_scale: weight of classifier-free guidance, finite; 1 or less turns it off.
        mask: edit only the object.
        inverted: with `mask`, edit all but the object.
        mask_grow_radius: with `mask`, growth of the region in the photo's pixels; below 0, the
            region shrinks.
        mask_feather: with `mask`, width in the photo's pixels of the seam around the region.
        fit: how a photo fills the model's square: `pad`, `crop` or `squash`, see
            `framing.frame_of`.
        num_inference_steps: denoising steps at strength 1; an edit runs strength times as many.
        resolution: pixels per side of the model's square (default: the model's).
        controlnet: a ControlNet for Canny edges (arXiv 2302.05543), see `adapters.load_controlnet`:
            edits keep the edges of their photo.
        controlnet_scale: its weight, at least 0.
        batch_size: images per batch (default: all given images). It is halved permanently if the
            GPU's memory is too small.
        safety_checker: tells which images are flagged, see `adapters.load_safety_checker`.
        safety_retries: number of further attempts for a flagged image, each with the next noise of
            its generator. An image that stays flagged is black.
    """

    def __init__(
        self,
        pipeline,
        *,
        aug: str,
        components: Mapping | None = None,
        prompt: str | Sequence[str] = DEFAULT_PROMPT,
        negative_prompt: str = "",
        strength: float = 0.5,
        guidance_scale: float = 7.5,
        mask: bool = False,
        inverted: bool = False,
        mask_grow_radius: float = 0,
        mask_feather: float = 0,
        fit: str = "pad",
        num_inference_steps: int = 50,
        resolution: int | None = None,
        controlnet=None,
        controlnet_scale: float = 1.0,
        batch_size: int | None = None,
        safety_checker: Callable[[Sequence[Image.Image]], list[bool]] | None = None,
        safety_retries: int = SAFETY_RETRIES,
    ):
        from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

        if inverted and not mask:
            raise UserError("--inverted 1 needs --mask 1: there is no mask to invert")
        task = AutoPipelineForInpainting if mask else AutoPipelineForImage2Image
        self._prompts: OrderedDict[str, dict] = OrderedDict()
        self._photos: OrderedDict[bytes, tuple] = OrderedDict()
        components = {**(components or {}), **({"controlnet": controlnet} if controlnet else {})}
        self.pipeline = task.from_pipe(pipeline, **components)
        self.pipeline.set_progress_bar_config(disable=True)
        if mask:  # this pipeline takes no latents: it encodes photos itself
            self.pipeline._encode_vae_image = self._encode_pixels
        self.prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        for each in self.prompts:
            check_prompt(each)
        self.negative_prompt = negative_prompt
        self.aug, self.mask, self.inverted = aug, bool(mask), bool(inverted)
        self.strength = check_strength(float(strength), num_inference_steps)
        self.guidance_scale = check_guidance_scale(float(guidance_scale))
        self.num_inference_steps = num_inference_steps
        own = side_of(pipeline.unet.config.sample_size) * pipeline.vae_scale_factor
        self.resolution = resolution or own
        self.mask_grow_radius, self.mask_feather = mask_grow_radius, mask_feather
        self.fit, self.batch_size = fit, batch_size
        self.controlnet, self.controlnet_scale = controlnet, controlnet_scale
        self.safety_checker, self.safety_retries = safety_checker, safety_retries

    def __call__(
        self,
        images: Sequence[Image.Image],
        words: Sequence[Mapping[str, str]],
        masks: Sequence[np.ndarray] | None,
        generators: Sequence[torch.Generator],
    ) -> tuple[list[Image.Image], list[list[Edit]]]:
        """Edit images; `words[i]` fills the fields of image i's prompt.

        With masks ([H, W], nonzero on the object), pixels outside the edited region do not change,
        except in a feathered seam.
        """
        prompts = [
            fill_prompt(_draw(self.prompts, generator), fields)
            for fields, generator in zip(words, generators)
        ]
        regions = None
        if self.mask and masks is not None:
            regions = [grow((m > 0) != self.inverted, self.mask_grow_radius) for m in masks]
        edited, attempts, flagged = self._edit_safely(
            list(images), prompts, regions, list(generators)
        )
        same = (self.strength, self.guidance_scale, self.mask, self.inverted)
        edits = [[Edit(self.aug, p, *same, *each)] for p, *each in zip(prompts, attempts, flagged)]
        return edited, edits

    def _edit_safely(self, images, prompts, regions, generators) -> tuple[list, list, list]:
        """Edited images, the attempts for each, and the images that stay flagged and are black."""
        edited, attempts = self._edit(images, prompts, regions, generators), [1] * len(images)
        flagged = [False] * len(images)
        if self.safety_checker is None:
            return edited, attempts, flagged
        flagged = self.safety_checker(edited)
        for _ in range(self.safety_retries):
            again = [number for number, bad in enumerate(flagged) if bad]
            if not again:
                break
            made = self._edit(
                [images[n] for n in again],
                [prompts[n] for n in again],
                regions and [regions[n] for n in again],
                [generators[n] for n in again],
            )
            for number, image, bad in zip(again, made, self.safety_checker(made)):
                edited[number], flagged[number] = image, bad
                attempts[number] += 1
        for number, bad in enumerate(flagged):
            if bad:
                edited[number] = Image.new("RGB", images[number].size)
        return edited, attempts, flagged

    def _edit(self, images, prompts, regions, generators) -> list[Image.Image]:
        """Edit in the largest batches that `batch_size` and the memory allow."""
        count, states = len(images), [generator.get_state() for generator in generators]
        if count <= (self.batch_size or count):
            try:
                return self._edit_batch(images, prompts, regions, generators)
            except torch.cuda.OutOfMemoryError as error:
                if count == 1:
                    raise UserError(
                        "the GPU's memory is too small for a single image: use --low_memory, "
                        "--mixed_precision fp16, or a smaller --resolution"
                    ) from error
            torch.cuda.empty_cache()
            self.batch_size = (count + 1) // 2
            log.warning(
                "the GPU's memory is too small: now %s per batch", counted(self.batch_size, "image")
            )
            for generator, state in zip(generators, states):
                generator.set_state(state)
        edited = []
        size = self.batch_size or count  # the edit may halve it again
        for start in range(0, count, size):
            part = slice(start, start + size)
            edited += self._edit(
                images[part], prompts[part], regions and regions[part], generators[part]
            )
        return edited

    @torch.no_grad()
    def _edit_batch(self, images, prompts, regions, generators) -> list[Image.Image]:
        # With offloading, hooks of shared parts may still belong to another edit's pipeline.
        self.pipeline.maybe_free_model_hooks()
        frames = [frame_of(image.size, self.resolution, self.fit) for image in images]
        squares = [to_square(image, frame) for image, frame in zip(images, frames)]
        encoded = [self._encode_prompt(prompt) for prompt in prompts]
        arguments = {
            **{key: torch.cat([each[key] for each in encoded]) for key in encoded[0]},
            "strength": self.strength,
            "guidance_scale": self.guidance_scale,
            "num_inference_steps": self.num_inference_steps,
            "generator": generators,
        }
        if self.mask:
            arguments["image"] = squares
            arguments["mask_image"] = [mask_to_square(r, f) for r, f in zip(regions, frames)]
            arguments["height"] = arguments["width"] = self.resolution
        else:
            latents = [self._draw_latents(*each) for each in zip(squares, generators)]
            arguments["image"] = torch.cat(latents)
        if self.controlnet:
            arguments["control_image"] = canny_edges(squares)
            arguments["controlnet_conditioning_scale"] = self.controlnet_scale
        pixels = self.pipeline(**arguments, output_type="np").images
        if not np.isfinite(pixels).all():
            raise UserError(self._what_overflows())
        edited = self.pipeline.image_processor.numpy_to_pil(pixels)
        edited = [from_square(*each) for each in zip(edited, images, frames)]
        if self.mask:
            seams = [self.mask_feather] * len(images)
            edited = [blend(*each) for each in zip(edited, images, regions, seams)]
        return edited

    def _what_overflows(self) -> str:
        """The message if the model gave NaN, which would become a black image."""
        ways = [f"a guidance_scale below {self.guidance_scale:g}"]
        if self.controlnet:
            ways.append(f"a controlnet_scale below {self.controlnet_scale:g}")
        if self.pipeline.unet.dtype == torch.float16:
            ways.insert(0, "--mixed_precision bf16 or no")
        return f"the model gave no numbers (NaN) for an image: try {', or '.join(ways)}"

    def _encode_prompt(self, prompt: str) -> dict[str, torch.Tensor]:
        """The pipeline's arguments for a prompt, encoded once for all photos of a class."""
        # The UNet of a latent consistency model takes the scale (arXiv 2310.04378, section 4.2).
        takes_guidance = self.pipeline.unet.config.time_cond_proj_dim is not None

        def encode():
            states = self.pipeline.encode_prompt(
                prompt=prompt,
                device=self.pipeline._execution_device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=self.guidance_scale > 1 and not takes_guidance,
                negative_prompt=self.negative_prompt or None,  # for an SDXL, "" is not None
            )
            return {key: each for key, each in zip(_STATES, states) if each is not None}

        return _cached(self._prompts, prompt, encode)

    def _draw_latents(self, image: Image.Image, generator: torch.Generator) -> torch.Tensor:
        """Latents [1, C, h, w] drawn from a photo's posterior, which is computed once.

        The pipeline would encode the photo again for each variant. The draw equals the pipeline's.
        """
        pipeline = self.pipeline

        def encode():
            pixels = pipeline.image_processor.preprocess(image)
            return encode_image(pipeline.vae, pixels.to(pipeline._execution_device))

        return self._drawn(hashlib.sha256(image.tobytes()).digest(), encode, generator)

    def _encode_pixels(self, image: torch.Tensor, generator) -> torch.Tensor:
        """Latents [N, C, h, w] of pixels [N, 3, H, W] in [-1, 1], each encoded once."""
        vae, latents = self.pipeline.vae, []
        for pixels, own in zip(image.split(1), generator):
            key = hashlib.sha256(pixels.float().cpu().numpy().tobytes()).digest()
            latents.append(self._drawn(key, functools.partial(encode_image, vae, pixels), own))
        return torch.cat(latents).to(image.dtype)

    def _drawn(self, key: bytes, encode: Callable, generator: torch.Generator) -> torch.Tensor:
        """A draw from the posterior of an image, which `encode` computes if it is not cached."""
        from diffusers.utils.torch_utils import randn_tensor

        mean, deviation = _cached(self._photos, key, encode)
        noise = randn_tensor(mean.shape, generator, mean.device, mean.dtype)
        return scale_latents(self.pipeline.vae, mean + deviation * noise)


# The results of a pipeline's encode_prompt; only an SDXL gives all four.
_STATES = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
CACHED = 256  # prompts, and photos: 40 and 70 MB for Stable Diffusion 1.x in float16


def _cached(cache: OrderedDict, key, make: Callable):
    """`cache[key]`, made if missing; the least recently used entry goes first."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > CACHED:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


def fill_prompt(prompt: str, fields: Mapping[str, str]) -> str:
    """A prompt with its fields filled in.

    Raises:
        UserError: the prompt has a field that is not in `fields`.
    """
    try:
        return prompt.format(**fields)
    except KeyError as error:
        (field,) = error.args
        reason = {
            "token": "only --aug textual-inversion has learned words",
            "description": f"the dataset describes no photo of {fields['name']!r}",
        }[field]
        raise UserError(f"--prompt: {prompt!r} asks for {{{field}}}, and {reason}") from None


def _draw(prompts: Sequence[str], generator: torch.Generator) -> str:
    if len(prompts) == 1:
        return prompts[0]
    return prompts[int(torch.randint(len(prompts), (), generator=generator))]


def words_of(metadata: Sequence[Mapping], **fields: Sequence[str]) -> list[dict[str, str]]:
    """The fields of each image's prompt: `name`, perhaps `description`, and `fields`.

    A name is written as in its `words`, by default "ball bearing" for the class `ball_bearing`.
    """
    words = [{k: m[k] for k in ("name", "description") if m.get(k)} for m in metadata]
    for each, meta in zip(words, metadata):
        each["name"] = meta.get("words") or older_words(meta["name"])
    for key, values in fields.items():
        for each, value in zip(words, values):
            each[key] = value
    return words


def masks_of(metadata: Sequence[Mapping]) -> list[np.ndarray]:
    """The masks in a batch's metadata.

    Raises:
        UserError: a mask is missing.
    """
    without = [str(meta.get("source", meta["name"])) for meta in metadata if "mask" not in meta]
    if without:
        raise UserError(f"no mask for {', '.join(without)}, and --mask 1 needs masks")
    return [np.asarray(meta["mask"]) for meta in metadata]


def pipeline_or_load(pipeline, model_path: str | None):
    """The given pipeline, or the pipeline of `model_path`, loaded on the fastest device."""
    if pipeline is not None:
        return pipeline
    if model_path is None:
        raise UserError(
            "no model is named: give --model_path, or in Python pipeline= or model_path= to the "
            "augmentation"
        )
    device = pick_device()
    dtype = pick_dtype(device, "no" if device.type == "cpu" else "fp16")
    return load_pipeline(inspect_model(model_path), device, dtype)
