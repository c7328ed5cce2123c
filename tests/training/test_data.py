"""Data: verified, split the same way every time, and refused with one line when they cannot be used."""

from __future__ import annotations

import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digitcnn import training
from digitcnn.config import DataConfig, load_config
from digitcnn.errors import ConfigError
from digitcnn.training import data


def config(**values: Any) -> DataConfig:
    return load_config(DataConfig, values)


def test_load_splits_divides_the_packaged_mnist_into_50000_and_10000() -> None:
    splits = training.load_splits(config())
    assert splits.train.images.shape == (50_000, 28, 28)
    assert splits.validation.images.shape == (10_000, 28, 28)
    assert splits.classes == 10
    assert splits.train.images.dtype == np.uint8


def test_load_splits_nests_subsets_that_share_the_holdout(small_npz: Path) -> None:
    some = training.load_splits(config(path=str(small_npz), validation_size=100, train_size=50))
    more = training.load_splits(config(path=str(small_npz), validation_size=100, train_size=200))
    assert np.array_equal(some.train.images, more.train.images[:50])
    assert np.array_equal(some.validation.images, more.validation.images)
    other = training.load_splits(config(path=str(small_npz), validation_size=100, train_size=50, split_seed=1))
    assert not np.array_equal(some.validation.images, other.validation.images)


def test_load_splits_puts_no_image_into_both_parts(small_npz: Path) -> None:
    splits = training.load_splits(config(path=str(small_npz), validation_size=100))
    with np.load(small_npz) as file:
        everything = np.sort(file["x_train"].reshape(600, -1).sum(axis=1, dtype=np.int64))
    together = np.concatenate([splits.train.images, splits.validation.images])
    assert np.array_equal(np.sort(together.reshape(600, -1).sum(axis=1, dtype=np.int64)), everything)


def test_load_splits_does_not_read_the_test_set_for_a_holdout(small_npz: Path, tmp_path: Path) -> None:
    path = tmp_path / "no-test.npz"
    with np.load(small_npz) as file:
        np.savez(path, x_train=file["x_train"], y_train=file["y_train"])
    assert len(training.load_splits(config(path=str(path), validation_size=100)).train) == 500
    with pytest.raises(ConfigError, match="has no array x_test"):
        training.load_splits(config(path=str(path), validation="test"))


def test_load_splits_takes_provided_arrays_for_a_file_that_is_elsewhere(
    small_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same splits and the same SHA-256 as from the file; of the test set no more is passed on than is read."""
    monkeypatch.setattr(data, "_provided", {})
    for validation in ("holdout", "test"):
        config = load_config(DataConfig, {"path": str(small_npz), "validation_size": 100, "validation": validation})
        arrays = training.read_arrays(config)
        assert ("x_test" in arrays) is (validation == "test")
        elsewhere = config.model_copy(update={"path": str(tmp_path / "elsewhere.npz")})
        training.provide_arrays(elsewhere.path, arrays)
        here, there = training.load_splits(config), training.load_splits(elsewhere)
        assert here.sha256 == there.sha256
        assert here.train.sha256() == there.train.sha256()
        assert here.validation.sha256() == there.validation.sha256()
    assert training.read_arrays(DataConfig()) == {}


def test_load_splits_validates_on_the_test_set_as_the_article_did(small_npz: Path) -> None:
    splits = training.load_splits(config(path=str(small_npz), validation="test"))
    assert (len(splits.train), len(splits.validation)) == (600, 100)


def test_load_splits_notices_damaged_packaged_data(monkeypatch: pytest.MonkeyPatch, small_npz: Path) -> None:
    monkeypatch.setattr(data, "_PACKAGED", small_npz)
    with pytest.raises(Exception, match="x_train has another SHA-256"):
        training.load_splits(config())


def test_load_splits_holds_out_each_class_in_proportion(tmp_path: Path) -> None:
    """Given classes of 900, 90 and 10 images, a holdout of a tenth and a subset of a tenth have 90, 9 and 1 of them."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [900, 90, 10]))
    images = np.random.default_rng(1).integers(0, 200, (1000, 4, 4), np.uint8)
    np.savez(tmp_path / "it.npz", x_train=images, y_train=labels)
    for seed in range(5):
        splits = training.load_splits(
            config(path=str(tmp_path / "it.npz"), validation_size=100, train_size=100, split_seed=seed)
        )
        for examples in (splits.train, splits.validation):
            assert np.abs(np.bincount(examples.labels) - [90, 9, 1]).max() <= 1
        assert splits.doubts == () or all("is of class 2" in doubt for doubt in splits.doubts)
    assert len(training.load_splits(config(train_size=1000)).doubts) == 0


def test_load_splits_keeps_the_order_of_runs_that_hold_nothing_out(small_npz: Path) -> None:
    """The published champion's order: another would be other bits."""
    with np.load(small_npz) as file:
        expected = file["x_train"][np.random.default_rng(0).permutation(600)]
    assert np.array_equal(training.load_splits(config(path=str(small_npz), validation="test")).train.images, expected)


def _said(path: Path, **values: Any) -> tuple[str, ...]:
    arrays = {name: values.pop(name) for name in ("x_train", "y_train", "x_test", "y_test") if name in values}
    np.savez(path, **arrays)
    return training.load_splits(config(path=str(path), **values)).doubts


def test_load_splits_says_what_makes_results_doubtful(small_npz: Path, tmp_path: Path) -> None:
    with np.load(small_npz) as file:
        arrays = dict(file)
    few = arrays["y_train"] < 9
    few[np.flatnonzero(~few)[0]] = True
    path = tmp_path / "it.npz"
    assert _said(path, **arrays, validation="test") == ()
    dark = arrays | {"x_train": 255 - arrays["x_train"], "x_test": 255 - arrays["x_test"]}
    assert _said(path, **dark, validation_size=100) == (
        "the images are dark on light; MNIST's, and those that predict makes, are light on black: 255 - x",
    )
    one = arrays | {"x_train": arrays["x_train"][few], "y_train": arrays["y_train"][few]}
    assert _said(path, **one, validation_size=100) == ("none of the images to judge by is of class 9",)
    assert _said(path, **arrays, validation_size=100, train_size=5)[0].startswith(
        "none of the images to train on is of"
    )
    thrice = arrays | {name: arrays[name].repeat(3, axis=0) for name in ("x_train", "y_train")}
    assert _said(path, **thrice, validation_size=180)[0].endswith(
        " of the 180 images to judge by are among those to train on"
    )
    shared = arrays | {"x_test": arrays["x_train"][:60], "y_test": arrays["y_train"][:60]}
    assert "60 of the 60 images to judge by are among" in _said(path, **shared, validation="test_once")[0]


def test_load_splits_refuses_a_test_set_of_other_images(small_npz: Path, tmp_path: Path) -> None:
    with np.load(small_npz) as file:
        arrays = dict(file)
    for values, message in (
        ({"x_test": arrays["x_test"] // 255}, "the brightest pixel of x_test is 1; images are 0 to 255"),
        ({"x_test": arrays["x_test"][:, :20]}, "training images are (28, 28), test images (20, 28) pixels"),
        ({"y_test": arrays["y_test"] + 1}, "y_test has labels to 10, y_train only to 9"),
    ):
        np.savez(tmp_path / "it.npz", **arrays | values)
        with pytest.raises(ConfigError) as caught:
            training.load_splits(config(path=str(tmp_path / "it.npz"), validation="test"))
        assert message in str(caught.value)


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 5, 6), np.uint8)
LABELS = np.array([0, 1, 0, 1])


def _text(path: Path) -> None:
    path.write_text("not an archive")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _arrays(x: Any = IMAGES, y: Any = LABELS) -> Callable[[Path], None]:
    return lambda path: np.savez(path, x_train=x, y_train=y)


def _truncated(path: Path) -> None:
    np.savez(path, x_train=np.random.default_rng(0).integers(0, 255, (400, 28, 28), np.uint8), y_train=LABELS)
    path.write_bytes(path.read_bytes()[:100_000])


def _corrupt_member(path: Path) -> None:
    np.savez_compressed(path, x_train=IMAGES, y_train=LABELS)
    content = bytearray(path.read_bytes())
    content[60:70] = b"0123456789"
    path.write_bytes(content)


def _absurd_shape(path: Path) -> None:
    """A header that promises 8 TB behind a few bytes."""
    with zipfile.ZipFile(path, "w") as archive, archive.open("x_train.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 900, 900)}
        )
        member.write(b"1234")


def _with_header(header: bytes, content: bytes = b"", version: bytes = b"\1\0") -> Callable[[Path], None]:
    """An archive whose x_train has this header."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            length = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
            archive.writestr("x_train.npy", b"\x93NUMPY" + version + length + header + content)

    return write


def _shape(shape: str) -> Callable[[Path], None]:
    return _with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode(), bytes(120))


def _long_header(path: Path) -> None:
    """A header of 150 MB that is 150 kB in the archive: numpy would read it before it looks at its length."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x_train.npy", "w") as member,
    ):
        member.write(b"\x93NUMPY\2\0" + (150 * 2**20).to_bytes(4, "little"))
        for _ in range(150):
            member.write(b" " * 2**20)


def _zip_bomb(path: Path) -> None:
    """150 MB of black images that are 150 kB in the archive."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x_train.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(
            member, {"descr": "|u1", "fortran_order": False, "shape": (150, 1024, 1024)}
        )
        for _ in range(150):
            member.write(bytes(2**20))


def _many_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(2000):
            archive.writestr(f"{number}.npy", b"")


def _other_compression(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x_train.npy", b"x")


def _encrypted(path: Path) -> None:
    np.savez(path, x_train=IMAGES, y_train=LABELS)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)


def _overruled_directory(path: Path) -> None:
    """A second end record, which zipfile prefers: it could give the directory any size."""
    np.savez(path, x_train=IMAGES, y_train=LABELS)
    content = path.read_bytes()
    end = content.index(b"PK\5\6")
    path.write_bytes(content[:end] + b"PK\6\7" + bytes(16) + content[end:])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_shape("(-4, -5, 6)"), "x_train is (-4, -5, 6) uint8; must be (n, height, width) uint8"),
        (_shape(f"({2**64}, {2**64}, 0)"), "x_train is empty"),
        (_shape(f"({2**64}, 1, 1)"), "over the limit of 2 GiB"),
        (_shape("(4, 5, 7)"), "x_train is corrupt or truncated: (4, 5, 7) uint8 in "),
        (_shape("(1, 5, 7)"), "x_train is corrupt or truncated: (1, 5, 7) uint8 in "),
        (_shape("(4, 5, 'x')"), "x_train is not a numpy array"),
        (_with_header(b"(" * 9000), "x_train is not a numpy array"),
        (_with_header(b"__import__('os').system('true')"), "x_train is not a numpy array"),
        (_with_header(b"{}", version=b"\11\0"), "x_train is not a numpy array"),
        (_long_header, "x_train is not a numpy array"),
        (_zip_bomb, "to 157,286,400 bytes: no images do"),
        (_many_members, "its list of members is that of no npz file"),
        (_overruled_directory, "its list of members is that of no npz file"),
        (_other_compression, "x_train is compressed in a way that numpy does not write"),
        (_encrypted, "is not an npz file, or is corrupt or truncated"),
        (os.mkfifo, "is not a regular file"),
        (_text, "is not an npz file, or is corrupt or truncated"),
        (_empty, "is not an npz file, or is corrupt or truncated"),
        (_truncated, "is not an npz file, or is corrupt or truncated"),
        (_corrupt_member, "corrupt or truncated"),
        (_absurd_shape, "over the limit of 2 GiB"),
        (_arrays(np.array([{"a": 1}] * 4, dtype=object)), "x_train holds pickled objects, which are never opened"),
        (_arrays(y=np.array(["a", "b"] * 2, dtype=object)), "y_train holds pickled objects"),
        (_arrays(IMAGES.astype(np.float32)), "x_train is (4, 5, 6) float32; must be (n, height, width) uint8"),
        (
            _arrays(IMAGES / 255),
            ': x_train.astype("uint8") if its values are 0 to 255, (x_train * 255).round().astype("uint8") if 0 to 1',
        ),
        (
            _arrays(IMAGES[..., None]),
            "x_train is (4, 5, 6, 1) uint8; must be (n, height, width) uint8: x_train[..., 0]",
        ),
        (_arrays(IMAGES[:, None]), "x_train is (4, 1, 5, 6) uint8; must be (n, height, width) uint8: x_train[:, 0]"),
        (_arrays(IMAGES[..., None].repeat(3, -1)), ': x_train[..., :3].mean(-1).round().astype("uint8")'),
        (_arrays(IMAGES[:, :5, :5].reshape(4, 25)), ": x_train.reshape(-1, 5, 5)"),
        (_arrays(IMAGES[:, :5, :5].reshape(4, 25) / 255), '(x_train.reshape(-1, 5, 5) * 255).round().astype("uint8")'),
        (_arrays(IMAGES > 9), 'bool; must be (n, height, width) uint8: x_train.astype("uint8") * 255'),
        (_arrays(IMAGES.astype(int)), ': x_train.astype("uint8") if its values are 0 to 255'),
        (
            _arrays(IMAGES // 128),
            "the brightest pixel of x_train is 1; images are 0 to 255: (x_train * (255 / 1)).round()",
        ),
        (_arrays(IMAGES // 16), "the brightest pixel of x_train is 15; images are 0 to 255"),
        (_arrays(IMAGES * 0 + 128), "all pixels of x_train are 128"),
        (_arrays(IMAGES[:1].repeat(4, 0)), "all images of x_train are the same"),
        (_arrays(y=np.eye(4)), "y_train is (4, 4) float64; must be (n,) of whole numbers: y_train.argmax(1)"),
        (_arrays(y=LABELS[:, None]), "must be (n,) of whole numbers: y_train[:, 0]"),
        (_arrays(y=LABELS + 1), "y_train has labels from 1 to 2; must begin with 0: subtract 1"),
        (_arrays(y=LABELS + ord("0")), "y_train has labels from 48 to 49; must begin with 0: subtract 48"),
        (_arrays(y=LABELS * 0), "y_train has one label, 0; must have 0 and 1 at least"),
        (
            _arrays(y=LABELS.astype(np.int8).astype(np.uint8) - np.uint8(1)),
            "y_train has labels to 255, but none is 1 to 254",
        ),
        (
            lambda path: np.savez(path, X_train=IMAGES, arr_0=LABELS),
            "has no array x_train, but 'X_train', 'arr_0'; needs",
        ),
        (
            _arrays(y=LABELS.astype(float)),
            'y_train is (4,) float64; must be (n,) of whole numbers: y_train.astype("int64")',
        ),
        (_arrays(y=LABELS.astype(str)), "must be (n,) of whole numbers: np.unique(y_train, return_inverse=True)[1]"),
        (_arrays(y=LABELS > 0), "y_train is (4,) bool; must be (n,) of whole numbers: np.unique(y_train, return_inv"),
        (_arrays(y=LABELS[:3]), "4 images but 3 labels"),
        (_arrays(y=np.array([0, -1, 0, 1])), "labels from -1 to 1"),
        (_arrays(y=np.array([0, 5000, 0, 1])), "labels from 0 to 5000; must lie in 0 to 999"),
        (
            _arrays(y=np.array([0, 2, 0, 2])),
            "y_train has labels to 2, but none is 1; np.unique(y, return_inverse=True)[1]",
        ),
        (_arrays(IMAGES[:0], LABELS[:0]), "x_train is empty"),
    ],
)
def test_load_splits_refuses_an_unusable_npz_in_one_line(
    write: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.npz"
    write(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError) as caught:
        training.load_splits(config(path=str(path), validation_size=1))
    # In kB. The bombs would take 150 MB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert "\n" not in str(caught.value)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_load_splits_reads_every_layout_that_numpy_writes(tmp_path: Path) -> None:
    """Given images in Fortran's order and labels of any whole type and byte order, what is read is the same."""
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6), np.uint8)
    for kind in ("|u1", "<u2", ">i4", ">i8", "<u8"):
        x, y = np.asfortranarray(images), LABELS.astype(kind)
        np.savez_compressed(tmp_path / "it.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        path = str(tmp_path / "it.npz")
        train = training.load_splits(config(path=path, validation_size=1)).train
        tested = training.load_splits(config(path=path, validation="test"))
        assert np.array_equal(tested.validation.images, images)
        assert "4 of the 4 images to judge by are among those to train on" in tested.doubts
        order = [int(np.flatnonzero((images == image).all(axis=(1, 2)))[0]) for image in train.images]
        assert len(set(order)) == 3
        assert np.array_equal(train.labels, LABELS[order])
        assert (train.images.flags.c_contiguous, train.labels.dtype) == (True, np.int64)


def test_load_splits_names_missing_files_and_impossible_sizes(small_npz: Path, tmp_path: Path) -> None:
    for values, message in (
        ({"path": str(tmp_path / "no.npz")}, "no such file"),
        ({"path": str(tmp_path)}, "is a folder"),
        ({"path": str(small_npz)}, "data.validation_size=10000: must be below the 600 training images"),
        (
            {"path": str(small_npz), "validation_size": 100, "train_size": 501},
            "data.train_size=501: must be at most 500",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            training.load_splits(config(**values))
        assert message in str(caught.value)
