"""How fast a GPU trains, and what its precisions cost: ``python -m benchmarks.gpu_training``.

A training step beside the released model in plain PyTorch; `crad.train` on a stand-in of MVTec
AD's size, 3,629 generated images of 15 classes with EfficientNet-B4 of random weights, for 50
epochs in bf16; where an epoch goes; images a second at inference; what `torch.compile` and CUDA
graphs give; the AUROC on the demo set by precision. It adds to the report of
`benchmarks.gpu_check`, by the same rules: what tells most comes first, every piece is a process of
its own, and run again, it goes on. ``--minutes`` is all that it may take; a run of 50 epochs that
was cut short goes on at the epoch that it had reached.

With ``--small --device cpu`` all of it is so small that it takes a minute or two without a GPU,
and measures nothing.

Exit status: 0 if every piece passed, 1 if one did not, 2 without a GPU.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import machine as cpu
from benchmarks.gpu.report import Report, machine, open_report, write_json
from benchmarks.gpu.steps import SHORTEST, Step, run, run_steps

# Seconds that a piece may take.
LIMITS = {
    "steps": 60.0,
    "stand-in": 60.0,
    "training": 240.0,
    "account": 60.0,
    "inference": 60.0,
    "compiled": 150.0,
    "neutrality": 180.0,
}


def run_piece(
    piece: str, device: str, work: Path, small: bool, seconds: float, earlier: Report
) -> Report:
    """A piece, or those of its rows that there was time for; rows of an earlier run are kept."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        write_json(output, {"rows": earlier.get("rows", [])})
        command = [sys.executable, "-m", "benchmarks.training_pieces", piece, str(output)]
        command += [str(seconds - SHORTEST / 2), "--device", device, "--work", str(work)]
        end = run([*command, *["--small"] * small], seconds)
        found = json.loads(output.read_text())
    errors = [row["error"] for row in found["rows"] if "error" in row]
    report = end.report(end.code == 0 and not errors)
    if report["status"] == "passed" and not found.get("finished"):
        report = {"status": "unfinished"}
    return {**report, **({"reason": errors[0]} if errors else {}), "rows": found["rows"]}


def steps(pieces: Sequence[str], device: str, work: Path, small: bool) -> list[Step]:
    """What there is to run, what tells most first."""
    return [
        Step(piece, f"training, {piece}", partial(run_piece, piece, device, work, small))
        for piece in LIMITS
        if piece in pieces
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    root = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_training", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="that all may take together")
    parser.add_argument("--again", action="store_true", help="run what has passed before, too")
    parser.add_argument("--only", default=",".join(LIMITS), help=f"some of {','.join(LIMITS)}")
    parser.add_argument("--results", type=Path, help="folder; default benchmarks/results")
    parser.add_argument("--work", type=Path, help="folder of images and runs, kept to go on with")
    parser.add_argument("--commit", help="of the code, where it is not in a repository")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="measure nothing, only run it all")
    options = parser.parse_args(arguments)
    pieces = options.only.split(",")
    if unknown := set(pieces) - set(LIMITS):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    if options.device == "cpu" and not options.small:
        parser.error("--device cpu: needs --small, as it would take hours")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("gpu_training: PyTorch sees no GPU here, so there is nothing to measure\n")
        return 2

    name = "gpu-training-small" if options.small else "gpu-training"
    work = (options.work or root / "runs" / name).resolve()
    results = options.results or (work if options.small else root / "benchmarks" / "results")
    if options.device == "cuda":
        about = machine(options.commit)
    else:
        about = {"gpu": "none", **cpu.machine(), **cpu.versions(options.commit)}
    path, report = open_report(results, about)
    todo = steps(pieces, options.device, work, options.small)
    return run_steps(todo, LIMITS, path, report, 60 * options.minutes, again=options.again)


if __name__ == "__main__":
    sys.exit(main())
