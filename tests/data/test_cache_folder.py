"""Derived data of a data set on disk: found again, made once, and never stale."""

import json
import multiprocessing
import os
import shutil
import signal

import pytest
import torch

from meshgpt_pytorch.data import MeshDataset, cache_folder, derive_face_edges_from_faces
from tests.data.encoders import CharacterEncoder
from tests.data.faults import full_disk

KINDS = ("face_edges", "codes", "text_encodings")


@pytest.fixture
def stored(small, tmp_path):
    """A data set on disk without derived data."""
    return MeshDataset(small.save(tmp_path / "prepared"))


@pytest.fixture
def folder(stored, tmp_path):
    return tmp_path / "prepared"


def derive_all(dataset, autoencoder, encoder=None, **options):
    dataset.cache_face_edges(**options)
    dataset.cache_codes(autoencoder, **options)
    dataset.cache_text_encodings(encoder or CharacterEncoder(), **options)


def change(autoencoder):
    with torch.no_grad():
        next(autoencoder.parameters()).add_(0.5)


def same_items(one, other):
    assert one.item_keys == other.item_keys
    for item, expected in zip(one, other, strict=True):
        for key in item:
            if key == "texts":
                assert item[key] == expected[key]
            else:
                assert torch.equal(item[key], expected[key])
                assert item[key].dtype == expected[key].dtype


class Unwilling:
    """Fails when it is asked to derive anything."""

    def __init__(self, model):
        self.model = model
        self.pad_id = -1

    def __getattr__(self, name):
        assert name not in ("tokenize", "embed"), "it is cached already"
        return getattr(self.model, name)


# found again


def test_what_is_derived_on_disk_equals_what_is_derived_in_memory(small, stored, autoencoder):
    for dataset in (small, stored):
        derive_all(dataset, autoencoder)
    same_items(stored, small)


def test_opening_finds_what_was_derived_and_nothing_is_computed_again(stored, folder, autoencoder):
    encoder = CharacterEncoder()
    derive_all(stored, autoencoder, encoder)
    again = MeshDataset(folder)
    same_items(again, stored)
    assert again.item_keys == ("vertices", "faces", "texts", *KINDS)
    assert again.codes_fingerprint == stored.codes_fingerprint
    again.cache_codes(Unwilling(autoencoder))
    before = len(encoder.seen)
    again.cache_text_encodings(encoder)
    assert len(encoder.seen) == before


def test_integers_stay_integers_and_floats_their_kind(stored, folder, autoencoder):
    derive_all(stored, autoencoder, CharacterEncoder(dtype=torch.bfloat16))
    item = MeshDataset(folder)[0]
    assert item["face_edges"].dtype == item["codes"].dtype == torch.int64
    assert item["text_encodings"].dtype == torch.bfloat16
    assert torch.equal(item["face_edges"], derive_face_edges_from_faces(item["faces"]))


def test_each_distinct_text_is_encoded_and_stored_once(small, tmp_path):
    texts = ["a box", "chair", "a box", "lamp"] * 3
    folder = MeshDataset.from_meshes(list(small), texts=texts).save(tmp_path)
    dataset = MeshDataset(folder)
    encoder = CharacterEncoder()
    dataset.cache_text_encodings(encoder)
    assert encoder.seen == ["a box", "chair", "lamp"]
    assert len(MeshDataset(folder)._table.columns["text_encodings"].rows) == 3
    for item in MeshDataset(folder):
        assert len(item["text_encodings"]) == len(item["texts"])


def test_a_choice_derives_its_own_and_finds_it_again(stored, folder, autoencoder):
    stored.filter(max_faces=30).cache_codes(autoencoder)
    again = MeshDataset(folder)
    assert "codes" not in again.item_keys
    with pytest.raises(ValueError, match=r"folder holds it for \d+ of 12 meshes\); call cache_cod"):
        again.with_keys("codes")
    chosen = again.filter(max_faces=30)
    assert "codes" in chosen.item_keys
    for item in chosen:
        alone = autoencoder.tokenize(item["vertices"], item["faces"])
        assert torch.equal(item["codes"], alone)


def test_only_what_is_missing_is_derived(stored, folder, autoencoder, monkeypatch):
    monkeypatch.setattr(cache_folder, "ROWS_A_SEGMENT", 3)
    stored.select(range(5)).cache_codes(autoencoder)
    tokenized = []
    tokenize = autoencoder.tokenize
    monkeypatch.setattr(
        autoencoder,
        "tokenize",
        lambda **kwargs: tokenized.append(len(kwargs["faces"])) or tokenize(**kwargs),
    )
    stored.cache_codes(autoencoder)
    assert sum(tokenized) == 7
    assert len(list((folder / "caches" / "codes").iterdir())) == 5
    for item in MeshDataset(folder):
        assert torch.equal(item["codes"], tokenize(item["vertices"], item["faces"]))


def test_meshes_that_changed_are_derived_anew_and_others_are_not(
    stored, folder, small, autoencoder
):
    derive_all(stored, autoencoder)
    items = list(small)
    items[4] = {**items[4], "faces": items[4]["faces"].flip(0), "texts": "a new text"}
    MeshDataset.from_meshes(items).save(folder)
    again = MeshDataset(folder)
    assert again.item_keys == ("vertices", "faces", "texts")
    with pytest.raises(ValueError, match=r"11 of 12 meshes\); call cache_face_edges"):
        again.with_keys("face_edges")
    encoder = CharacterEncoder()
    derive_all(again, autoencoder, encoder)
    assert encoder.seen == ["a new text"]
    expected = MeshDataset.from_meshes(items)
    derive_all(expected, autoencoder)
    same_items(again, expected)


def test_saving_takes_along_what_was_derived(small, tmp_path, autoencoder):
    derive_all(small, autoencoder)
    same_items(MeshDataset(small.save(tmp_path)), small)
    chosen = MeshDataset(tmp_path).select([3, 1])
    same_items(MeshDataset(chosen.save(tmp_path)), small.select([3, 1]))


def test_saving_leaves_no_codes_of_another_autoencoder(small, tmp_path, autoencoder):
    for _ in range(2):
        small.cache_codes(autoencoder, rebuild=True)
        small.save(tmp_path)
        change(autoencoder)
    again = MeshDataset(tmp_path)
    assert again.codes_fingerprint == small.codes_fingerprint
    assert len(list((tmp_path / "caches" / "codes").iterdir())) == 1


# never stale


def test_codes_of_other_weights_are_refused_until_they_are_rebuilt(stored, folder, autoencoder):
    stored.cache_codes(autoencoder)
    first = stored.codes_fingerprint
    change(autoencoder)
    for dataset in (stored, MeshDataset(folder)):
        with pytest.raises(ValueError, match=r"other weights; .*cache_codes\(autoenc.*rebuild=Tr"):
            dataset.cache_codes(autoencoder)
        assert dataset.codes_fingerprint == first
    stored.cache_codes(autoencoder, rebuild=True)
    again = MeshDataset(folder)
    assert again.codes_fingerprint == stored.codes_fingerprint != first
    for item in again:
        assert torch.equal(item["codes"], autoencoder.tokenize(item["vertices"], item["faces"]))
    assert len(list((folder / "caches" / "codes").iterdir())) == 1


def test_encodings_of_another_encoder_are_refused_until_they_are_rebuilt(stored, folder):
    stored.cache_text_encodings(CharacterEncoder())
    other = CharacterEncoder(2.0)
    with pytest.raises(ValueError, match=r"anew with cache_text_encodings\(encoder, rebuild=True"):
        MeshDataset(folder).cache_text_encodings(other)
    assert other.seen == []
    stored.cache_text_encodings(other, rebuild=True)
    item = MeshDataset(folder)[0]
    assert torch.equal(item["text_encodings"], other.embed([item["texts"]])[0][0])


def damage(folder, kind, how):
    (segment,) = (folder / "caches" / kind).iterdir()
    if how == "version":
        facts = json.loads((segment / "cache.json").read_text())
        (segment / "cache.json").write_text(json.dumps({**facts, "version": 0}))
    elif how == "cut":
        rows = segment / "rows.npy"
        rows.write_bytes(rows.read_bytes()[:-4])
    elif how == "keys":
        shutil.copy(segment / "rows_offsets.npy", segment / "keys.npy")
    else:
        (segment / "cache.json").unlink()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("version", "it has format version 0, this library reads 1"),
        ("cut", r"rows\.npy is damaged"),
        ("keys", r"it has \d+ keys for \d+ rows"),
        ("missing", "No such file"),
    ],
)
def test_a_cache_that_cannot_be_used_is_named_and_can_be_rebuilt(
    stored, folder, small, autoencoder, kind, how, message
):
    for dataset in (stored, small):
        derive_all(dataset, autoencoder)
    damage(folder, kind, how)
    call = {
        "face_edges": lambda d, **options: d.cache_face_edges(**options),
        "codes": lambda d, **options: d.cache_codes(autoencoder, **options),
        "text_encodings": lambda d, **options: d.cache_text_encodings(
            CharacterEncoder(), **options
        ),
    }[kind]
    with pytest.warns(UserWarning, match=message):
        again = MeshDataset(folder)
    assert kind not in again.item_keys
    with pytest.raises(ValueError, match=rf"{message}(.|\n)*anew with cache_{kind}\(.*rebuild=T"):
        call(again)
    with pytest.raises(ValueError, match=message):
        again.with_keys(kind)
    call(again, rebuild=True)
    same_items(MeshDataset(folder), small)


# processes


def run(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def derive_in_process(folder, autoencoder):
    torch.set_num_threads(1)
    MeshDataset(folder).cache_codes(autoencoder, batch_size=2)
    MeshDataset(folder).cache_text_encodings(CharacterEncoder())


def test_several_processes_that_derive_the_same_do_no_harm(stored, folder, small, autoencoder):
    processes = [run(derive_in_process, folder, autoencoder) for _ in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    small.cache_codes(autoencoder)
    small.cache_text_encodings(CharacterEncoder())
    same_items(MeshDataset(folder), small)


def be_killed_in_the_third_segment(folder, autoencoder):
    torch.set_num_threads(1)
    tokenize = autoencoder.tokenize
    calls = []

    def tokenize_some(**kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return tokenize(**kwargs)

    autoencoder.tokenize = tokenize_some
    MeshDataset(folder).cache_codes(autoencoder)


def test_a_killed_run_goes_on_with_what_is_missing(stored, folder, small, autoencoder, monkeypatch):
    monkeypatch.setattr(cache_folder, "ROWS_A_SEGMENT", 4)
    process = run(be_killed_in_the_third_segment, folder, autoencoder)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again = MeshDataset(folder)
    assert "codes" not in again.item_keys
    again.cache_codes(autoencoder)
    small.cache_codes(autoencoder)
    same_items(MeshDataset(folder), small)
    assert len(list((folder / "caches" / "codes").iterdir())) == 3


def test_a_full_disk_leaves_nothing_behind(stored, folder, small):
    encoder = CharacterEncoder()
    with full_disk(2000), pytest.raises(OSError, match="File too large"):
        stored.cache_face_edges()
    assert not list((folder / "caches" / "face_edges").iterdir())
    stored.cache_face_edges()
    stored.cache_text_encodings(encoder)
    small.cache_face_edges()
    small.cache_text_encodings(encoder)
    same_items(MeshDataset(folder), small)


def test_two_data_sets_keep_their_own(small, tmp_path, autoencoder):
    folders = [
        small.select(part).save(tmp_path / name)
        for part, name in (([0, 1, 2], "one"), ([2, 3, 4, 5], "other"))
    ]
    for folder in folders:
        MeshDataset(folder).cache_codes(autoencoder)
    for folder in folders:
        for item in MeshDataset(folder):
            assert torch.equal(item["codes"], autoencoder.tokenize(item["vertices"], item["faces"]))
