"""VisA as its archive has it: a table of images, and masks of class ids."""

import shutil

import numpy as np
import pytest
from PIL import Image

from crad.data import find_dataset
from crad.data.images import open_image
from crad.errors import DataError

HEADER = "object,split,label,image,mask"
SIZES = {"candle": (30, 20), "pcb1": (20, 15), "pipe_fryum": (24, 24)}


def lines(name):
    images, masks = f"{name}/Data/Images", f"{name}/Data/Masks"
    return [
        f"{name},train,normal,{images}/Normal/0836.JPG,",
        f"{name},train,normal,{images}/Normal/0009.JPG,",
        f"{name},test,normal,{images}/Normal/0451.JPG,",
        f"{name},test,anomaly,{images}/Anomaly/000.JPG,{masks}/Anomaly/000.png",
        f"{name},test,anomaly,{images}/Anomaly/001.JPG,{masks}/Anomaly/001.png",
    ]


def write_table(root, table):
    (root / "split_csv").mkdir(exist_ok=True)
    (root / "split_csv" / "1cls.csv").write_text("\n".join([HEADER, *table]) + "\n")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "VisA"
    for name, size in SIZES.items():
        for line in lines(name):
            *_, image, mask = line.split(",")
            (root / image).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (200, 150, 100)).save(root / image)
            if mask:
                ids = np.zeros((size[1], size[0]), np.uint8)
                ids[: size[1] // 2] = 1 + int(mask[-5])  # small numbers, black to the eye
                (root / mask).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(ids).save(root / mask)
        (root / name / "image_anno.csv").write_text("image,label,mask\n")
    (root / "LICENSE-DATASET").touch()
    write_table(root, [line for name in reversed(SIZES) for line in lines(name)])
    (root / "split_csv" / "2cls_fewshot.csv").write_text(HEADER + "\n")
    return root


def test_the_table_says_what_is_trained_and_tested_on(root):
    dataset = find_dataset(root)
    assert dataset.root == root
    assert dataset.classes == tuple(SIZES)
    assert [sample.class_name for sample in dataset.train] == [n for n in SIZES for _ in range(2)]
    assert [(sample.class_name, sample.defect) for sample in dataset.test] == [
        (name, defect) for name in SIZES for defect in ("good", "anomaly", "anomaly")
    ]
    candle = root / "candle" / "Data"
    assert [sample.path for sample in dataset.train[:2]] == [
        candle / "Images/Normal/0836.JPG", candle / "Images/Normal/0009.JPG",
    ]  # fmt: skip
    assert [sample.mask for sample in dataset.test[:3]] == [
        None, candle / "Masks/Anomaly/000.png", candle / "Masks/Anomaly/001.png",
    ]  # fmt: skip


def test_every_class_id_in_a_mask_is_a_defect(root):
    for sample in find_dataset(root).test:
        assert open_image(sample.path).size == SIZES[sample.class_name]
        expected = np.broadcast_to((np.arange(8) < 4)[:, None] & sample.is_anomaly, (8, 8))
        np.testing.assert_array_equal(sample.read_truth(8), expected)


def test_nothing_is_written(root):
    before = sorted(root.rglob("*"))
    find_dataset(root)
    assert sorted(root.rglob("*")) == before


def test_some_of_the_classes(root):
    shutil.rmtree(root / "candle")  # not wanted, so not missed
    assert find_dataset(root, classes=["pcb1", "pipe_fryum"]).classes == ("pcb1", "pipe_fryum")
    with pytest.raises(DataError, match=r"'pcb9'.*pcb1"):
        find_dataset(root, classes=["pcb9"])


def test_an_anomaly_without_a_mask(root):
    table = [line.replace("pcb1/Data/Masks/Anomaly/001.png", "") for line in lines("pcb1")]
    write_table(root, table)
    (root / "pcb1/Data/Masks/Anomaly/001.png").unlink()
    known = [sample.read_truth(8) is not None for sample in find_dataset(root).test]
    assert known == [True, True, False]


def test_a_byte_order_mark_carriage_returns_and_blank_lines(root):
    table = "\r\n".join([HEADER, *lines("pcb1"), "", ""])
    (root / "split_csv/1cls.csv").write_bytes(b"\xef\xbb\xbf" + table.encode())
    assert find_dataset(root).classes == ("pcb1",)


@pytest.mark.parametrize("folder", ["pcb1/Data/Images/Normal", "pcb1/Data/Masks/Anomaly"])
def test_files_that_are_missing(root, folder):
    shutil.rmtree(root / folder)
    with pytest.raises(DataError, match=rf"[23] of the 7 files .*'pcb1'.* missing.*{folder}"):
        find_dataset(root)


def test_the_table_is_missing(root):
    shutil.rmtree(root / "split_csv")
    with pytest.raises(DataError, match=r"'split_csv/1cls\.csv'"):
        find_dataset(root)


def test_one_class_alone(root):
    with pytest.raises(DataError, match=rf"--data {root} --classes pcb1"):
        find_dataset(root / "pcb1")


@pytest.mark.parametrize(
    ("former", "line", "message"),
    [
        (2, "pcb1,val,normal,a.JPG,", "train.*test.*'val'"),
        (2, "pcb1,test,good,a.JPG,", "normal.*anomaly.*'good'"),
        (2, "pcb1,test", "normal.*anomaly.*''"),
        (2, ",test,normal,a.JPG,", "class.*''"),
        (2, "../pcb1,test,normal,a.JPG,", r"class.*'\.\./pcb1'"),
        (2, "pcb1,test,normal,/etc/a.JPG,", "image.*'/etc/a.JPG'"),
        (2, "pcb1,test,normal,pcb1/../../a.JPG,", r"image.*'pcb1/\.\./\.\./a"),
        (2, "pcb1,test,normal,,", "image.*''"),
        (2, "pcb1,test,anomaly,a.JPG,../a.png", r"mask.*'\.\./a\.png'"),
        (2, "pcb1,train,anomaly,a.JPG,", "anomaly.*train"),
        (2, "pcb1,test,normal,a.JPG,a.png", "normal.*mask"),
        (2, lines("pcb1")[0], r"'pcb1/Data/Images/Normal/0836\.JPG'.* 2 "),
        (2, lines("pcb1")[0].replace("pcb1/", "./pcb1/"), r"'pcb1/Data.*0836\.JPG'.* 2 "),
        (4, lines("pcb1")[3].replace("000.JPG", "001.JPG"), r"'pcb1/.*Anomaly/000\.png'.* 5 "),
        (2, "pcb1,test,anomaly,pcb1/0.png,pcb1/0.png", r"'pcb1/0\.png'.* 4 "),
    ],
)
def test_a_wrong_line_is_named(root, former, line, message):
    table = lines("pcb1")
    table[former] = line
    write_table(root, table)
    with pytest.raises(DataError, match=rf"1cls\.csv', line {former + 2}: .*{message}"):
        find_dataset(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "object, split, label, image, mask"),
        (b"object,split,image,mask\n", "label.*object,split"),
        (HEADER.encode() + b"\n", "no lines"),
        (HEADER.encode() + b"\n\xff\xfe\n", "CSV"),
        (HEADER.encode() + b"\n" + b"x" * 200_000 + b"\n", "CSV"),
    ],
)
def test_a_table_that_is_none(root, content, message):
    (root / "split_csv/1cls.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_dataset(root)


def test_a_class_without_training_images(root):
    write_table(root, lines("pcb1")[2:])
    with pytest.raises(DataError, match=r"train.*'pcb1'"):
        find_dataset(root)
    assert len(find_dataset(root, need_train=False).test) == 3


def test_files_that_are_not_in_the_table_are_counted(root):
    (line,) = find_dataset(root).left_out
    assert line.startswith("not used: 5 files of other types (4 .csv, 1 without suffix)")
    for name in ("Images/Normal/0999.JPG", "Masks/Anomaly/002.png"):
        shutil.copy(root / "candle/Data/Images/Normal/0451.JPG", root / "candle/Data" / name)
    images, _ = find_dataset(root).left_out
    assert "2 images in 2 folders ('candle/Data/Images/Normal', 'candle/Data/Masks/Anomaly')" in (
        images
    )
    assert "'split_csv/1cls.csv'" in images
    assert len(find_dataset(root, classes=["pcb1"]).left_out) == 1
