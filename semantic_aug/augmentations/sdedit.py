"""Image-to-image edits in the manner of SDEdit (arXiv 2108.01073), and the prompts they follow.

Both diffusion augmentations are thin classes over these functions: they differ in the words that
stand for the class.
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
    """`prompt`, if its only fields are those of PROMPT_FIELDS, plainly written.

    Raises:
        UserError: unbalanced braces, another field, or attributes, indices and formats.
    """
    known = ", ".join(f"{{{field}}}" for field in PROMPT_FIELDS)
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise UserError(f"--prompt: {prompt!r}: {error}; {{{{ is a brace as such") from error
    for _, field, spec, conversion in parts:
        if field is not None and (field not in PROMPT_FIELDS or spec or conversion):
            raise UserError(f"--prompt: {prompt!r} has the field {{{field}}}; known: {known}")
    return prompt


def denoising_steps(strength: float, num_inference_steps: int) -> int:
    """How many of the steps SDEdit runs at this strength (equation 4 with t0 = strength)."""
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
    """`guidance_scale`, if it is finite: others make every image black."""
    if not math.isfinite(guidance_scale):
        raise UserError(f"--guidance_scale: got {guidance_scale:g}, expected a finite number")
    return guidance_scale


class SDEditor:
    """A pipeline with everything about an edit that is the same for all images.

    Args:
        pipeline: a loaded diffusers pipeline of Stable Diffusion, which is left as it is.
        aug: the name that records give this edit.
        components: parts that take the place of the pipeline's, by name.
        prompt: one or several, of which one is drawn for each image.
        negative_prompt: what no image shall show: it takes the place of the empty prompt in
            classifier-free guidance (arXiv 2207.12598, equation 6), and means nothing without.
        strength: how much of the photo is replaced, in (0, 1].
        guidance_scale: weight of classifier-free guidance, finite; 1 or less turns it off.
        mask: edit only the object.
        inverted: with `mask`, edit only what is not the object.
        mask_grow_radius: with `mask`, by how many of the photo's pixels the region grows; below
            0, it shrinks.
        mask_feather: with `mask`, width in the photo's pixels of the seam around the region.
        fit: how a photo that is no square gets into the model's: `pad`, `crop` or `squash`, see
            `framing.frame_of`.
        num_inference_steps: steps of a full denoising; strength times that many are run.
        resolution: side in pixels at which the model works; default its own.
        controlnet: a ControlNet for Canny edges (arXiv 2302.05543), see `adapters.load_controlnet`:
            edits keep the edges of their photo.
        controlnet_scale: its weight, at least 0.
        batch_size: images at once; default all that come together. It is halved for good where a
            GPU's memory does not suffice.
        safety_checker: says which images are flagged, see `adapters.load_safety_checker`.
        safety_retries: how often an image that is flagged is made again, with the noise that its
            generator gives next. One that is still flagged then is black.
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
        if mask:  # this pipeline's call takes no latents: it encodes by this method of its own
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

        With masks ([H, W], nonzero on the object) pixels outside the edited region are the
        source's own, but for a feathered seam.
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
        """Edited images, how often each was made, and which are black as they stay flagged."""
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
        """As many at once as are allowed and fit into memory."""
        count, states = len(images), [generator.get_state() for generator in generators]
        if count <= (self.batch_size or count):
            try:
                return self._edit_batch(images, prompts, regions, generators)
            except torch.cuda.OutOfMemoryError as error:
                if count == 1:
                    raise UserError(
                        "the GPU's memory does not suffice for a single image: use --low_memory, "
                        "--mixed_precision fp16, or a smaller --resolution"
                    ) from error
            torch.cuda.empty_cache()
            self.batch_size = (count + 1) // 2
            log.warning(
                "the GPU's memory does not suffice: %s at once", counted(self.batch_size, "image")
            )
            for generator, state in zip(generators, states):
                generator.set_state(state)
        edited = []
        size = self.batch_size or count  # what is edited meanwhile may halve it again
        for start in range(0, count, size):
            part = slice(start, start + size)
            edited += self._edit(
                images[part], prompts[part], regions and regions[part], generators[part]
            )
        return edited

    @torch.no_grad()
    def _edit_batch(self, images, prompts, regions, generators) -> list[Image.Image]:
        # Where parts wait in the CPU's memory, those that are shared know another edit's others.
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
        """What to do where the model gave no numbers, which would become black images."""
        ways = [f"a guidance_scale below {self.guidance_scale:g}"]
        if self.controlnet:
            ways.append(f"a controlnet_scale below {self.controlnet_scale:g}")
        if self.pipeline.unet.dtype == torch.float16:
            ways.insert(0, "--mixed_precision bf16 or no")
        return f"the model gave no numbers (NaN) for an image: try {', or '.join(ways)}"

    def _encode_prompt(self, prompt: str) -> dict[str, torch.Tensor]:
        """What the pipeline takes in place of a prompt: encoded once, for all photos of a class."""
        # The UNet of a latent consistency model is told the scale (arXiv 2310.04378, section 4.2).
        takes_guidance = self.pipeline.unet.config.time_cond_proj_dim is not None

        def encode():
            states = self.pipeline.encode_prompt(
                prompt=prompt,
                device=self.pipeline._execution_device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=self.guidance_scale > 1 and not takes_guidance,
                negative_prompt=self.negative_prompt or None,  # "" is not none to an SDXL
            )
            return {key: each for key, each in zip(_STATES, states) if each is not None}

        return _cached(self._prompts, prompt, encode)

    def _draw_latents(self, image: Image.Image, generator: torch.Generator) -> torch.Tensor:
        """Latents [1, C, h, w] drawn from a photo's posterior, which is computed once.

        The pipeline would encode the photo again for each of its variants. The draw is the one
        that it would make.
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
        """A draw from the posterior of an image, which `encode` gives where it is not known."""
        from diffusers.utils.torch_utils import randn_tensor

        mean, deviation = _cached(self._photos, key, encode)
        noise = randn_tensor(mean.shape, generator, mean.device, mean.dtype)
        return scale_latents(self.pipeline.vae, mean + deviation * noise)


# What a pipeline's encode_prompt returns, an SDXL's all four.
_STATES = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
CACHED = 256  # prompts, and photos: 40 and 70 MB for Stable Diffusion 1.x in float16


def _cached(cache: OrderedDict, key, make: Callable):
    """`cache[key]`, made where it is missing; what was not used for longest goes."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > CACHED:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


def fill_prompt(prompt: str, fields: Mapping[str, str]) -> str:
    """A prompt with its fields filled in.

    Raises:
        UserError: it has a field that is not among `fields`.
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
    """What fills each image's prompt: `name`, `description` where there is one, and `fields`.

    A name is written as its `words` say, or "ball bearing" for the class `ball_bearing`.
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
        UserError: one is missing.
    """
    without = [str(meta.get("source", meta["name"])) for meta in metadata if "mask" not in meta]
    if without:
        raise UserError(f"no mask for {', '.join(without)}, and --mask 1 needs one")
    return [np.asarray(meta["mask"]) for meta in metadata]


def pipeline_or_load(pipeline, model_path: str | None):
    """The pipeline given, or one loaded from `model_path` on the best device there is."""
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
