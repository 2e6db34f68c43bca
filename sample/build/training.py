"""Shared code of the trainings: state of a resumable loop, average of weights, batches, waiting.

A run's randomness is a function of (seed, step): a killed and resumed run draws the same batches
and the same noise as an uninterrupted run.
"""

import hashlib
import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch


def pick_device():
    """CUDA where there is one, else the CPU with two threads (SAMPLE_THREADS changes that)."""
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        return torch.device("cuda")
    torch.set_num_threads(int(os.environ.get("SAMPLE_THREADS", "2")))
    return torch.device("cpu")


def autocast(device):
    """bfloat16 if the device computes in it; other CPUs would take seven times as long."""
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def generator(seed, step, device):
    """The random generator of one step, on the device, so that nothing waits for the CPU."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + step)


def to_tensor(images, device=None):
    """uint8 [B, H, W, 3], array or tensor -> float32 [B, 3, H, W] in [-1, 1], channels last."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    batch = images.to(device)
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1


def add_budget(parser, steps):
    """Flags that say how long a training lasts: steps, or wall clock, whichever ends first."""
    parser.add_argument(
        "--steps", type=int, help=f"default: {steps}, or what --seconds or --deadline allows"
    )
    parser.add_argument("--seconds", type=float, help="wall clock from the first step on")
    parser.add_argument("--deadline", type=float, help="Unix time of the last step")
    parser.set_defaults(default_steps=steps)


def seconds_left(args):
    """Seconds until the end of a training that would begin now; infinite if only steps decide."""
    left = [args.seconds] if args.seconds else []
    left += [args.deadline - time.time()] if args.deadline else []
    return min(left, default=math.inf)


def add_wait(parser):
    parser.add_argument(
        "--wait",
        type=float,
        default=0,
        help="seconds to wait for files that another command is making",
    )


def wait_until(ready, seconds, what):
    """Wait until `ready()`; after `seconds`, end the program and say that `what` is absent."""
    end = time.time() + seconds
    while not ready():
        if time.time() >= end:
            raise SystemExit(f"{what} is not there: run the stage that makes it first, or --wait")
        time.sleep(0.5)


def write_folder(out, save):
    """Call `save(folder)` on a new folder, which then takes the place of `out`: whole or absent.

    Configurations lose the name of the folder that their weights were read from.
    """
    out = Path(out)
    part = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save(part)
    for path in part.rglob("config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


def fingerprint(*modules):
    """Eight hex digits of the weights; storage as float16 does not change them."""
    digest = hashlib.sha256()
    for module in modules:
        for key, value in sorted(module.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().half().numpy().tobytes())
    return digest.hexdigest()[:8]


def learning_rate(step, done, peak, warmup=200, floor=0.02, hold=0.65):
    """Linear warm-up, constant until `hold` of the run, then a half cosine down to `floor`.

    `done` is the part of the run that is over, 0 to 1; warm-up takes at most a tenth of the run.
    Because of the long constant part, a resumed run may become longer or shorter.
    """
    if step < warmup and done < 0.1:
        return peak * max((step + 1) / warmup, done / 0.1)
    t = min(max(done - hold, 0) / (1 - hold), 1)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t)))


def update(optimizer, loss, limit=1.0):
    """One step of a fused optimizer with clipped gradients; no step if they are not finite."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(weights, limit)
    # torch's GradScaler gives this number to a fused optimizer, which reads it on the device.
    optimizer.found_inf = (~norm.isfinite()).float()
    optimizer.step()


class Run:
    """Checkpoint, average of the weights (EMA), learning rate and log of one training.

    `modules` is {name: module}; `args` has the flags of `add_budget` and `lr`. The decay of the
    average grows with the step, so that the first weights hardly count in a short run. Use:

        while run.goes_on():
            ...
            run.advance({"loss": loss})
    """

    def __init__(self, folder, modules, optimizer, args, decay=0.999, warmup=200, every=60):
        self.folder, self.modules, self.optimizer = Path(folder), modules, optimizer
        self.decay, self.warmup, self.every = decay, warmup, every
        self.step, self.losses, self.names, self.done = 0, [], [], 0.0
        self.folder.mkdir(parents=True, exist_ok=True)
        self.average = {
            name: {k: v.detach().clone() for k, v in module.state_dict().items()}
            for name, module in modules.items()
        }
        self.seconds, self.started, self.saved = 0.0, time.time(), time.time()
        self.peak, self.deadline = args.lr, self.started + seconds_left(args)
        self.steps = args.steps or (args.default_steps if self.deadline == math.inf else math.inf)
        if self.path.exists():
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, module in modules.items():
                module.load_state_dict(state["modules"][name])
                for key, value in state["average"][name].items():
                    self.average[name][key].copy_(value)
            optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
            print(f"resumed at step {self.step}", flush=True)
        self.first = self.step

    @property
    def path(self):
        return self.folder / "checkpoint.pt"

    def save(self):
        state = {
            "modules": {n: m.state_dict() for n, m in self.modules.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds + time.time() - self.started,
        }
        part = self.path.with_suffix(".tmp")
        torch.save(state, part)
        os.replace(part, self.path)
        self.saved = time.time()

    def part_done(self):
        """How much of the run is over, 0 to 1, by steps or by the clock: the larger counts."""
        left = max(self.deadline - time.time(), 0)
        used = self.seconds + time.time() - self.started  # a resumed run adds its earlier seconds
        return min(max(self.step / self.steps, used / (used + left) if left else 1.0), 1.0)

    def goes_on(self):
        """Whether there is another step, and its learning rate; the last time, log and save."""
        self.done = self.part_done()
        if self.done < 1:
            rate = learning_rate(self.step, self.done, self.peak, self.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            return True
        if self.step > self.first:
            self.update_average()
            self.log()
            self.save()
        return False

    def advance(self, losses):
        """After a step: average the weights, log, save now and then. Losses stay on the device."""
        self.step += 1
        self.names = list(losses)
        self.losses.append(torch.stack([x.detach().float() for x in losses.values()]))
        if self.step % 4 == 0:
            self.update_average()
        if self.step % 50 == 0:
            self.log()
        if time.time() - self.saved > self.every:
            self.save()

    def log(self):
        if not self.losses:
            return
        mean = torch.stack(self.losses).mean(0).tolist()
        line = {
            "step": self.step,
            **{k: round(v, 5) for k, v in zip(self.names, mean, strict=True)},
        }
        line["seconds"] = round(self.seconds + time.time() - self.started, 1)
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        self.losses = []

    @torch.no_grad()
    def update_average(self):
        """Move the average by four steps at once: every fourth step is enough."""
        decay = min(self.decay, (1 + self.step) / (20 + self.step)) ** 4
        kept, values = [], []
        for name, module in self.modules.items():
            for key, value in module.state_dict().items():
                if value.is_floating_point():
                    kept.append(self.average[name][key])
                    values.append(value)
                else:
                    self.average[name][key].copy_(value)
        torch._foreach_lerp_(kept, values, 1 - decay)

    def use_average(self):
        """Put the averaged weights into the modules (for measuring and saving the result)."""
        for name, module in self.modules.items():
            module.load_state_dict(self.average[name])
            module.eval()


def write_processor(out, kind, **own):
    """preprocessor_config.json of images in [-1, 1], as `to_tensor` makes them, and keys `own`."""
    processor = {
        "image_processor_type": kind,
        "do_resize": True,
        **own,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")


def write_result(folder, result):
    """Print a run's result with the last line of its log, and keep both in result.json."""
    result = {**result, **final_line(folder)}
    print(json.dumps(result), flush=True)
    (Path(folder) / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def final_line(folder):
    """The last line of a run's log, as a dictionary (empty if there is none)."""
    path = Path(folder) / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else {}
