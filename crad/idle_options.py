"""Options that have no effect without another one."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from crad.backbones import BACKBONES, SCATTERING
from crad.config import PRESETS, Config, settings


def _any_memory(*names: str) -> Callable[[Config], bool]:
    return lambda config: bool({config.model.local_memory, config.model.global_memory} & {*names})


def _takes_layers(config: Config) -> bool:
    return config.model.backbone not in BACKBONES


def _refined(config: Config) -> bool:
    return not config.model.refinement_off


def _calibrates(config: Config) -> bool:
    return config.decisions.calibrates


def _groups_images(config: Config) -> bool:
    size = config.training.norm_batch
    return size is None or size < config.training.batch_size


def _jitters_or_not(config: Config, other: float) -> bool:
    """Whether the other part of the jitter lets it be, or both are off, which is one choice."""
    off = config.training.jitter_std == config.training.jitter_prob == 0
    return config.model.local_memory == "grid" and (other > 0 or off)


_NEEDS: Mapping[str, tuple[str, Callable[[Config], bool]]] = MappingProxyType(
    {
        "--components": (
            "--backbone scattering",
            lambda config: config.model.backbone == SCATTERING,
        ),
        "--layers": ("a timm model as --backbone", _takes_layers),
        "--combine": (
            "a timm model as --backbone and more than one of --layers",
            lambda config: _takes_layers(config) and len(config.model.layers or (0, 0)) > 1,
        ),
        "--overlap": ("--tile", lambda config: config.model.tile is not None),
        "--absent": ("a memory that is none", _any_memory("none")),
        "--expansion": ("--depth above 0", lambda config: config.model.depth > 0),
        "--norm-batch": (
            "--batch-size above it and --depth above 0",
            lambda config: _groups_images(config) and config.model.depth > 0,
        ),
        "--keep": (
            "--calibration-share above 0",
            lambda config: config.training.keep == "last" or config.decisions.held_back > 0,
        ),
        "--false-alarm-rate": ("--calibration-share above 0 or --calibration-folds", _calibrates),
        "--contamination": ("--calibration-share above 0 or --calibration-folds", _calibrates),
        "--pixel-false-alarm-rate": (
            "--calibration-share above 0 or --calibration-folds",
            _calibrates,
        ),
        "--local.resolution": (
            "a --local.memory other than none",
            lambda config: config.model.local_memory != "none",
        ),
        "--local.jitter-std": (
            "--local.memory grid and --local.jitter-prob above 0",
            lambda c: _jitters_or_not(c, c.training.jitter_prob),
        ),
        "--local.jitter-prob": (
            "--local.memory grid and --local.jitter-std above 0",
            lambda c: _jitters_or_not(c, c.training.jitter_std),
        ),
        "--global.resolution": (
            "a --global.memory other than none",
            lambda config: config.model.global_memory != "none",
        ),
        "--grid.interpolation": ("a memory that is grid", _any_memory("grid")),
        "--discrete.address": ("a memory that is vq or attention", _any_memory("vq", "attention")),
        "--discrete.shrinkage": ("a memory that is attention", _any_memory("attention")),
        "--refinement.mse-weight": ("no --refinement.off", _refined),
        "--refinement.cosine-weight": ("no --refinement.off", _refined),
        "--refinement.mse-threshold": (
            "no --refinement.off and --refinement.mse-weight above 0",
            lambda config: _refined(config) and config.model.mse_weight > 0,
        ),
    }
)
"""Options that have no effect without another: what they need, and whether a run has it."""


def without_effect(config: Config) -> str | None:
    """Name the settings that differ from those of the preset but have no effect; None if none."""
    held, usual = settings(config), settings(PRESETS[config.model.preset])
    idle = [
        f"{name} (needs {need})"
        for name, (need, is_met) in _NEEDS.items()
        if held[name] != usual[name] and not is_met(config)
    ]
    return f"no effect: {', '.join(idle)}" if idle else None
