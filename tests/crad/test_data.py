import os
import shutil

import numpy as np
import pytest
from PIL import Image

from crad.data import find_dataset, full_source
from crad.data.images import open_image
from crad.data.tensors import to_tensor
from crad.errors import DataError, MaskError

PIXELS = Image.new("L", (8, 8), 100)
MASK = Image.new("L", (8, 8), 1)


def put(root, *names, image=PIXELS):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data set"
    for name in ("bottle", "Größe 10", "Größe 9"):
        put(root / name, *(f"train/good/{i}.png" for i in (10, 9, 2)), "test/good/0.PNG")
        put(root / name, "test/crack/000.png", "test/crack/001.png", "test/stain/0.jpg")
        put(root / name, "ground_truth/crack/000_mask.png", image=MASK)
        put(root / name, "ground_truth/stain/0.bmp", image=MASK)
    return root


def names(samples):
    return [str(sample.path.relative_to(sample.path.parents[2])) for sample in samples]


def test_classes_and_images_are_found_in_natural_order(root):
    dataset = find_dataset(root)
    assert dataset.root == root
    assert dataset.left_out == ()
    assert dataset.classes == ("bottle", "Größe 9", "Größe 10")
    assert len(dataset.train) == 9
    assert len(dataset.test) == 12
    train = [sample for sample in dataset.train if sample.class_name == "Größe 9"]
    assert names(train) == ["train/good/2.png", "train/good/9.png", "train/good/10.png"]
    assert not any(sample.is_anomaly for sample in dataset.train)
    test = [sample for sample in dataset.test if sample.class_name == "bottle"]
    assert [(sample.defect, sample.is_anomaly) for sample in test] == [
        ("crack", True),
        ("crack", True),
        ("good", False),
        ("stain", True),
    ]
    assert find_dataset(str(root)) == dataset


def test_masks_are_found_by_either_name_and_any_suffix(root):
    masks = [sample.mask for sample in find_dataset(root).test if sample.class_name == "bottle"]
    truth = root / "bottle" / "ground_truth"
    assert masks == [truth / "crack/000_mask.png", None, None, truth / "stain/0.bmp"]


def test_truth_is_known_for_normal_images_and_for_those_with_a_mask(root):
    cracked, unknown, normal, stained = find_dataset(root / "bottle").test
    assert cracked.read_truth(16).all()
    assert cracked.read_truth(16).shape == (16, 16)
    assert unknown.read_truth(16) is None
    np.testing.assert_array_equal(normal.read_truth(16), np.zeros((16, 16), bool))
    assert stained.read_truth(5).all()
    assert stained.read_truth(5, "bilinear").all()


def test_an_unreadable_mask_is_named(root):
    (root / "bottle/ground_truth/crack/000_mask.png").write_bytes(b"")
    named = r"mask of '.*crack/000\.png': .*000_mask\.png.*empty"
    with pytest.raises(MaskError, match=named):
        find_dataset(root).test[0].read_truth(8)


def test_a_folder_that_is_itself_a_class(root, monkeypatch):
    assert find_dataset(root / "bottle").classes == ("bottle",)
    monkeypatch.chdir(root / "bottle")
    dataset = find_dataset(".")
    assert dataset.classes == ("bottle",)
    assert len(dataset.train) == 3


def test_what_is_no_image_is_passed_over(root):
    (root / "license.txt").touch()
    put(root, ".cache/train/good/0.png", "pictures/0.png", "bottle/test/.hidden/0.png")
    put(root, "bottle/train/good/.0.png")
    (root / "bottle/test/crack/notes.txt").touch()
    (root / "bottle/test/crack/folder.png").mkdir()
    (root / "bottle/test/empty").mkdir()
    dataset = find_dataset(root)
    assert (len(dataset.classes), len(dataset.train), len(dataset.test)) == (3, 9, 12)
    images, others = dataset.left_out
    assert images.startswith("not used: 1 image in 1 folder ('pictures')")
    assert others.startswith("not used: 2 files of other types (2 .txt) in 2 folders")


def test_links_to_images_and_to_classes_are_followed(root, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "class").symlink_to(root / "bottle", target_is_directory=True)
    (root / "bottle/train/good/link.png").symlink_to(root / "bottle/train/good/2.png")
    dataset = find_dataset(linked)
    assert dataset.classes == ("class",)
    assert len(dataset.train) == 4


def test_test_images_and_masks_are_optional(tmp_path):
    put(tmp_path, "nut/train/good/0.png", "bolt/train/good/0.png", "bolt/test/bent/0.png")
    dataset = find_dataset(tmp_path)
    assert dataset.classes == ("bolt", "nut")
    assert [sample.mask for sample in dataset.test] == [None]


def test_evaluation_needs_no_training_images(tmp_path):
    put(tmp_path, "nut/test/good/0.png", "nut/test/bent/0.png")
    with pytest.raises(DataError, match=r"'.*nut/train/good'"):
        find_dataset(tmp_path)
    dataset = find_dataset(tmp_path, need_train=False)
    assert (len(dataset.train), len(dataset.test)) == (0, 2)


def test_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"gone.*<class>/train/good.*VisA"):
        find_dataset(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file'.* file"):
        find_dataset(tmp_path / "file")


def test_a_folder_without_classes(tmp_path):
    put(tmp_path, "0.png", "images/0.png")
    with pytest.raises(DataError, match="<class>/train/good"):
        find_dataset(tmp_path)


def test_an_empty_class(root):
    (root / "nut/train/good").mkdir(parents=True)
    with pytest.raises(DataError, match=r"'.*nut/train/good'.*\.png"):
        find_dataset(root)
    with pytest.raises(DataError, match=r"'.*nut/test'"):
        find_dataset(root, need_train=False)


def test_training_images_that_are_not_in_good(root):
    put(root, "nut/train/0.png")
    with pytest.raises(DataError, match=r"'.*nut/train/good'"):
        find_dataset(root)


def test_images_that_would_silently_be_left_out_or_mislabelled(root):
    put(root, "bottle/test/loose.png")
    with pytest.raises(DataError, match=r"loose\.png'"):
        find_dataset(root)
    (root / "bottle/test/loose.png").unlink()
    put(root, "bottle/test/Good/0.png")
    with pytest.raises(DataError, match=r"Good'.*'good'"):
        find_dataset(root)


def test_masks_that_belong_to_no_image(root):
    (root / "bottle/ground_truth/crack/000_mask.png").rename(
        root / "bottle/ground_truth/crack/000_gt.png"
    )
    with pytest.raises(DataError, match=r"'.*crack'.*'000_mask\.png'"):
        find_dataset(root)


def test_masks_of_a_kind_of_defect_that_is_not_there(root):
    put(root, "bottle/ground_truth/Crack/000_mask.png", image=MASK)
    with pytest.raises(DataError, match=r"'.*truth/Crack'.*'.*test/Crack'"):
        find_dataset(root)
    (root / "bottle/ground_truth/Crack/000_mask.png").unlink()
    (root / "bottle/ground_truth/.hidden").mkdir()
    find_dataset(root)  # an empty folder hides nothing


@pytest.mark.parametrize("name", ["GroundTruth", "groundtruth", "ground-truth", "Ground_Truth"])
def test_masks_in_a_folder_of_nearly_the_right_name(root, name):
    (root / "bottle/ground_truth").rename(root / "bottle" / name)
    with pytest.raises(DataError, match=rf"'.*bottle/ground_truth'.*'.*{name}'"):
        find_dataset(root)


def test_masks_without_test_images_are_of_no_matter(root):
    shutil.rmtree(root / "bottle/test")
    dataset = find_dataset(root / "bottle")
    assert dataset.test == ()
    (line,) = dataset.left_out
    assert "2 images in 2 folders ('ground_truth/crack', 'ground_truth/stain')" in line


def test_some_of_the_classes(root):
    put(root, "broken/test/loose.png")  # what is not asked for is not looked into
    dataset = find_dataset(root, classes=["Größe 10", "bottle", "bottle"])
    assert dataset.classes == ("bottle", "Größe 10")
    assert {sample.class_name for sample in (*dataset.train, *dataset.test)} == {*dataset.classes}
    with pytest.raises(DataError, match=r"'Bottle'.*bottle, broken, Größe"):
        find_dataset(root, classes=["Bottle"])
    assert find_dataset(root / "bottle", classes=["bottle"]).classes == ("bottle",)


def test_the_official_layout_of_mvtec_ad(tmp_path):
    """Colour and greyscale classes of differing sizes; masks of one channel and of three."""
    sizes = {"bottle": (18, 18), "screw": (20, 20), "transistor": (14, 9), "zipper": (10, 20)}
    for index, (name, size) in enumerate(sizes.items()):
        grey = name in ("screw", "zipper")
        image = Image.new("L", size, 90) if grey else Image.new("RGB", size, (10, 20, 30))
        mask = Image.new("L", size)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))  # the left half is defective
        folder = tmp_path / name
        put(folder, "train/good/000.png", "test/good/000.png", "test/bent/000.png", image=image)
        put(folder, "ground_truth/bent/000_mask.png", image=mask.convert("RGB" if index else "L"))
        (folder / "license.txt").touch()
        (folder / "readme.txt").touch()
    (tmp_path / "license.txt").touch()
    dataset = find_dataset(tmp_path)
    assert dataset.classes == tuple(sizes)
    left = np.arange(16) < 8
    for sample in dataset.test:
        image = open_image(sample.path)
        assert (image.mode, image.size) == ("RGB", sizes[sample.class_name])
        assert to_tensor(image, 16).shape == (3, 16, 16)
        expected = np.broadcast_to(left & sample.is_anomaly, (16, 16))
        np.testing.assert_array_equal(sample.read_truth(16), expected)


@pytest.mark.parametrize(
    "name",
    [
        "0.png",
        "pictures/0.png",
        "bottle/0.png",
        "bottle/train/0.png",
        "bottle/train/bad/0.png",
        "bottle/train/OK/0.png",
        "bottle/train/good/inner/0.png",
        "bottle/test/crack/inner/0.png",
        "bottle/test/good/a/b/0.png",
        "bottle/valid/good/0.png",
        "bottle/validation/0.png",
        "bottle/masks/crack/000_mask.png",
        "bottle/ground_truth/good/0.png",
        "bottle/ground_truth/crack/inner/001_mask.png",
        "bottle/train/good/3.gif",
        "bottle/test/crack/002.jp2",
        "bottle/ground_truth/crack/001_mask.jfif",
        "bottle/notes.txt",
    ],
)
def test_what_is_not_read_is_counted(root, name):
    before = find_dataset(root)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).touch()
    dataset = find_dataset(root)
    (line,) = dataset.left_out
    folder, _, _ = name.rpartition("/")
    assert line.startswith("not used: 1 ")
    assert f"in 1 folder ('{folder or '.'}')" in line
    assert (dataset.train, dataset.test) == (before.train, before.test)


def test_what_is_not_read_of_other_classes_is_not_counted(root):
    put(root, "bottle/valid/0.png", "Größe 9/valid/0.png", "pictures/0.png")
    (line,) = find_dataset(root, classes=["bottle"]).left_out
    assert "2 images in 2 folders ('bottle/valid', 'pictures')" in line


def test_each_folder_is_read_once_and_no_image_opened(root, monkeypatch):
    folders = [folder for folder, _, _ in os.walk(root)]
    read = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(str(path)) or scandir(path))
    monkeypatch.setattr("builtins.open", None)
    find_dataset(root)
    assert sorted(read) == sorted(folders)


@pytest.mark.parametrize("name", ["ok", "OK", "normal", "Good", "goods", "Defect-free", "good_2"])
def test_normal_images_by_another_name_are_no_defects(root, name):
    put(root, f"bottle/test/{name}/0.png")
    with pytest.raises(DataError, match=rf"test/{name}' would count as a defect.*'good'"):
        find_dataset(root)


@pytest.mark.parametrize("name", ["ok", "OK", "normal", "Good"])
def test_training_images_by_another_name_are_to_be_renamed(root, name):
    (root / "bottle/train/good").rename(root / "bottle/train" / name)
    for need_train in (True, False):
        with pytest.raises(DataError, match=rf"train/{name}' would not be trained on.*'good'"):
            find_dataset(root, need_train=need_train)


@pytest.mark.parametrize("second", ["000.png", "000_mask.bmp", "000.TIF"])
def test_two_masks_for_one_image(root, second):
    put(root, f"bottle/ground_truth/crack/{second}", image=MASK)
    with pytest.raises(DataError, match=rf"crack/000\.png' has more than one mask.*{second}'"):
        find_dataset(root)


def test_one_mask_for_two_images(root):
    put(root, "bottle/test/crack/000.jpg")
    with pytest.raises(DataError, match=r"000_mask\.png' is named after two images.*jpg.*png"):
        find_dataset(root)


def test_images_of_one_name_need_no_mask(root):
    put(root, "bottle/test/crack/001.jpg", "bottle/train/good/2.jpg")
    assert len(find_dataset(root / "bottle").test) == 5


def test_a_mask_that_is_named_after_no_image(root):
    put(root, "bottle/ground_truth/crack/002_mask.png", image=MASK)
    with pytest.raises(DataError, match=r"1 of 2 masks in '.*crack'.*002_mask\.png'.*rename"):
        find_dataset(root)
    for image in (root / "bottle/test/crack").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"2 of 2 masks in '.*crack'.*000_mask\.png'"):
        find_dataset(root)


def test_masks_in_no_folder_of_a_defect(root):
    put(root, "bottle/ground_truth/000_mask.png", image=MASK)
    with pytest.raises(DataError, match=r"truth/000_mask\.png' is not in a sub-folder"):
        find_dataset(root)


def test_links_that_lead_nowhere_or_in_circles(root):
    (root / "bottle/train/good/circle").symlink_to(root, target_is_directory=True)
    assert find_dataset(root).left_out == ()
    link = root / "bottle/test/lost"
    link.symlink_to(root / "nowhere")
    with pytest.raises(DataError, match=r"'.*test/lost' leads nowhere"):
        find_dataset(root)
    link.unlink()
    (root / "bottle/train/good/lost.png").symlink_to(root / "nowhere")
    paths = [sample.path for sample in find_dataset(root).train]
    assert root / "bottle/train/good/lost.png" in paths  # so that opening it is an error


@pytest.mark.parametrize("name", ["a b", "Größe 10", "sheets", "results.json", "a'b", "x" * 200])
def test_unusual_names_of_classes(tmp_path, name):
    put(tmp_path, f"{name}/train/good/0.png")
    assert find_dataset(tmp_path).classes == (name,)


def test_names_of_classes_that_differ_only_in_case(tmp_path):
    put(tmp_path, "nut/train/good/0.png")
    put(tmp_path, "Nut/train/good/0.png")
    if len(os.listdir(tmp_path)) == 1:
        pytest.skip("the file system knows no case")
    assert find_dataset(tmp_path).classes == ("Nut", "nut")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b", os.fsdecode(b"\xe9"), "x" * 201])
def test_names_of_classes_that_cannot_be_used(tmp_path, name):
    put(tmp_path, f"{name}/train/good/0.png")
    with pytest.raises(DataError, match=r"the name '.*' of a class.*rename"):
        find_dataset(tmp_path)


def test_a_folder_of_the_name_of_a_generated_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_dataset("demo").left_out == ()
    put(tmp_path, "demo/nut/train/good/0.png")
    (line,) = find_dataset("demo").left_out
    assert line.endswith("--data ./demo")
    assert find_dataset("./demo").classes == ("nut",)
    assert full_source("./demo") == str(tmp_path / "demo")
