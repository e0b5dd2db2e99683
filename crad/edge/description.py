"""What an exported file says of itself."""

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from crad.data.decoding import Decoding
from crad.data.frames import Frame
from crad.errors import CheckpointError, UsageError
from crad.scoring.calibration import Calibration, Threshold, Thresholds
from crad.scoring.interest import Interest

KEY = "crad"
"""The name under which a file holds its description, as JSON."""

VERSION = 1
"""Of the description; another one cannot be read."""

DECISIONS = ("good", "uncertain", "defect", "unknown")
"""What the numbers of the output ``decision`` mean; -1 is none, for lack of a threshold."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a file computes, and what its results mean.

    Attributes:
        crad: the version that wrote the file.
        classes: in the order of the output ``class``, in which -1 is none of them.
        recognises: whether the file tells the class of an image.
        frame: what images are brought to.
        resizes: whether the file does that itself, and takes images of any size.
        float_input: whether it takes float32 images (B, 3, H, W) in [0, 1] instead of uint8 images
            (B, H, W, 3).
        precision: of its numbers: ``"float32"``, ``"float16"`` or ``"int8"``.
        protocol: of its scores and maps.
        backbone: name of the network that gives the features.
        colour_scale: (low, high) of heat maps.
        decoding: how images were read in training.
        false_alarm_rate: that the thresholds are for.
        thresholds: of the scores, by class.
        uncertain: scores above which an image that is no defect is uncertain; empty without them.
        uncertain_rate: p-value that they are for; None without them.
        pixel_thresholds: of the pixels of maps, by class.
        calibration: sorted scores of normal images, by class.
        interest: what part of the images of each class counts.
        check: how far the file was from the detector it was made of, on which images.
    """

    crad: str
    classes: tuple[str, ...]
    recognises: bool
    frame: Frame
    resizes: bool
    float_input: bool
    precision: str
    protocol: str
    backbone: str
    colour_scale: tuple[float, float]
    decoding: Decoding
    false_alarm_rate: float
    thresholds: Thresholds
    uncertain: Thresholds
    uncertain_rate: float | None
    pixel_thresholds: Thresholds
    calibration: Calibration
    interest: Interest
    check: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The description as a file holds it."""
        return json.dumps(
            {
                "version": VERSION,
                "crad": self.crad,
                "classes": self.classes,
                "recognises": self.recognises,
                "frame": [self.frame.height, self.frame.width, self.frame.stride],
                "resizes": self.resizes,
                "float_input": self.float_input,
                "precision": self.precision,
                "protocol": self.protocol,
                "backbone": self.backbone,
                "colour_scale": self.colour_scale,
                "bit_depth": self.decoding.bit_depth,
                "reduced": self.decoding.reduced,
                "decisions": DECISIONS,
                "false_alarm_rate": self.false_alarm_rate,
                "thresholds": _plain(self.thresholds),
                "uncertain": _plain(self.uncertain),
                "uncertain_rate": self.uncertain_rate,
                "pixel_thresholds": _plain(self.pixel_thresholds),
                "calibration": self.calibration,
                "interest": {name: _pack(each) for name, each in self.interest.masks.items()},
                "check": self.check,
            }
        )

    @classmethod
    def from_json(cls, text: str, max_megapixels: float, bit_depth: int | None) -> "Description":
        """Undo `to_json`.

        Args:
            text: the JSON.
            max_megapixels: of an image, as that is not of the model.
            bit_depth: of 16-bit images; None takes that of training.

        Raises:
            CheckpointError: it is of another version, or damaged.
            UsageError: an argument is out of range.
        """
        try:
            stored = json.loads(text)
            if stored["version"] != VERSION:
                raise CheckpointError(
                    f"its description is of version {stored['version']}, which this crad cannot "
                    "read; install the version that wrote it, or export the checkpoint again"
                )
            height, width, stride = stored["frame"]
            frame = Frame(height, width, stride)
            depth = stored["bit_depth"] if bit_depth is None else bit_depth
            return cls(
                crad=stored["crad"],
                classes=tuple(stored["classes"]),
                recognises=stored["recognises"],
                frame=frame,
                resizes=stored["resizes"],
                float_input=stored["float_input"],
                precision=stored["precision"],
                protocol=stored["protocol"],
                backbone=stored["backbone"],
                colour_scale=tuple(stored["colour_scale"]),
                decoding=Decoding(depth, max_megapixels, stored["reduced"]),
                false_alarm_rate=stored["false_alarm_rate"],
                thresholds=_thresholds(stored["thresholds"]),
                uncertain=_thresholds(stored["uncertain"]),
                uncertain_rate=stored.get("uncertain_rate"),
                pixel_thresholds=_thresholds(stored["pixel_thresholds"]),
                calibration=Calibration(
                    {name: tuple(each) for name, each in stored["calibration"].items()}
                ),
                interest=Interest(
                    {name: _unpack(each, frame) for name, each in stored["interest"].items()},
                    frame,
                ),
                check=stored["check"],
            )
        except (CheckpointError, UsageError):
            raise
        except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
            raise CheckpointError(
                "its description is damaged; export the checkpoint again"
            ) from error


def _plain(thresholds: Thresholds) -> dict[str, tuple[float, int]]:
    return {name: (each.score, each.n_images) for name, each in thresholds.items()}


def _thresholds(stored: Mapping[str, Any]) -> Thresholds:
    return Thresholds({name: Threshold(*each) for name, each in stored.items()})


def _pack(mask: npt.NDArray[np.bool_]) -> str:
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode()


def _unpack(packed: str, frame: Frame) -> npt.NDArray[np.bool_]:
    height, width = frame.mask_size
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    return np.unpackbits(bits)[: height * width].reshape(height, width) > 0
