"""What the three trainings share: a resumable loop's state, an average of the weights, batches.

A run's randomness is a function of (seed, step): a run that was killed and resumed draws the same
batches and the same noise as one that was not.
"""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch


def pick_device():
    """CUDA where there is one, else the CPU with two threads (SAMPLE_THREADS changes that)."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(int(os.environ.get("SAMPLE_THREADS", "2")))
    return torch.device("cpu")


def step_generators(seed, step):
    """(numpy generator for indices and augmentation, torch CPU generator for noise) of one step."""
    torch_rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return np.random.default_rng([seed, step]), torch_rng


def to_tensor(images, device):
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    batch = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1


def learning_rate(step, total, peak, warmup=200, floor=0.02, hold=0.65):
    """Linear warm-up, constant until `hold` of the run, then a half cosine down to `floor`.

    The long constant part lets a run be lengthened or cut short by another `total` on resuming.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    t = min(max(step / total - hold, 0) / (1 - hold), 1)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t)))


class Run:
    """Checkpoint, average of the weights (EMA) and log of one training.

    `modules` is {name: module}. The average starts late-heavy: its decay grows with the step, so
    that a short run is not dragged down by its first weights.
    """

    def __init__(self, folder, modules, optimizer, decay=0.999, every=60):
        self.folder, self.modules, self.optimizer = Path(folder), modules, optimizer
        self.decay, self.every, self.step, self.losses = decay, every, 0, []
        self.folder.mkdir(parents=True, exist_ok=True)
        self.average = {
            name: {k: v.detach().clone() for k, v in module.state_dict().items()}
            for name, module in modules.items()
        }
        self.seconds, self.started, self.saved = 0.0, time.time(), time.time()
        if self.path.exists():
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, module in modules.items():
                module.load_state_dict(state["modules"][name])
                for key, value in state["average"][name].items():
                    self.average[name][key].copy_(value)
            optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
            print(f"resumed at step {self.step}", flush=True)

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

    def set_rate(self, rate):
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def advance(self, losses, total, log_every=50):
        """After a step: average the weights, log, save now and then."""
        self.step += 1
        if self.step % 4 == 0 or self.step == total:
            self.update_average()
        self.losses.append(losses)
        if self.step % log_every == 0 or self.step == total:
            mean = {k: float(np.mean([x[k] for x in self.losses])) for k in losses}
            line = {"step": self.step, **{k: round(v, 5) for k, v in mean.items()}}
            line["seconds"] = round(self.seconds + time.time() - self.started, 1)
            with open(self.folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            self.losses = []
        if time.time() - self.saved > self.every or self.step == total:
            self.save()

    def update_average(self):
        """Move the average by four steps at once: every fourth step is enough."""
        decay = min(self.decay, (1 + self.step) / (20 + self.step)) ** 4
        with torch.no_grad():
            for name, module in self.modules.items():
                for key, value in module.state_dict().items():
                    kept = self.average[name][key]
                    if value.is_floating_point():
                        kept.lerp_(value, 1 - decay)
                    else:
                        kept.copy_(value)

    def use_average(self):
        """Put the averaged weights into the modules (for measuring and saving the result)."""
        for name, module in self.modules.items():
            module.load_state_dict(self.average[name])
            module.eval()


def final_line(folder):
    """The last line of a run's log, as a dictionary (empty if there is none)."""
    path = Path(folder) / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1]) if lines else {}
