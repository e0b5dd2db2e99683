"""The detectors that the paper compares, as settings of one model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crad.config import Config
from crad.model.memories import InterpolationName, MemoryName

LOCAL_RESOLUTION = (8, 8)
GLOBAL_RESOLUTION = (4, 4)


@dataclass(frozen=True)
class Variant:
    """A detector: the kind of each memory, and the parts of CRAD that it has.

    Attributes:
        local: the local memory.
        global_: the global memory.
        local_resolution: entries per axis of the local memory, as in `crad.CRAD`.
        global_resolution: the same of the global memory.
        refinement: whether the reconstruction is refined (equations 5 and 6).
        jitter: whether local coordinates are jittered in training (section 3.3).
        separate: a model for each class instead of one for all.
        interpolation: of grids, as in `crad.CRAD`.
    """

    local: MemoryName = "grid"
    global_: MemoryName = "grid"
    local_resolution: tuple[int, ...] = LOCAL_RESOLUTION
    global_resolution: tuple[int, ...] = GLOBAL_RESOLUTION
    refinement: bool = True
    jitter: bool = True
    separate: bool = False
    interpolation: InterpolationName = "linear"

    @property
    def name(self) -> str:
        """The name in tables and of folders: ``crad``, ``crad-no-jitter``, ``local-vq-64``.

        CRAD is named after the parts that it lacks, a memory alone after those that it has.
        """
        parts = ["crad"]
        if self.global_ == "none":
            parts = ["local", self.local, _entries(self.local, self.local_resolution)]
        elif self.local == "none":
            parts = ["global", self.global_, _entries(self.global_, self.global_resolution)]
        has = {"refinement": self.refinement, "jitter": self.jitter}
        if parts[0] == "crad":
            parts += [f"no-{part}" for part, is_there in has.items() if not is_there]
        else:
            parts += [part for part, is_there in has.items() if is_there]
        others = {"simplex": self.interpolation == "simplex", "separate": self.separate}
        return "-".join([*parts, *(part for part, is_there in others.items() if is_there)])

    def config(self, base: Config, seed: int) -> Config:
        """The settings of this detector.

        Args:
            base: all other settings.
            seed: of the run.
        """
        model = replace(
            base.model,
            local_memory=self.local,
            local_resolution=self.local_resolution,
            global_memory=self.global_,
            global_resolution=self.global_resolution,
            refinement_off=not self.refinement,
            interpolation=self.interpolation,
        )
        jitter_prob = base.training.jitter_prob if self.jitter else 0.0
        training = replace(base.training, seed=seed, jitter_prob=jitter_prob)
        return replace(base, model=model, training=training)


CRAD = Variant()
CRAD_SEPARATE = Variant(separate=True)
NO_JITTER = Variant(jitter=False)
NO_REFINEMENT = Variant(refinement=False, jitter=False)


def local_only(memory: MemoryName, resolution: Sequence[int]) -> Variant:
    """A local memory alone, without refinement and jitter, as in table 1."""
    return Variant(
        local=memory,
        global_="none",
        local_resolution=tuple(resolution),
        refinement=False,
        jitter=False,
    )


def global_only(memory: MemoryName, resolution: Sequence[int]) -> Variant:
    """A global memory alone, without refinement and jitter, as in table 1."""
    return Variant(
        local="none",
        global_=memory,
        global_resolution=tuple(resolution),
        refinement=False,
        jitter=False,
    )


LOCAL = local_only("grid", LOCAL_RESOLUTION)
GLOBAL = global_only("grid", GLOBAL_RESOLUTION)

LOCAL_VQ_64 = local_only("vq", [64])
LOCAL_VQ_256 = local_only("vq", [256])
LOCAL_ATTENTION_64 = local_only("attention", [64])
LOCAL_ATTENTION_256 = local_only("attention", [256])
GLOBAL_VQ_16 = global_only("vq", [16])
GLOBAL_VQ_64 = global_only("vq", [64])
GLOBAL_ATTENTION_16 = global_only("attention", [16])
GLOBAL_ATTENTION_64 = global_only("attention", [64])


def _entries(memory: MemoryName, resolution: Sequence[int]) -> str:
    """``8x8`` of a grid, whose axes matter; ``64`` of another memory."""
    return "x".join(map(str, resolution)) if memory == "grid" else str(math.prod(resolution))
