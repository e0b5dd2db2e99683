"""`crad watch` in a process that is killed, again and again."""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest


@pytest.mark.thorough
def test_every_image_is_recorded_and_moved_once_however_often_it_is_killed(
    trained, tmp_path: Path
) -> None:
    inbox, output = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    images = sorted(trained.data.rglob("*.png"))
    sent: dict[str, bytes] = {}
    for number in range(150):
        name = f"{number:03}.png"
        sent[name] = images[number % len(images)].read_bytes()
        (inbox / name).write_bytes(sent[name])
    (inbox / "bad.png").write_bytes(b"no image")
    sent["bad.png"] = b"no image"
    command = [sys.executable, "-m", "crad", "watch", "--checkpoint", str(trained.output)]
    command += [str(inbox), "--output", str(output), "--interval", "0.05", "--device", "cpu"]
    table = output / "scores.csv"

    def n_lines() -> int:
        return table.read_bytes().count(b"\n") - 1 if table.exists() else 0

    kills = 0
    while True:
        with (tmp_path / "log").open("ab") as log:
            running = subprocess.Popen(
                command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log
            )
        stop_at = n_lines() + 45
        while n_lines() < min(stop_at, len(sent)) or any(inbox.glob("*.png")):
            assert running.poll() is None, (tmp_path / "log").read_text()
            if n_lines() >= stop_at:
                break
            time.sleep(0.001)
        if not any(inbox.glob("*.png")):
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 0
            break
        time.sleep(random.uniform(0, 0.01))
        running.kill()
        running.wait()
        kills += 1
    assert kills >= 2
    with table.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert Counter(Path(row["image"]).name for row in rows) == dict.fromkeys(sent, 1)
    for row in rows:
        moved = output / row["moved_to"]
        assert moved.read_bytes() == sent[Path(row["image"]).name]
        assert moved.parent.name == row["decision"]
    found = [path for path in output.glob("*/*") if path.suffix == ".png"]
    assert len(found) == len(sent)
    shutil.rmtree(output)
