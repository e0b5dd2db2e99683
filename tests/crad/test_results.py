import importlib.util
import json
import os
import shutil
import subprocess

import pytest
import torch

import crad.report.environment
from crad.report.environment import environment
from crad.report.results import DEMO_NOTE, Results, write_results
from crad.report.summary import summary


def means(image_auroc, pixel_auroc):
    """Metrics whose AP is 0.1 below the AUROC, F1-max 0.2, AUPRO 0.3."""
    found = {}
    for name, offset in (("auroc", 0), ("ap", 0.1), ("f1_max", 0.2)):
        found[f"image_{name}"] = image_auroc - offset
        found[f"pixel_{name}"] = None if pixel_auroc is None else pixel_auroc - offset
    found["pixel_aupro"] = None if pixel_auroc is None else pixel_auroc - 0.3
    return found


def entry(image_auroc, pixel_auroc, n_test=20):
    return {**means(image_auroc, pixel_auroc), "n_train": 40, "n_test": n_test}


@pytest.fixture
def results():
    return Results(
        protocol="crad",
        seed=0,
        epoch=20,
        classes={"brick": entry(0.91234, 0.95), "a long class name": entry(1.0, None, 0)},
        mean=means(0.95617, 0.95),
        timing={"train": 24.5},
        environment=dict(environment("cpu")),
    )


def test_results_survive_the_file(tmp_path, results):
    write_results(tmp_path / "results.json", results)
    keys = ["protocol", "seed", "epoch", "classes", "mean", "timing", "environment"]
    content = json.loads((tmp_path / "results.json").read_text())
    assert content == results
    assert list(content) == keys
    assert content["classes"]["a long class name"]["pixel_auroc"] is None


def test_a_number_that_is_not_finite_is_named_and_nothing_written(tmp_path, results):
    results["timing"]["train"] = float("inf")
    with pytest.raises(ValueError, match=r"timing\.train"):
        write_results(tmp_path / "results.json", results)
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_versions_and_machine():
    found = environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"] == "cpu"
    assert {"python", "crad", "numpy", "scikit-image", "platform", "cpu"} <= found.keys()
    json.dumps(found, allow_nan=False)


def commit_of(code):
    """What a copy of `crad.report.environment` says, asked for the first time."""
    spec = importlib.util.spec_from_file_location("copied", code)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.commit()


def test_the_commit_is_that_of_the_code(monkeypatch, tmp_path):
    git = ["git", "-C", str(tmp_path)]
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    code = tmp_path / "report" / "environment.py"
    code.parent.mkdir()
    shutil.copy(crad.report.environment.__file__, code)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert commit_of(code) is None
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, *who, "commit", "-q", "--allow-empty", "-m", "other code"], check=True)
    assert commit_of(code) is None
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, *who, "commit", "-q", "-m", "this code"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert commit_of(code) == head.stdout[:10]
    with code.open("a") as opened:
        opened.write("# changed\n")
    assert commit_of(code) == f"{head.stdout[:10]} with changes"
    monkeypatch.setenv("PATH", "")
    assert commit_of(code) is None


def test_the_table_has_every_number(results):
    assert summary(results).splitlines() == [
        "protocol crad                                 image                       pixel",
        "class              train  test  AUROC     AP  F1max  AUROC     AP  F1max  AUPRO",
        "-------------------------------------------------------------------------------",
        "brick                 40    20  0.912  0.812  0.712  0.950  0.850  0.750  0.650",
        "a long class name     40     0  1.000  0.900  0.800      -      -      -      -",
        "-------------------------------------------------------------------------------",
        "mean                            0.956  0.856  0.756  0.950  0.850  0.750  0.650",
    ]


def test_other_protocols_have_a_table_each(results):
    alone = summary(results)
    results["other_protocols"] = {
        "ader": {"classes": {"brick": entry(0.5, 0.6)}, "mean": means(0.5, 0.6)}
    }
    results["note"] = DEMO_NOTE
    first, second = summary(results).split("\n\n")
    assert first == alone
    head, *_, brick, _, mean, note = second.splitlines()
    assert head.startswith("protocol ader ")
    assert " ".join(brick.split()) == "brick 40 20 0.500 0.400 0.300 0.600 0.500 0.400 0.300"
    assert mean.split()[1:] == brick.split()[3:]
    assert note == DEMO_NOTE


def test_the_best_epoch_is_beside_the_last_and_says_how_it_was_chosen(results):
    alone = summary(results)
    results["best_on_test"] = {"epoch": 12, "classes": {}, "mean": means(0.97, None)}
    assert summary(results).splitlines() == [
        *alone.splitlines(),
        "best_on_test: epoch 12 of 20, mean image AUROC 0.970, pixel AUROC -; "
        "chosen on the test images",
    ]


def test_the_best_epochs_of_classes_alone_are_their_own(results):
    epochs = {"brick": 12, "a long class name": 3}
    results["best_on_test"] = {"epoch": epochs, "classes": {}, "mean": means(0.97, 0.9)}
    last = summary(results).splitlines()[-1]
    for told in ("best_on_test", "3 to 12 of 20", "0.970", "0.900", "test images"):
        assert told in last


def test_the_table_says_that_the_demo_is_a_stand_in(results):
    results["note"] = DEMO_NOTE
    assert summary(results).splitlines()[-1] == DEMO_NOTE
    assert "stand-in" in DEMO_NOTE


def test_a_baseline_stands_beside(results):
    results["baselines"] = {
        "nearest_neighbour": {
            "classes": {"brick": entry(0.8, 0.7)},
            "mean": means(0.8, 0.7),
        }
    }
    head, columns, rule, brick, other, _, mean = summary(results).splitlines()
    assert head.split("  ")[-1].strip() == "nearest neighbour AUROC"
    assert columns.split()[-3:] == ["AUPRO", "image", "pixel"]
    assert brick.split()[-3:] == ["0.650", "0.800", "0.700"]
    assert other.split()[-3:] == ["-", "-", "-"]
    assert mean.split()[-3:] == ["0.650", "0.800", "0.700"]
    assert len({len(line) for line in (head, columns, rule, brick, other, mean)}) == 1


def test_wide_characters_keep_the_columns_aligned(results):
    results["classes"] = {"面板": entry(1.0, 1.0), "bolt": entry(1.0, 1.0)}
    _, _, _, wide, narrow, _, _ = summary(results).splitlines()
    assert wide.index("40") + 2 == narrow.index("40")  # two characters of two columns each


def test_a_name_of_any_bytes_can_be_printed(results):
    results["classes"] = {os.fsdecode(b"caf\xe9"): entry(1.0, 1.0)}
    assert summary(results).encode("utf-8").count(b"caf\\udce9") == 1


def test_a_name_takes_one_line_whatever_is_in_it(results):
    whole = len(summary(results).splitlines())
    results["classes"]["a\nb\tc\x1b\u2028é"] = results["classes"].pop("brick")
    lines = summary(results).splitlines()
    assert len(lines) == whole
    assert any(line.startswith(r"a\nb\tc\x1b\u2028é ") for line in lines)


def decision(n_calibration, n_good=10, n_defective=10):
    return {
        "threshold": 0.51234,
        "n_calibration": n_calibration,
        "n_good": n_good,
        "false_alarms": min(2, n_good),
        "n_defective": n_defective,
        "misses": min(1, n_defective),
    }


def test_decisions_have_a_table(results):
    alone = summary(results)
    results["decisions"] = {
        "protocol": "crad",
        "false_alarm_rate": 0.01,
        "classes": {"brick": decision(99), "a long class name": decision(199, 0, 0)},
    }
    assert summary(results).splitlines() == [
        *alone.splitlines(),
        "",
        "decisions (protocol crad, false alarm rate 0.01): an image whose score is above the "
        "threshold of its class is a defect",
        "class              good images  threshold  false alarms   misses",
        "----------------------------------------------------------------",
        "brick                       99     0.5123       2 of 10  1 of 10",
        "a long class name          199     0.5123             -        -",
        "----------------------------------------------------------------",
        "all                                             2 of 10  1 of 10",
        "thresholds from 99 to 199 images a class: at most 0.01 of normal images like them are "
        "false alarms, as asked for",
    ]


def test_the_table_says_what_rate_the_images_can_promise(results):
    for rate, numbers, told in [
        (0.05, (19, 19), "from 19 normal images a class: at most 0.05 of normal images"),
        (0.05, (18, 40), "on average 1 of 19 new normal images"),
        (0.05, (19, 0), "from 19 normal images a class: at most 0.05 of normal images"),
    ]:
        classes = dict(zip(("brick", "gauge"), map(decision, numbers), strict=True))
        results["decisions"] = {"protocol": "crad", "false_alarm_rate": rate, "classes": classes}
        assert told in summary(results).splitlines()[-1]
    results["decisions"]["classes"] = {"brick": decision(0)}  # kept from another model
    assert summary(results).splitlines()[-1].startswith("a class without good images")


def test_the_table_says_what_thresholds_from_few_images_are_worth(results):
    results["decisions"] = {
        "protocol": "crad",
        "false_alarm_rate": 0.01,
        "classes": {"brick": decision(98), "gauge": decision(20), "new": decision(0)},
    }
    *_, without, few = summary(results).splitlines()
    assert "without good images" in without
    for told in ("only 20 normal images", "1 of 21"):
        assert told in few
