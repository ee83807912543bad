"""The cache decorators: one cache for each instance, kept between runs, never stale."""

import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from meshgpt_pytorch.data import (
    DatasetFromTransforms,
    cache_face_edges_for_dataset,
    cache_text_embeds_for_dataset,
    custom_collate,
    derive_face_edges_from_faces,
)
from meshgpt_pytorch.data.caches import PROBE_TEXT
from tests.helpers import box_mesh, pyramid_mesh, tetrahedron_mesh

CAPTIONS = ("a box", "pyramid", "a tetrahedron")


class Meshes(Dataset):
    """Three meshes with captions, as dicts, tuples or lists."""

    def __init__(self, kind=dict, captions=CAPTIONS, data_kwargs=("texts", "vertices", "faces")):
        self.kind = kind
        self.captions = captions
        self.meshes = (box_mesh(), pyramid_mesh(), tetrahedron_mesh())
        if data_kwargs is not None:
            self.data_kwargs = list(data_kwargs)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        vertices, faces = self.meshes[index]
        if self.kind is dict:
            return {"texts": self.captions[index], "vertices": vertices, "faces": faces}
        return self.kind((self.captions[index], vertices, faces))


def embed_characters(texts):
    """Embed one text, a row for each character, by a fixed function of it."""
    codes = torch.tensor([[float(ord(character)) for character in text] for text in texts])
    return (codes[..., None] / torch.arange(1.0, 6.0)).sin()


class CountingEncoder:
    def __init__(self, scale=1.0, dtype=torch.float32):
        self.scale = scale
        self.dtype = dtype
        self.seen = []

    def __call__(self, texts):
        self.seen += texts
        return (embed_characters(texts) * self.scale).to(self.dtype)

    @property
    def captions_seen(self):
        return [text for text in self.seen if text != PROBE_TEXT]


def with_edges(tmp_path, dataset_class=Meshes, max_edges_len=100, **options):
    return cache_face_edges_for_dataset(max_edges_len, tmp_path, **options)(dataset_class)


def with_embeds(tmp_path, encoder, dataset_class=Meshes, max_text_len=20):
    return cache_text_embeds_for_dataset(encoder, max_text_len, tmp_path)(dataset_class)


EdgesOfMeshes = cache_face_edges_for_dataset(100, "unused")(Meshes)


# what items become


@pytest.mark.parametrize("kind", [tuple, list])
def test_tuples_and_lists_get_edges_at_their_end_and_embeddings_in_place(tmp_path, kind):
    encoder = CountingEncoder()
    dataset = with_edges(tmp_path, with_embeds(tmp_path, encoder))(kind)
    assert dataset.data_kwargs == ["text_embeds", "vertices", "faces", "face_edges"]
    for index, mesh in enumerate(dataset.meshes):
        item = dataset[index]
        assert isinstance(item, kind)
        embedding, vertices, faces, edges = item
        assert torch.equal(embedding, embed_characters([CAPTIONS[index]])[0])
        assert torch.equal(vertices, mesh.vertices) and torch.equal(faces, mesh.faces)
        assert torch.equal(edges, derive_face_edges_from_faces(mesh.faces))


def test_dicts_get_edges_and_lose_their_texts(tmp_path):
    dataset = with_embeds(tmp_path, CountingEncoder(), with_edges(tmp_path))()
    item = dataset[1]
    assert set(item) == {"vertices", "faces", "face_edges", "text_embeds"}
    assert torch.equal(item["text_embeds"], embed_characters(["pyramid"])[0])
    assert torch.equal(item["face_edges"], derive_face_edges_from_faces(item["faces"]))


def test_without_names_the_second_entry_holds_faces(tmp_path):
    class Pairs(Meshes):
        def __getitem__(self, index):
            return tuple(self.meshes[index])

    dataset = with_edges(tmp_path, Pairs)(data_kwargs=None)
    assert not hasattr(dataset, "data_kwargs")
    assert torch.equal(dataset[0][2], derive_face_edges_from_faces(box_mesh().faces))


def test_names_of_the_caller_and_of_the_class_are_left_alone(tmp_path):
    class Named(Meshes):
        data_kwargs: ClassVar = ["texts", "vertices", "faces"]

    for _ in range(2):
        dataset = with_edges(tmp_path, Named)(data_kwargs=None)
        assert dataset.data_kwargs == ["texts", "vertices", "faces", "face_edges"]
    assert Named.data_kwargs == ["texts", "vertices", "faces"]


def test_names_that_hold_face_edges_already_stay(tmp_path):
    names = ["texts", "vertices", "faces", "face_edges"]
    assert with_edges(tmp_path)(data_kwargs=names).data_kwargs == names


def test_data_kwargs_of_none_work(tmp_path):
    (tmp_path / "a.obj").write_text("a box")
    decorated = with_embeds(tmp_path / "cache", CountingEncoder(), DatasetFromTransforms)
    decorated = with_edges(tmp_path / "cache", decorated)
    dataset = decorated(tmp_path, {"obj": lambda path: (*box_mesh(), path.read_text())})
    _, _, embedding, edges = dataset[0]
    assert dataset.data_kwargs is None
    assert torch.equal(embedding, embed_characters(["a box"])[0])
    assert torch.equal(edges, derive_face_edges_from_faces(box_mesh().faces))


def test_the_library_class_itself_is_not_changed(tmp_path):
    before = dict(vars(DatasetFromTransforms))
    decorated = with_edges(tmp_path, DatasetFromTransforms)
    assert dict(vars(DatasetFromTransforms)) == before
    assert decorated is not DatasetFromTransforms
    assert issubclass(decorated, DatasetFromTransforms)
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(decorated, name) == getattr(DatasetFromTransforms, name)


def test_items_of_the_data_set_are_not_changed(tmp_path):
    class Kept(Meshes):
        item: ClassVar = {"texts": "a box", **box_mesh()._asdict()}

        def __getitem__(self, index):
            return self.item

    dataset = with_edges(tmp_path, with_embeds(tmp_path, CountingEncoder(), Kept))()
    dataset[0]["text_embeds"].zero_()
    assert set(Kept.item) == {"texts", "vertices", "faces"}
    assert torch.equal(dataset[0]["text_embeds"], embed_characters(["a box"])[0])


def test_a_dict_without_texts_passes(tmp_path):
    class Untold(Meshes):
        def __getitem__(self, index):
            return self.meshes[index]._asdict()

    assert set(with_embeds(tmp_path, CountingEncoder(), Untold)()[0]) == {"vertices", "faces"}


# a cache that is found again


def test_edges_are_integers_and_equal_on_a_miss_and_on_a_hit(tmp_path):
    decorated = with_edges(tmp_path)
    miss = [item["face_edges"] for item in decorated()]
    hit = [item["face_edges"] for item in decorated()]
    for before, after in zip(miss, hit, strict=True):
        assert before.dtype == after.dtype == torch.int64
        assert torch.equal(before, after)


def test_edges_are_derived_once(tmp_path, monkeypatch):
    list(with_edges(tmp_path)())
    monkeypatch.setattr("meshgpt_pytorch.data.caches.derive_face_edges_from_faces", None)
    assert len(list(with_edges(tmp_path)())) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_keep_their_dtype_and_are_made_once(tmp_path, dtype):
    first, second = CountingEncoder(dtype=dtype), CountingEncoder(dtype=dtype)
    miss = [item["text_embeds"] for item in with_embeds(tmp_path, first)()]
    hit = [item["text_embeds"] for item in with_embeds(tmp_path, second)()]
    assert first.captions_seen == list(CAPTIONS) and second.captions_seen == []
    for before, after in zip(miss, hit, strict=True):
        assert before.dtype == after.dtype == dtype
        assert torch.equal(before, after)


@pytest.mark.parametrize("mode", ["r", "r+", "w+"])
def test_no_file_mode_erases_the_cache(tmp_path, mode):
    list(with_embeds(tmp_path, CountingEncoder())())
    encoder = CountingEncoder()
    list(with_embeds(tmp_path, encoder)(cache_memmap_file_mode=mode))
    assert encoder.captions_seen == []


def test_mode_r_reads_but_adds_nothing_also_below_another_decorator(tmp_path):
    encoder = CountingEncoder()
    decorated = with_edges(tmp_path, with_embeds(tmp_path, encoder))
    assert len(list(decorated(cache_memmap_file_mode="r"))) == 3
    assert not list(tmp_path.iterdir())


def test_two_instances_do_not_share_items(tmp_path):
    decorated = with_edges(tmp_path, with_embeds(tmp_path, CountingEncoder()))
    train, validation = decorated(), decorated(captions=("x", "yy", "zzz"))
    validation.meshes = validation.meshes[::-1]
    for index in range(3):
        assert len(train[index]["text_embeds"]) == len(CAPTIONS[index])
        assert len(validation[index]["text_embeds"]) == index + 1
        for dataset in (train, validation):
            item = dataset[index]
            assert torch.equal(item["face_edges"], derive_face_edges_from_faces(item["faces"]))


def test_changed_texts_and_faces_are_noticed(tmp_path):
    decorated = with_edges(tmp_path, with_embeds(tmp_path, CountingEncoder()))
    list(decorated())
    changed = decorated(captions=("a new box", *CAPTIONS[1:]))
    changed.meshes = (box_mesh()._replace(faces=box_mesh().faces[:5]), *changed.meshes[1:])
    assert len(changed[0]["text_embeds"]) == len("a new box")
    assert len(changed[0]["face_edges"]) == len(derive_face_edges_from_faces(box_mesh().faces[:5]))


def test_another_encoder_does_not_read_what_this_one_wrote(tmp_path):
    list(with_embeds(tmp_path, CountingEncoder())())
    other = CountingEncoder(scale=2.0)
    embedding = with_embeds(tmp_path, other)()[0]["text_embeds"]
    assert other.captions_seen == ["a box"]
    assert torch.equal(embedding, embed_characters(["a box"])[0] * 2)


def test_an_encoder_is_recognised_up_to_rounding(tmp_path):
    list(with_embeds(tmp_path, CountingEncoder())())
    same = CountingEncoder(scale=1 + 1e-6)
    list(with_embeds(tmp_path, same)())
    assert same.captions_seen == []


def test_padding_rows_are_left_out_and_rows_of_zeros_kept(tmp_path):
    def embed(texts):
        rows = torch.tensor([1.0, 0.0, 1.0, -1.0])
        return rows[None, :, None].repeat(1, 1, 3)

    assert with_embeds(tmp_path, embed)()[0]["text_embeds"][:, 0].tolist() == [1, 0, 1]


def test_an_encoder_may_return_a_mask(tmp_path):
    def embed(texts):
        return torch.ones(1, 4, 3), torch.tensor([[True, True, False, False]])

    assert with_embeds(tmp_path, embed)()[0]["text_embeds"].shape == (2, 3)


def test_an_encoder_may_return_arrays(tmp_path):
    def embed(texts):
        return embed_characters(texts).numpy(), np.array([[True, False] * 4])[:, : len(texts[0])]

    found = with_embeds(tmp_path, embed)(captions=("abcd", "abc", "ab"))[0]["text_embeds"]
    assert torch.equal(found, embed_characters(["abcd"])[0, ::2])


def test_cut_embeddings_are_whole_again_with_a_longer_limit(tmp_path):
    encoder = CountingEncoder()
    with pytest.warns(UserWarning, match="the text 'pyramid' has 7 tokens, of which the first 4"):
        assert len(with_embeds(tmp_path, encoder, max_text_len=4)()[1]["text_embeds"]) == 4
    assert len(with_embeds(tmp_path, encoder)()[1]["text_embeds"]) == 7
    assert encoder.captions_seen == ["pyramid"]


def test_a_damaged_entry_is_reported_and_made_anew(tmp_path):
    dataset = with_edges(tmp_path)()
    expected = dataset[0]["face_edges"]
    (entry,) = tmp_path.rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="is damaged and is made anew"):
        assert torch.equal(dataset[0]["face_edges"], expected)
    assert torch.equal(dataset[0]["face_edges"], expected)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    dataset = with_edges(tmp_path)()

    def fail(source, target):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr("os.replace", fail)
        dataset[0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert torch.equal(dataset[0]["face_edges"], derive_face_edges_from_faces(box_mesh().faces))


# processes


def test_workers_fill_one_cache_and_do_not_erase_it(tmp_path):
    encoder = CountingEncoder()
    dataset = with_edges(tmp_path, with_embeds(tmp_path, encoder))()
    loader = DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=custom_collate)
    epochs = [list(loader) for _ in range(2)]
    for first, second in zip(*epochs, strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)
    list(dataset)
    assert encoder.captions_seen == [], "the workers left every caption in the folder"
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3 + 3 + 1


def test_a_decorated_data_set_reaches_workers_that_are_not_forked(tmp_path):
    decorated = with_edges(tmp_path, with_embeds(tmp_path, embed_characters))
    dataset = decorated()
    again = pickle.loads(pickle.dumps(dataset))
    for item, copied in zip(dataset, again, strict=True):
        assert all(torch.equal(item[key], copied[key]) for key in item)
    assert again.data_kwargs == dataset.data_kwargs
    assert [base.__name__ for base in type(again).__mro__[:3]] == ["Meshes"] * 3


@cache_face_edges_for_dataset(100, "unused")
class DecoratedInPlace(Meshes):
    pass


class Derived(EdgesOfMeshes):
    pass


@pytest.mark.parametrize("dataset_class", [DecoratedInPlace, Derived])
def test_classes_that_can_be_found_under_their_name_are_pickled_by_it(dataset_class):
    again = pickle.loads(pickle.dumps(dataset_class()))
    assert type(again) is dataset_class


def test_a_subclass_of_a_decorated_class_can_be_decorated(tmp_path):
    class Louder(with_edges(tmp_path)):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, "texts": item["texts"].upper()}

    dataset = with_embeds(tmp_path, CountingEncoder(), Louder)(cache_memmap_file_mode="r")
    item = dataset[0]
    assert torch.equal(item["text_embeds"], embed_characters(["A BOX"])[0])
    assert torch.equal(item["face_edges"], derive_face_edges_from_faces(item["faces"]))


# bad input


def test_too_many_edges_are_refused_or_cut_with_a_warning(tmp_path):
    num_edges = len(derive_face_edges_from_faces(box_mesh().faces))
    message = f"a mesh of 12 faces has {num_edges} edges, wanted 5 at most"
    with pytest.raises(ValueError, match=f"{message}; raise max_edges_len"):
        with_edges(tmp_path, max_edges_len=5)()[0]
    lenient = with_edges(tmp_path, max_edges_len=5, assert_edge_len_lt_max=False)()
    with pytest.warns(UserWarning, match=message):
        edges = lenient[0]["face_edges"]
    assert torch.equal(edges, derive_face_edges_from_faces(box_mesh().faces)[:5])
    assert len(with_edges(tmp_path)()[0]["face_edges"]) == num_edges


def test_an_item_without_faces_is_refused(tmp_path):
    class Textual(Meshes):
        def __getitem__(self, index):
            return {"texts": "a"}

    with pytest.raises(ValueError, match=r"an item with 'faces'.* got \['texts'\]"):
        with_edges(tmp_path, Textual)()[0]


def test_vertices_in_the_place_of_faces_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"faces must be whole numbers, got torch.float32"):
        with_edges(tmp_path)(tuple, data_kwargs=None)[0]


def test_several_texts_for_one_item_are_refused(tmp_path):
    dataset = with_embeds(tmp_path, CountingEncoder())(captions=(["a", "b"],) * 3)
    with pytest.raises(ValueError, match="'texts' of an item must be one string, got list"):
        dataset[0]


@pytest.mark.parametrize("output", [None, torch.zeros(3, 4)])
def test_an_encoder_that_returns_something_else_is_refused(tmp_path, output):
    with pytest.raises(ValueError, match=r"must return a tensor \(1, n, d\) for one text, got"):
        with_embeds(tmp_path, lambda texts: output)()


def test_an_unknown_file_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cache_memmap_file_mode must be one of .* got 'a'"):
        with_edges(tmp_path)(cache_memmap_file_mode="a")


@pytest.mark.parametrize("decorated", [Dataset, dict, 3])
def test_only_data_sets_with_items_can_be_decorated(tmp_path, decorated):
    with pytest.raises(ValueError, match=r"only a subclass of torch.utils.data.Dataset"):
        with_edges(tmp_path, decorated)


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_edges_len must be at least 1, got 0"):
        cache_face_edges_for_dataset(0, tmp_path)
    with pytest.raises(ValueError, match="max_text_len must be at least 1, got -1"):
        cache_text_embeds_for_dataset(embed_characters, -1, tmp_path)
