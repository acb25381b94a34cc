"""The cache of embeddings: it keeps to its budget, survives damage and company, and knows what a key depends on."""

import multiprocessing
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from smml.errors import InputError
from smml.sam.cache import EmbeddingCache, embedding_key

KEYS = [embedding_key("weights", torch.full((4, 5), float(n)), (0.0, 1.0)) for n in range(6)]


def embedding(number: int) -> torch.Tensor:
    return torch.full((2, 3, 3), float(number))  # 72 bytes


def test_the_least_recently_used_leaves_first():
    cache = EmbeddingCache(max_bytes=3 * 72)
    for n in range(3):
        cache.put(KEYS[n], embedding(n))
    cache.get(KEYS[0])
    cache.put(KEYS[3], embedding(3))
    assert [n for n in range(4) if cache.get(KEYS[n]) is not None] == [0, 2, 3]
    assert (cache.bytes, len(cache)) == (3 * 72, 3)
    cache.put(KEYS[3], embedding(3))
    assert cache.bytes == 3 * 72
    cache.clear()
    assert (cache.bytes, len(cache)) == (0, 0)


def test_nothing_larger_than_the_budget_is_kept():
    cache = EmbeddingCache(max_bytes=71)
    cache.put(KEYS[0], embedding(0))
    assert (cache.bytes, len(cache)) == (0, 0)
    assert not EmbeddingCache(0).active
    with pytest.raises(InputError, match="max_bytes"):
        EmbeddingCache(-1)


def test_a_row_of_a_batch_does_not_keep_the_batch_alive():
    cache = EmbeddingCache()
    batch = torch.zeros(8, 2, 3, 3)
    cache.put(KEYS[0], batch[0])
    assert cache.get(KEYS[0]).untyped_storage().nbytes() == 72


def test_a_key_depends_on_the_voxels_their_order_the_window_and_the_weights():
    slice_ = torch.arange(20.0).reshape(4, 5)
    keys = [
        embedding_key("a", slice_, (0.0, 1.0)),
        embedding_key("b", slice_, (0.0, 1.0)),
        embedding_key("a", slice_, (0.0, 1.5)),
        embedding_key("a", slice_.reshape(5, 4), (0.0, 1.0)),
        embedding_key("a", slice_.flip(0), (0.0, 1.0)),
        embedding_key("a", slice_ + 1e-5, (0.0, 1.0)),
    ]
    assert len(set(keys)) == len(keys)
    # What it does not depend on: how the voxels lie in memory.
    assert embedding_key("a", slice_.T.contiguous().T, (0.0, 1.0)) == keys[0]


def test_the_folder_serves_the_next_run(tmp_path):
    EmbeddingCache(folder=tmp_path).put(KEYS[0], embedding(7))
    cache = EmbeddingCache(folder=tmp_path)
    assert torch.equal(cache.get(KEYS[0]), embedding(7))
    assert cache.get(KEYS[1]) is None
    assert len(cache) == 1  # kept in memory from now on
    assert torch.equal(EmbeddingCache(0, folder=tmp_path).get(KEYS[0]), embedding(7))


def test_an_embedding_of_an_earlier_version_is_found(tmp_path):
    """A folder that was filled once serves as long as SAM is shown the same, whatever became of the code."""
    key = "2a97b2a4a976e250bed08072ab266d3c81877abc"
    assert embedding_key("weights", torch.arange(20.0).reshape(4, 5), (0.0, 1.0)) == key
    (tmp_path / key[:2]).mkdir()
    facts = {"digest": "ad7ec0b4130902050aa1fd3d1ecc2469c4fa852a"}
    save_file({"embedding": embedding(7)}, tmp_path / key[:2] / f"{key}.safetensors", metadata=facts)
    assert torch.equal(EmbeddingCache(folder=tmp_path).get(key), embedding(7))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "garbage", "other", "folder"])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    EmbeddingCache(folder=tmp_path).put(KEYS[0], embedding(1))
    (path,) = tmp_path.rglob("*.safetensors")
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-5])
    elif damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(os.urandom(len(content)))
    elif damage == "other":
        # A whole file, but of another slice.
        other = EmbeddingCache(folder=tmp_path / "other")
        other.put(KEYS[1], embedding(2))
        path.write_bytes(next((tmp_path / "other").rglob("*.safetensors")).read_bytes())
    else:
        path.unlink()
        path.mkdir()
    assert EmbeddingCache(folder=tmp_path).get(KEYS[0]) is None
    if damage == "folder":
        path.rmdir()
    EmbeddingCache(folder=tmp_path).put(KEYS[0], embedding(1))
    assert torch.equal(EmbeddingCache(folder=tmp_path).get(KEYS[0]), embedding(1))


def fill(folder, rounds):
    cache = EmbeddingCache(0, folder=folder)
    for _ in range(rounds):
        for n, key in enumerate(KEYS):
            cache.put(key, embedding(n))
            found = cache.get(key)
            assert found is not None
            assert torch.equal(found, embedding(n))


def test_two_processes_fill_one_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(tmp_path, 10)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    cache = EmbeddingCache(folder=tmp_path)
    assert all(torch.equal(cache.get(key), embedding(n)) for n, key in enumerate(KEYS))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(KEYS)  # nothing left lying about


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        EmbeddingCache(folder=tmp_path / "file" / "cache")


def test_a_folder_that_fails_later_costs_a_warning_and_no_embedding(tmp_path, monkeypatch):
    cache = EmbeddingCache(folder=tmp_path)

    def full(*args, **kwargs):
        raise InputError("no space left")

    monkeypatch.setattr("smml.sam.cache.replacing", full)
    with pytest.warns(RuntimeWarning, match="no longer stored") as warned:
        list(map(cache.put, KEYS, map(embedding, range(6))))
    assert len(warned) == 1
    assert torch.equal(cache.get(KEYS[5]), embedding(5))


def test_another_process_gets_the_cache_s_place_and_none_of_its_embeddings(tmp_path):
    """Half a gigabyte must not travel with a model, and a lock cannot."""
    cache = EmbeddingCache(1000, tmp_path)
    cache.put("aa", torch.ones(2, 3, 3))
    other = pickle.loads(pickle.dumps(cache))
    assert (other.max_bytes, other.folder, len(other), other.bytes) == (1000, tmp_path, 0, 0)
    assert torch.equal(other.get("aa"), torch.ones(2, 3, 3)), "the folder is common"
    assert len(pickle.dumps(cache)) < 500
