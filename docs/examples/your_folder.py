"""
The detector on your folder
===========================

The detector learns from images of good products. It needs a folder for each product, with good
images in ``train/good``; images in ``test`` and masks of their defects are optional, and serve to
measure it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import crad

IMAGES = 120
EPOCHS = 20

# %%
# A folder of images
# ------------------
#
# Here, pictures of washers are drawn, some with a dent in the rim and a mask of it: an easy case,
# so what comes out says little about yours. With your own folder in this layout, leave this part
# out.

folder = Path(tempfile.mkdtemp()) / "parts"
random = np.random.default_rng(0)


def draw(dented: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw a washer, uint8 (128, 128), and its dent, bool (128, 128)."""
    y, x = np.mgrid[:128, :128] - 64 + random.uniform(-4, 4, (2, 1, 1))
    radius, angle = np.hypot(x, y), random.uniform(0, 2 * np.pi)
    dent = np.hypot(x - 46 * np.cos(angle), y - 46 * np.sin(angle)) < (6 if dented else 0)
    ring = (radius > 22) & (radius < 46) & ~dent
    light = random.uniform(0.9, 1.1) * (1 + 0.1 * x / 64)
    grey = light * np.where(ring, 170, 60) + random.normal(0, 6, (128, 128))
    return grey.clip(0, 255).astype(np.uint8), dent & (radius < 46)


def save(image: np.ndarray, name: str) -> None:
    """Save an image of the product."""
    path = folder / "washer" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


for number in range(IMAGES):
    save(draw(False)[0], f"train/good/{number:03}.png")
for number in range(12):
    image, dent = draw(True)
    save(draw(False)[0], f"test/good/{number:03}.png")
    save(image, f"test/dent/{number:03}.png")
    save(255 * dent.astype(np.uint8), f"ground_truth/dent/{number:03}_mask.png")

# %%
# Train
# -----
#
# In a shell, this is ``crad train --data parts --backbone scattering --epochs 20``. The scattering
# transform needs no pretrained weights. Leave both options out for your own images, and the
# detector takes the best backbone that it can get, and some minutes.


def crad_command(*arguments: str) -> None:
    """Run a command of the detector, and show what it prints."""
    command = [sys.executable, "-m", "crad", *arguments]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


run = folder.parent / "run"
crad_command(
    *("train", "--data", str(folder), "--output", str(run)),
    *("--backbone", "scattering", "--epochs", str(EPOCHS)),
)

# %%
# Look at images
# --------------
#
# A prediction has a score, a p-value, a decision, and the regions that are anomalous, in pixels of
# the image.

detector = crad.load(run)
paths = sorted(folder.glob("washer/test/*/00[0-2].png"))
predictions = detector.predict(paths)
for prediction in predictions:
    kind = prediction.path.parent.name
    boxes = [region.box for region in prediction.regions]
    print(f"{kind:8} {prediction.decision:8} p = {prediction.p_value:.2f}  {boxes}")

low, high = detector.colour_scale
fig, axes = plt.subplots(2, len(paths), figsize=(10, 3.8))
for column, prediction in zip(axes.T, predictions, strict=True):
    column[0].imshow(Image.open(prediction.path), cmap="gray")
    column[0].set_title(f"{prediction.path.parent.name}: {prediction.decision}", fontsize=9)
    column[1].imshow(prediction.anomaly_map, vmin=low, vmax=high)
    for axis in column:
        axis.axis("off")
plt.tight_layout()
plt.show()
