"""Images and arrays become exactly the tensors the formula says; every unusable input is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from ompq_deploy import calib
from ompq_deploy.calib import InputSpec, Preprocess, input_specs, load_labelled, load_samples, make_preprocess
from ompq_deploy.calib import sources as calib_sources
from ompq_deploy.calib.input_spec import image_input
from ompq_deploy.calib.preprocess import apply_preprocess, fit_image
from ompq_deploy.errors import BadInput
from tests import models

RAW = make_preprocess("raw")
NONE = make_preprocess("none")


def spec(*shape: int | None, dtype: str = "float32", name: str = "x") -> InputSpec:
    return InputSpec(name=name, shape=shape, dtype=np.dtype(dtype))


SMALL = [spec(None, 3, 8, 8)]


def pixels(count: int, height: int = 8, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def save_images(folder: Path, images: np.ndarray) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.squeeze()).save(path)
    return paths


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The image files decoded so far."""
    seen: list[Path] = []
    original = calib_sources.open_image

    def spy(path: Path, channels: int) -> Image.Image:
        seen.append(path)
        return original(path, channels)

    monkeypatch.setattr(calib_sources, "open_image", spy)
    return seen


# --- preprocessing


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("torchvision", [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0 - 0.406) / 0.225]),
        ("tf", [1.0, 51 / 127.5 - 1, -1.0]),
        ("caffe", [0 - 103.939, 51 - 116.779, 255 - 123.68]),
        ("unit", [1.0, 0.2, 0.0]),
        ("raw", [255.0, 51.0, 0.0]),
    ],
)
def test_each_preset_computes_its_formula(preset: str, expected: list[float]) -> None:
    image = np.full((1, 8, 8, 3), (255, 51, 0), np.uint8)
    x = apply_preprocess(image, make_preprocess(preset), image_input(SMALL, None))
    assert x.shape == (1, 3, 8, 8)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_allclose(x, np.broadcast_to(np.reshape(expected, (1, 3, 1, 1)), x.shape), rtol=1e-6, atol=1e-6)


def test_presets_are_the_documented_ones() -> None:
    assert list(calib.PRESETS) == ["torchvision", "tf", "caffe", "unit", "raw", "none"]
    assert all(preset.name == name for name, preset in calib.PRESETS.items())


def test_bgr_takes_the_presets_figures_along_with_the_colours() -> None:
    image, target = pixels(2), image_input(SMALL, None)
    rgb = apply_preprocess(image, make_preprocess("torchvision"), target)
    bgr = apply_preprocess(image, make_preprocess("torchvision", bgr=True), target)
    np.testing.assert_array_equal(bgr, rgb[:, ::-1])


def test_overrides_replace_the_figures_in_the_presets_units() -> None:
    x = apply_preprocess(pixels(1), make_preprocess("raw", mean=[127], std=[128], bgr=True), image_input(SMALL, None))
    np.testing.assert_allclose(x, (pixels(1)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"preset": "imagenet"}, "--preprocess"),
        ({"preset": "raw", "layout": "CHW"}, "--layout"),
        ({"preset": "raw", "mean": [1.0, 2.0]}, "--mean"),
        ({"preset": "raw", "mean": [float("nan")]}, "--mean"),
        ({"preset": "raw", "std": [0.0]}, "--std"),
        ({"preset": "none", "std": [1.0]}, "--preprocess none"),
    ],
)
def test_bad_preprocessing_is_refused_at_the_flag(arguments: dict[str, Any], where: str) -> None:
    with pytest.raises(BadInput) as caught:
        make_preprocess(**arguments)
    assert caught.value.where == where
    assert caught.value.fix


def test_an_image_of_the_right_size_is_untouched() -> None:
    image = pixels(1)[0]
    np.testing.assert_array_equal(fit_image(Image.fromarray(image), 8, 8), image)


def test_fitting_resizes_the_short_side_and_crops_the_centre() -> None:
    image = pixels(1, 64, 128)[0]
    resized = Image.fromarray(image).resize((64, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(fit_image(Image.fromarray(image), 28, 28), np.asarray(resized)[2:30, 18:46])


@pytest.mark.parametrize(("width", "height"), [(3, 5), (500, 7), (7, 500), (29, 28), (33, 33)])
def test_fitting_always_gives_the_size_asked_and_keeps_a_flat_colour(width: int, height: int) -> None:
    fitted = fit_image(Image.new("RGB", (width, height), (9, 200, 77)), 28, 20)
    assert fitted.shape == (28, 20, 3)
    assert np.unique(fitted.reshape(-1, 3), axis=0).tolist() == [[9, 200, 77]]


# --- what the model's input takes


def test_layout_is_read_off_the_shape_and_can_be_set() -> None:
    assert image_input([spec(None, 3, 8, 8)], None).layout == "NCHW"
    assert image_input([spec(None, 8, 8, 3)], None).layout == "NHWC"
    assert image_input([spec(1, 3, 8, 3)], None).layout == "NCHW"
    assert image_input([spec(1, 3, 8, 3)], "NHWC").height == 3
    with pytest.raises(BadInput, match="8 channels in NCHW"):
        image_input([spec(None, 8, 8, 3)], "NCHW")
    with pytest.raises(BadInput, match="unknown number"):
        image_input([spec(None, None, 8, 8)], None)


def test_channels_last_models_get_channels_last_tensors(tmp_path: Path) -> None:
    save_images(tmp_path / "a", pixels(2))
    last = load_samples(tmp_path, [spec(None, 8, 8, 3)])
    first = load_samples(tmp_path, SMALL)
    np.testing.assert_array_equal(last.inputs["x"], first.inputs["x"].transpose(0, 2, 3, 1))


def test_initializers_listed_as_inputs_are_no_inputs() -> None:
    model = models.residual_network()
    model.graph.input.append(helper.make_tensor_value_info("stem_weight", TensorProto.FLOAT, [8, 3, 3, 3]))
    assert input_specs(model) == (spec(None, 3, 16, 16),)


def test_float16_and_uint8_inputs(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", images=pixels(2))
    assert load_samples(path, [spec(1, 3, 8, 8, dtype="float16")]).inputs["x"].dtype == np.float16
    fed = load_samples(path, [spec(1, 3, 8, 8, dtype="uint8")], preprocess=RAW).inputs["x"]
    np.testing.assert_array_equal(fed, pixels(2).transpose(0, 3, 1, 2))
    assert fed.dtype == np.uint8
    with pytest.raises(BadInput, match="uint8 cannot hold images after preprocessing torchvision"):
        load_samples(path, [spec(1, 3, 8, 8, dtype="uint8")])


def test_grey_models_get_grey_images(tmp_path: Path) -> None:
    grey, inputs = pixels(3, channels=1), [spec(None, 1, 8, 8)]
    save_images(tmp_path / "a", grey)
    expected = grey.transpose(0, 3, 1, 2).astype(np.float32)
    for path in (tmp_path / "a", save_npz(tmp_path / "b.npz", images=grey[..., 0])):
        np.testing.assert_array_equal(load_samples(path, inputs, preprocess=RAW).inputs["x"], expected)
    with pytest.raises(BadInput, match=r"3 values for 1 channel"):
        load_samples(tmp_path / "a", inputs)


def test_models_of_open_size_get_224_from_files_and_the_own_size_from_arrays(tmp_path: Path) -> None:
    inputs = [spec(None, 3, None, None)]
    save_images(tmp_path / "a", pixels(1, 10, 12))
    fed = load_samples(tmp_path / "a", inputs)
    assert fed.inputs["x"].shape == (1, 3, 224, 224)
    assert "224 x 224" in fed.source
    path = save_npz(tmp_path / "a.npz", images=pixels(2, 10, 12))
    assert load_samples(path, inputs).inputs["x"].shape == (2, 3, 10, 12)


# --- choosing samples


def test_one_sample_is_drawn_from_each_stretch_as_the_seed_says(tmp_path: Path) -> None:
    ready = np.arange(100, dtype=np.float32).reshape(100, 1)
    path = save_npz(tmp_path / "a.npz", x=ready)
    draws = [load_samples(path, [spec(None, 1)], count=10, seed=seed).inputs["x"].ravel() for seed in (0, 0, 1)]
    for draw in draws:
        assert (draw // 10).tolist() == list(range(10))
    assert draws[0].tolist() == draws[1].tolist() != draws[2].tolist()


@pytest.mark.parametrize(("total", "count"), [(5, 3), (7, 7), (3, 64), (64, 63), (1, 1)])
def test_samples_are_distinct_and_as_many_as_there_are(tmp_path: Path, total: int, count: int) -> None:
    path = save_npz(tmp_path / "a.npz", x=np.arange(total, dtype=np.float32).reshape(total, 1))
    for seed in range(5):
        fed = load_samples(path, [spec(None, 1)], count=count, seed=seed)
        assert len(fed) == len(set(fed.inputs["x"].ravel().tolist())) == min(total, count)


def test_64_samples_unless_told_otherwise(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", x=np.zeros((100, 1), np.float32))
    assert len(load_samples(path, [spec(None, 1)])) == 64
    assert len(load_samples(path, [spec(None, 1)], count=100)) == 100


def test_only_the_chosen_images_are_decoded(tmp_path: Path, opened: list[Path]) -> None:
    save_images(tmp_path / "a", pixels(20))
    load_samples(tmp_path, SMALL, count=4)
    assert len(opened) == 4


def test_the_hash_covers_values_shape_dtype_and_name(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)

    def digest(array: np.ndarray, name: str = "x") -> str:
        inputs = [spec(*array.shape, dtype=str(array.dtype), name=name)]
        return load_samples(save_npz(tmp_path / "a.npz", **{name: array}), inputs).sha256

    other = values.copy()
    other[2, 3] += 1e-6
    variants = [values, other, values.reshape(3, 2, 2), values.view(np.int32)]
    assert digest(values) == digest(values.copy())
    assert len({digest(variant) for variant in variants} | {digest(values, "y")}) == 5


# --- sources


def test_files_and_array_of_the_same_images_are_fed_alike(tmp_path: Path) -> None:
    images = pixels(6, 11, 13)
    save_images(tmp_path / "flat", images)
    save_images(tmp_path / "tree" / "0000", images[:3])
    save_images(tmp_path / "tree" / "0001", images[3:])
    np.save(tmp_path / "a.npy", images)
    paths = [tmp_path / "flat", tmp_path / "tree", tmp_path / "a.npy", save_npz(tmp_path / "a.npz", images=images)]
    fed = [load_samples(path, SMALL) for path in paths]
    assert len({one.sha256 for one in fed}) == 1
    assert all("torchvision preprocessing (the default" in one.source for one in fed)
    assert all(str(path) in one.source for path, one in zip(paths, fed, strict=True))


def test_ready_arrays_are_fed_as_they_are(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    ids = np.arange(10, dtype=np.int64).reshape(5, 2)
    inputs = [*SMALL, spec(None, 2, dtype="int64", name="ids")]
    path = save_npz(tmp_path / "a.npz", x=rows, ids=ids, labels=np.arange(5))
    for preprocess in (None, NONE):
        fed = load_samples(path, inputs, count=3, preprocess=preprocess)
        assert fed.labels is not None
        np.testing.assert_array_equal(fed.inputs["x"], rows[fed.labels])
        np.testing.assert_array_equal(fed.inputs["ids"], ids[fed.labels])


def test_uint8_tensors_that_fit_are_no_images_to_preprocess(tmp_path: Path) -> None:
    ready = pixels(2).transpose(0, 3, 1, 2)
    fed = load_samples(save_npz(tmp_path / "a.npz", x=ready), [spec(None, 3, 8, 8, dtype="uint8")])
    np.testing.assert_array_equal(fed.inputs["x"], ready)
    assert "fed as they are" in fed.source


def test_bundled_photographs_are_the_default_and_named() -> None:
    fed = load_samples(None, [spec(None, 3, 224, 224)], count=6)
    assert fed.inputs["x"].shape == (6, 3, 224, 224)
    assert fed.source.startswith("6 bundled photographs, torchvision preprocessing")


@pytest.mark.parametrize("inputs", [[spec(None, 10)], [spec(None, 1, 8, 8)], [*SMALL, spec(None, 2, name="y")]])
def test_no_bundled_photographs_for_other_models(inputs: list[InputSpec]) -> None:
    with pytest.raises(BadInput, match="bundled photographs") as caught:
        load_samples(None, inputs)
    assert "--calib" in caught.value.fix


def test_images_below_links_count_and_hidden_folders_do_not(tmp_path: Path) -> None:
    save_images(tmp_path / "elsewhere" / "cats", pixels(2))
    save_images(tmp_path / "data" / "dogs", pixels(1))
    save_images(tmp_path / "data" / ".ipynb_checkpoints", pixels(1))
    (tmp_path / "data" / "cats").symlink_to(tmp_path / "elsewhere" / "cats")
    (tmp_path / "data" / "dogs" / "back").symlink_to(tmp_path / "data")
    data = load_labelled(tmp_path / "data", SMALL)
    assert data.labels.tolist() == [0, 0, 1]


# --- labels


def test_numeric_folders_are_class_indices(tmp_path: Path) -> None:
    for folder in ("0007", "12", "3"):
        save_images(tmp_path / folder, pixels(1))
    data = load_labelled(tmp_path, SMALL)
    assert data.labels.tolist() == [7, 12, 3]
    assert data.classes is None


def test_named_folders_count_in_sorted_order_unless_classes_txt_tells(tmp_path: Path) -> None:
    for folder in ("dog", "ape"):
        save_images(tmp_path / folder, pixels(2))
    data = load_labelled(tmp_path, SMALL)
    assert (data.labels.tolist(), data.classes) == ([0, 0, 1, 1], 2)
    (tmp_path / "classes.txt").write_text("cat\ndog\neel\nape\n")
    data = load_labelled(tmp_path, SMALL)
    assert (data.labels.tolist(), data.classes) == ([3, 3, 1, 1], None)


@pytest.mark.parametrize("header", ["", "filename,label\n"])
def test_labels_csv_names_files_paths_or_folders(tmp_path: Path, header: str) -> None:
    save_images(tmp_path, pixels(1))
    save_images(tmp_path / "a", pixels(2))
    save_images(tmp_path / "b", pixels(3))
    (tmp_path / "labels.csv").write_text(f"{header}000.png,4\na/000.png,5\na/001.png,6\nb/001.png,8\nb,7\n")
    data = load_labelled(tmp_path, SMALL)
    assert isinstance(data.data, calib_sources.ImageFiles)
    by_name = dict(zip([p.relative_to(tmp_path).as_posix() for p in data.data.files], data.labels, strict=True))
    by_path = {"a/000.png": 5, "a/001.png": 6, "b/001.png": 8}
    assert by_name == {"000.png": 4, **by_path, "b/000.png": 4, "b/002.png": 7}


def test_a_class_on_two_lines_has_no_index(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("crane\ncat\ncrane\n")
    save_images(tmp_path / "cat", pixels(1))
    assert load_labelled(tmp_path, SMALL).labels.tolist() == [1]
    save_images(tmp_path / "crane", pixels(1))
    with pytest.raises(BadInput, match="two lines"):
        load_labelled(tmp_path, SMALL)


def test_a_file_with_two_labels_is_refused(tmp_path: Path) -> None:
    save_images(tmp_path / "any", pixels(1))
    name = next((tmp_path / "any").iterdir()).name
    (tmp_path / "labels.csv").write_text(f"{name},3\n{name},3\n")
    assert load_labelled(tmp_path, SMALL).labels.tolist() == [3]
    (tmp_path / "labels.csv").write_text(f"{name},3\n{name},4\n")
    with pytest.raises(BadInput, match="two labels"):
        load_labelled(tmp_path, SMALL)


def test_numbers_in_classes_txt_are_names(tmp_path: Path) -> None:
    save_images(tmp_path / "7", pixels(1))
    (tmp_path / "classes.txt").write_text("9\n7\n")
    assert load_labelled(tmp_path, SMALL).labels.tolist() == [1]


def test_labelled_data_are_preprocessed_batch_by_batch(tmp_path: Path, opened: list[Path]) -> None:
    save_images(tmp_path / "0", pixels(7))
    data = load_labelled(tmp_path, SMALL)
    assert not opened
    batches = data.batches(3)
    first = next(batches)
    assert len(opened) == 3
    assert [len(feeds["x"]) for feeds in (first, *batches)] == [3, 3, 1]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_batches_join_to_the_whole_set(tmp_path: Path, size: int) -> None:
    path = save_npz(tmp_path / "a.npz", images=pixels(10), labels=np.arange(10))
    data = load_labelled(path, SMALL, preprocess=RAW)
    joined = np.concatenate([feeds["x"] for feeds in data.batches(size)])
    np.testing.assert_array_equal(joined, pixels(10).transpose(0, 3, 1, 2))
    assert isinstance(data.data, calib_sources.ImageArray)
    assert data.data.images.dtype == np.uint8
    assert data.labels.tolist() == list(range(10))
    some = load_labelled(path, SMALL, preprocess=RAW, count=4)
    fed = next(some.batches(4))["x"]
    np.testing.assert_array_equal(fed, joined[some.labels])


# --- errors


def wrong_shape(folder: Path) -> Path:
    return save_npz(folder / "a.npz", x=np.zeros((4, 3, 9, 8), np.float32))


def wrong_dtype(folder: Path) -> Path:
    return save_npz(folder / "a.npz", x=np.zeros((4, 3, 8, 8), np.int64))


def not_a_number(folder: Path) -> Path:
    x = np.zeros((4, 3, 8, 8), np.float32)
    x[2, 0, 0, 0] = np.nan
    return save_npz(folder / "a.npz", x=x)


def no_key(folder: Path) -> Path:
    return save_npz(folder / "a.npz", data=pixels(2), target=np.zeros(2))


def pickled_npz(folder: Path) -> Path:
    return save_npz(folder / "a.npz", x=np.array([{"a": 1}], dtype=object))


def pickled_npy(folder: Path) -> Path:
    np.save(folder / "a.npy", np.array([{"a": 1}], dtype=object))
    return folder / "a.npy"


def few_labels(folder: Path) -> Path:
    return save_npz(folder / "a.npz", images=pixels(4), labels=np.arange(3))


def float_labels(folder: Path) -> Path:
    return save_npz(folder / "a.npz", images=pixels(4), labels=np.arange(4.0))


def scalar(folder: Path) -> Path:
    return save_npz(folder / "a.npz", x=np.float32(0), labels=np.arange(3))


def broken_header(folder: Path) -> Path:
    np.save(folder / "a.npy", np.zeros((4, 3, 8, 8), np.float32))
    content = (folder / "a.npy").read_bytes()
    (folder / "a.npy").write_bytes(content.replace(b"}", b" "))
    return folder / "a.npy"


def encrypted_npz(folder: Path) -> Path:
    path = save_npz(folder / "a.npz", images=pixels(4))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


def no_samples(folder: Path) -> Path:
    return save_npz(folder / "a.npz", images=pixels(0))


def channels_first(folder: Path) -> Path:
    return save_npz(folder / "a.npz", images=pixels(2).transpose(0, 3, 1, 2))


def empty_folder(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no images here")
    return folder


def broken_image(folder: Path) -> Path:
    path = save_images(folder / "a", pixels(1))[0]
    path.write_bytes(path.read_bytes()[:60])
    return folder


def deep_image(folder: Path) -> Path:
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(folder / "deep.png")
    return folder


def no_file(folder: Path) -> Path:
    return folder / "absent.npz"


def other_file(folder: Path) -> Path:
    (folder / "a.h5").write_bytes(b"x")
    return folder / "a.h5"


def cut_npz(folder: Path) -> Path:
    path = save_npz(folder / "a.npz", images=pixels(4))
    path.write_bytes(path.read_bytes()[:200])
    return path


def empty_file(folder: Path) -> Path:
    (folder / "a.npy").write_bytes(b"")
    return folder / "a.npy"


def unequal_lengths(folder: Path) -> Path:
    return save_npz(folder / "a.npz", x=np.zeros((4, 3, 8, 8), np.float32), y=np.zeros((3, 2), np.float32))


@pytest.mark.parametrize(
    ("make", "inputs", "preprocess", "message"),
    [
        (no_file, SMALL, None, "no such file"),
        (other_file, SMALL, None, "neither a directory nor"),
        (empty_file, SMALL, None, "cannot be read"),
        (cut_npz, SMALL, None, "cannot be read"),
        (broken_header, SMALL, None, "cannot be read"),
        (encrypted_npz, SMALL, None, r"cannot be read[\s\S]*encrypted"),
        (scalar, SMALL, None, "3 labels for 'x'"),
        (empty_folder, SMALL, None, "holds no images"),
        (broken_image, SMALL, None, r"image cannot be read[\s\S]*000\.png"),
        (deep_image, SMALL, None, r"more than 8 bits[\s\S]*deep\.png"),
        (no_samples, SMALL, None, "no samples"),
        (wrong_shape, SMALL, None, r"expects float32 \(N, 3, 8, 8\), got float32 \(4, 3, 9, 8\)"),
        (wrong_dtype, SMALL, None, r"expects float32 \(N, 3, 8, 8\), got int64 \(4, 3, 8, 8\)"),
        (wrong_shape, SMALL, RAW, "applies to uint8 images"),
        (not_a_number, SMALL, None, "first in sample 2"),
        (no_key, SMALL, None, "'data', 'target'.*'x'"),
        (pickled_npz, SMALL, None, r"pickled \(object\) arrays are refused"),
        (pickled_npy, SMALL, None, r"pickled \(object\) arrays are refused"),
        (few_labels, SMALL, None, r"3 labels for 'x' of shape \(4, 8, 8, 3\)"),
        (float_labels, SMALL, None, "labels are float64"),
        (channels_first, SMALL, None, r"expected images uint8 \(N, H, W, 3\), got uint8 \(2, 3, 8, 8\)"),
        (few_labels, SMALL, NONE, "3 labels"),
        (no_samples, [spec(None, 10)], None, "not a batch of images"),
        (unequal_lengths, [*SMALL, spec(None, 2, name="y")], None, "differ in length"),
        (unequal_lengths, [*SMALL, spec(None, 2, name="z")], None, "'x', 'y'.*'x', 'z'"),
    ],
)
def test_unusable_data_are_refused_with_a_reason_and_a_remedy(
    tmp_path: Path, make: Callable[[Path], Path], inputs: list[InputSpec], preprocess: Preprocess | None, message: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(BadInput, match=message) as caught:
        load_samples(path, inputs, preprocess=preprocess)
    assert caught.value.where
    assert caught.value.fix
    assert caught.value.exit_code == 2


def test_one_array_cannot_feed_two_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 3, 8, 8), np.float32))
    with pytest.raises(BadInput, match="one array for a model with 2 inputs"):
        load_samples(tmp_path / "a.npy", [*SMALL, spec(None, 2, name="y")])


@pytest.mark.parametrize("count", [0, -3])
def test_no_samples_asked_for(tmp_path: Path, count: int) -> None:
    with pytest.raises(BadInput, match="samples asked for") as caught:
        load_samples(save_npz(tmp_path / "a.npz", images=pixels(4)), SMALL, count=count)
    assert caught.value.where == "--samples"


def test_images_are_never_ready(tmp_path: Path) -> None:
    save_images(tmp_path, pixels(1))
    with pytest.raises(BadInput, match="cannot be fed as they are"):
        load_samples(tmp_path, SMALL, preprocess=NONE)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "lies in no class folder"),
        ({"labels.csv": "001.png,3\n"}, "000.png has no row"),
        ({"labels.csv": "000.png,3\n001.png\n"}, r"needs a name and a label[\s\S]*line 2"),
        ({"labels.csv": "000.png,3\n001.png,cat\n"}, r"'cat' has no index[\s\S]*line 2"),
    ],
)
def test_flat_folders_need_a_complete_table(tmp_path: Path, files: dict[str, str], message: str) -> None:
    save_images(tmp_path, pixels(2))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=message):
        load_labelled(tmp_path, SMALL)


def test_folders_must_be_in_classes_txt(tmp_path: Path) -> None:
    save_images(tmp_path / "dog", pixels(1))
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(BadInput, match="'dog' has no index"):
        load_labelled(tmp_path, SMALL)


def test_tables_are_utf8_text(tmp_path: Path) -> None:
    save_images(tmp_path / "dog", pixels(1))
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfed\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        load_labelled(tmp_path, SMALL)


def test_labelled_data_need_labels(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="have no labels"):
        load_labelled(save_npz(tmp_path / "a.npz", images=pixels(2)), SMALL)
