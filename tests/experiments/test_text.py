"""Text as bytes: what is read, how it is held out and cut, and that its order needs no state."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import UsageError, data
from experiments.data import preflight, text


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A small standard library, with what has to be left out of it."""
    root = tmp_path_factory.mktemp("library")
    for name in [f"module_{i}.py" for i in range(60)] + ["test/test_a.py", "site-packages/b.py", "c.txt"]:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    return root


@pytest.fixture
def loaded(library, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_library", lambda: library)
    return data.load_text("python", tmp_path)


def _documents(tokens):
    assert tokens.dtype == np.uint8
    assert tokens[-1] == text.SEPARATOR
    return [part.decode() for part in tokens.tobytes().split(bytes([text.SEPARATOR]))[:-1]]


def test_every_source_file_is_read_once(loaded):
    train, held_out = _documents(loaded.train), _documents(loaded.validation)
    assert sorted(train + held_out) == sorted(f"# module_{i}.py\n" for i in range(60))
    assert 0 < len(held_out) < 10
    assert loaded.splits == ("train", "validation")


def test_a_limit_cuts_the_text(loaded, tmp_path):
    short = data.load_text("python", tmp_path, most_bytes=160)
    np.testing.assert_array_equal(short.train, loaded.train[:160])
    np.testing.assert_array_equal(short.validation, loaded.validation[:10])
    assert short.sha256 != loaded.sha256 == data.load_text("python", tmp_path).sha256


def test_the_standard_library_itself_is_found():
    files = text._files()
    assert {"typing.py", "json/decoder.py"} <= set(files)
    assert files == sorted(files)
    assert not [path for path in files if "/test/" in f"/{path}" or "site-packages" in path]


def test_batches_are_all_windows_in_an_order_of_their_own_in_each_epoch():
    tokens = np.arange(1, 98, dtype=np.uint8)  # eight windows of twelve, and one byte after the last
    batches = data.batches(tokens, 12, 2, seed=0)
    epochs = [np.concatenate([batches[i] for i in range(4 * e, 4 * e + 4)]) for e in range(2)]
    expected = tokens[np.arange(0, 96, 12)[:, None] + np.arange(13)]
    for epoch in epochs:
        np.testing.assert_array_equal(epoch[np.argsort(epoch[:, 0])], expected)
    assert np.any(epochs[0] != epochs[1])
    assert np.any(epochs[0][0] != data.batches(tokens, 12, 2, seed=1)[0][0])
    np.testing.assert_array_equal(data.batches(tokens, 12, 2, seed=0)[5], batches[5])


def test_a_text_shorter_than_a_batch_is_refused():
    with pytest.raises(UsageError, match="which is 2 windows of 4; expected at least one batch of 3"):
        data.batches(np.zeros(10, np.uint8), 4, 3, seed=0)


def test_any_tfds_text_by_the_same_path(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "answers", lambda url: True)
    monkeypatch.setattr(text, "_splits", lambda name, there: ("train", "test"))  # mocked builders list none
    with tfds.testing.mock_data(num_examples=20):
        loaded = data.load_text("imdb_reviews", tmp_path)
        assert len(loaded.train) > 20
        with pytest.raises(UsageError, match=r"features \['image', 'label'\]; expected 'text'"):
            data.load_text("mnist", tmp_path)


def test_what_is_held_out():
    assert text._splits("a", ["train", "test", "validation"]) == ("train", "validation")
    assert text._splits("a", ["test", "train"]) == ("train", "test")
    assert text._splits("a", ["train"]) == ("train[:95%]", "train[95%:]")
    with pytest.raises(UsageError, match="expected 'train' among them"):
        text._splits("a", ["test"])


def test_unknown_dataset_names_the_embedded_one(tmp_path):
    with pytest.raises(UsageError, match=r"'pythn': expected python \(embedded\)"):
        data.load_text("pythn", tmp_path)
