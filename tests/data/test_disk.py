"""Data sets on disk: what is written is read, mapped and whole, or it is not there at all."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from meshgpt_pytorch.data import MeshDataset, MeshWriter, custom_collate, disk
from meshgpt_pytorch.data.arrays import MappedRows, RaggedWriter
from tests.data.faults import full_disk
from tests.helpers import box_mesh, pyramid_mesh, tetrahedron_mesh

MESHES = (box_mesh(), pyramid_mesh(), tetrahedron_mesh())


def write(folder, meshes=MESHES, **labels):
    with MeshWriter(folder) as writer:
        for index, mesh in enumerate(meshes):
            writer.add(mesh, {name: values[index] for name, values in labels.items()})
    return folder


def arrays_of(folder):
    return folder / json.loads((folder / "dataset.json").read_text())["arrays"]


def num_faces(folder):
    return MeshDataset(folder).num_faces.tolist()


# what is written is read


def test_a_saved_pack_gives_the_same_items_and_labels(pack, tmp_path):
    chosen = pack.select(range(0, 739, 20))
    again = MeshDataset(chosen.save(tmp_path / "prepared"))
    assert len(again) == len(chosen) and again.item_keys == chosen.item_keys
    for item, expected in zip(again, chosen, strict=True):
        assert item["texts"] == expected["texts"]
        for key in ("vertices", "faces"):
            assert torch.equal(item[key], expected[key]) and item[key].dtype == expected[key].dtype
    for name, values in chosen.labels.items():
        assert again.labels[name].tolist() == values.tolist(), name
    assert again.hashes == chosen.hashes
    again.verify()


def test_choosing_and_splitting_work_on_disk_as_in_memory(pack, tmp_path):
    chosen = pack.select(range(0, 739, 20))
    again = MeshDataset(chosen.save(tmp_path))
    for one, other in (
        (again.filter(max_faces=200), chosen.filter(max_faces=200)),
        *zip(again.split(0.3, seed=1), chosen.split(0.3, seed=1), strict=True),
    ):
        assert one.names == other.names and one.hashes == other.hashes
        assert torch.equal(one[0]["faces"], other[0]["faces"])


def test_quads_stay_quads(tmp_path):
    write(tmp_path, [box_mesh(quads=True)])
    assert torch.equal(MeshDataset(tmp_path)[0]["faces"], box_mesh(quads=True).faces)


def test_labels_keep_their_kind_and_may_be_missing(tmp_path):
    labels = (
        {"name": "a", "score": 1.5, "count": 1},
        {"count": 2},
        {"name": "ü椅子", "count": np.int64(3)},
    )
    with MeshWriter(tmp_path) as writer:
        for mesh, each in zip(MESHES, labels, strict=True):
            writer.add(mesh, each)
    found = MeshDataset(tmp_path).labels
    assert found["name"].tolist() == ["a", "", "ü椅子"]
    assert found["count"].dtype == np.int64 and found["count"].tolist() == [1, 2, 3]
    assert found["score"][0] == 1.5 and np.isnan(found["score"][1:]).all()


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([-(2**63), 0, 2**63 - 1], [-(2**63), 0, 2**63 - 1]),
        ([None, 2**53 - 1, 0.5], [None, 2.0**53 - 1, 0.5]),
        ([1, 2, 2**70], ["1", "2", str(2**70)]),
        ([-1, 0, 2**63], ["-1", "0", str(2**63)]),
        ([None, 1, 2**60 + 1], ["", "1", str(2**60 + 1)]),
        ([0.5, 1, 2**60 + 1], ["0.5", "1", str(2**60 + 1)]),
        ([0.5, 1, 10**400], ["0.5", "1", str(10**400)]),
    ],
)
def test_integers_keep_all_their_digits(tmp_path, numbers, expected):
    dataset = MeshDataset(write(tmp_path, number=numbers))
    found = dataset.labels["number"].tolist()
    assert [None if value != value else value for value in found] == expected
    again = MeshDataset(dataset.save(tmp_path / "again")).labels["number"]
    np.testing.assert_array_equal(again, dataset.labels["number"])


@pytest.mark.parametrize("unsigned", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_faces_of_unsigned_integers_are_stored(tmp_path, unsigned):
    mesh = box_mesh()
    faces = mesh.faces.numpy().astype(unsigned)
    with MeshWriter(tmp_path) as writer:
        writer.add((mesh.vertices, faces))
        with pytest.raises(ValueError, match="from 0 to 7, got 1 to 8; they refer to vertices"):
            writer.add((mesh.vertices, faces + unsigned(1)))
    in_memory = MeshDataset.from_meshes([(mesh.vertices, faces)])
    for dataset in (MeshDataset(tmp_path), in_memory):
        assert torch.equal(dataset[0]["faces"].long(), mesh.faces)


def test_the_hash_of_a_mesh_is_that_of_its_contents(tmp_path):
    mesh = box_mesh()
    with MeshWriter(tmp_path) as writer:
        first = writer.add(mesh)
        assert writer.add((mesh.vertices.double().numpy(), mesh.faces.int().numpy())) == first
        assert writer.add(mesh._replace(faces=mesh.faces.flip(0))) != first
        assert writer.add(mesh._replace(vertices=mesh.vertices * 0.5)) != first
        assert len(writer) == 4
    hashes = MeshDataset(tmp_path).hashes
    assert hashes[0] == hashes[1] == first and len(set(hashes)) == 3


def test_an_item_is_a_copy(tmp_path):
    dataset = MeshDataset(write(tmp_path))
    dataset[0]["vertices"].zero_()
    assert torch.equal(dataset[0]["vertices"], box_mesh().vertices)


def test_what_would_need_a_pickle_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(disk, "label_array", lambda values: np.array(values, dtype=object))
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write(tmp_path, MESHES[:1], name=["a"])
    assert sorted(tmp_path.rglob("*")) == before and num_faces(tmp_path) == [12, 6, 4]


def test_no_file_holds_a_pickle(tmp_path):
    write(tmp_path, name=["a", "b", "c"])
    for path in tmp_path.rglob("*.npy"):
        assert not np.load(path, allow_pickle=False).dtype.hasobject


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_rows_keep_their_kind_also_when_all_are_empty(tmp_path, dtype):
    rows = [torch.arange(6).reshape(3, 2), torch.zeros(0, 2), torch.ones(1, 2)]
    for name, chosen in (("some", rows), ("none", rows[1:2])):
        writer = RaggedWriter(tmp_path, name, rows[0].to(dtype))
        for row in chosen:
            writer.append(row.to(dtype))
        writer.close()
        mapped = MappedRows(tmp_path, name, dtype)
        assert mapped.lengths.tolist() == [len(row) for row in chosen]
        for index, row in enumerate(chosen):
            assert torch.equal(mapped[index].to(dtype), row.to(dtype))
            assert mapped[index].is_floating_point() == dtype.is_floating_point


# memory and processes


def resident_megabytes():
    return psutil.Process().memory_info().rss / 2**20


def test_twenty_thousand_meshes_are_opened_without_being_read(tmp_path, furniture):
    mesh = next(mesh for mesh in furniture if len(mesh.faces) == 400)
    with MeshWriter(tmp_path) as writer:
        for index in range(20_000):
            writer.add(mesh, {"caption": f"mesh {index}"})
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.npy")) / 2**20
    before = resident_megabytes()
    dataset = MeshDataset(tmp_path)
    train, _ = dataset.split(0.1)
    assert len(train) == 18_000 and train[17_999]["texts"].startswith("mesh ")
    assert int(dataset.num_faces.sum()) == 20_000 * 400
    assert size > 120 and resident_megabytes() - before < 16


def test_another_process_gets_the_path_and_not_the_meshes(pack, tmp_path):
    dataset = MeshDataset(pack.select(range(100)).save(tmp_path)).with_keys("vertices", "faces")
    rows = dataset._table.columns["vertices"].rows
    assert len(pickle.dumps(rows)) < 500
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[7]["faces"], dataset[7]["faces"])


def test_workers_give_the_same_batches(pack, tmp_path):
    dataset = MeshDataset(pack.filter(max_faces=60).select(range(6)).save(tmp_path))
    loaders = [
        DataLoader(dataset, batch_size=2, collate_fn=custom_collate, num_workers=workers)
        for workers in (0, 2)
    ]
    for alone, shared in zip(*loaders, strict=True):
        assert all(torch.equal(alone[key], shared[key]) for key in ("vertices", "faces"))


def test_accelerate_takes_the_data_set(tmp_path):
    dataset = MeshDataset(write(tmp_path))
    loader = DataLoader(dataset, batch_size=2, collate_fn=custom_collate, num_workers=1)
    batches = list(Accelerator(cpu=True).prepare(loader))
    assert [len(batch["faces"]) for batch in batches] == [2, 1]


# all or nothing


def test_a_writer_replaces_what_was_there_in_one_step(tmp_path):
    write(tmp_path)
    old = MeshDataset(tmp_path)
    writer = MeshWriter(tmp_path)
    writer.add(tetrahedron_mesh())
    assert num_faces(tmp_path) == [12, 6, 4]
    assert writer.finish() == tmp_path
    assert num_faces(tmp_path) == [4]
    assert torch.equal(old[1]["faces"], pyramid_mesh().faces), "what is open stays open"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_exception_leaves_the_folder_as_it_was(tmp_path):
    write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyError, match="mine"), MeshWriter(tmp_path) as writer:
        writer.add(box_mesh())
        raise KeyError("mine")
    assert sorted(tmp_path.rglob("*")) == before and num_faces(tmp_path) == [12, 6, 4]


@pytest.mark.parametrize("already", [0, 3])
def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, pack, already):
    folder = tmp_path / "prepared"
    if already:
        write(folder)
    before = sorted(tmp_path.rglob("*.npy"))
    with full_disk(50_000), pytest.raises(OSError, match="File too large"):
        pack.save(folder)
    assert sorted(tmp_path.rglob("*.npy")) == before
    if already:
        assert num_faces(folder) == [12, 6, 4]
    else:
        with pytest.raises(FileNotFoundError, match=r"holds dataset\.json, found none"):
            MeshDataset(folder)


def killed_writer(folder, is_closed):
    writer = MeshWriter(folder)
    for mesh in MESHES[:2]:
        writer.add(mesh)
    if is_closed:
        os.rename = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
        Path.rename = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
        writer.finish()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_killed_writer_changes_nothing_and_its_leftovers_go_in_time(tmp_path, is_closed):
    write(tmp_path)
    process = multiprocessing.get_context("fork").Process(
        target=killed_writer, args=(tmp_path, is_closed)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert num_faces(tmp_path) == [12, 6, 4]
    (leftover,) = tmp_path.glob(".arrays-*")

    write(tmp_path, MESHES[:1])
    assert leftover.exists(), "it might belong to a writer at work"
    for path in (leftover, *leftover.iterdir()):
        os.utime(path, (0, 0))
    write(tmp_path, MESHES[:1])
    assert not leftover.exists() and num_faces(tmp_path) == [12]


def test_of_two_writers_the_last_to_finish_decides(tmp_path):
    writers = [MeshWriter(tmp_path) for _ in range(2)]
    for writer, mesh in zip(writers, MESHES, strict=False):
        writer.add(mesh)
    for writer in reversed(writers):
        writer.finish()
    assert num_faces(tmp_path) == [12] and len(list(tmp_path.iterdir())) == 2


# bad input


def test_a_bad_mesh_is_refused_and_the_writer_goes_on(tmp_path):
    wrong = (
        (box_mesh()._replace(faces=box_mesh().faces - 1), "indices from 0 to 7"),
        (box_mesh()._replace(vertices=box_mesh().vertices * torch.nan), "must be finite"),
        (box_mesh()._replace(faces=box_mesh().faces[:0]), "no faces"),
        (box_mesh()._replace(vertices=torch.zeros(8, 2)), r"vertices of mesh 1 must .* \(nv, 3\)"),
        (box_mesh()._replace(faces=torch.zeros(1, 3)), "faces of mesh 1 must be whole numbers"),
        (box_mesh(quads=True), "got 3 vertices a face before and 4 in mesh 1"),
    )
    with MeshWriter(tmp_path) as writer:
        writer.add(box_mesh())
        for mesh, message in wrong:
            with pytest.raises(ValueError, match=message):
                writer.add(mesh)
        for labels in ({"a b": "x"}, {"tags": ["x"]}):
            with pytest.raises(ValueError, match="labels must be text or numbers"):
                writer.add(box_mesh(), labels)
        with pytest.raises(ValueError, match=r"limit .* for integer string conversion"):
            writer.add(box_mesh(), {"number": 10**5000})
        writer.add(pyramid_mesh())
    assert num_faces(tmp_path) == [12, 6]


def test_no_meshes_are_no_data_set(tmp_path):
    with pytest.raises(ValueError, match="at least one mesh, got none"):
        MeshWriter(tmp_path).finish()
    assert not list(tmp_path.iterdir())


def test_a_finished_writer_takes_no_more(tmp_path):
    writer = MeshWriter(tmp_path)
    writer.add(box_mesh())
    writer.finish()
    for action in (writer.finish, lambda: writer.add(box_mesh())):
        with pytest.raises(RuntimeError, match="has finished; make a new MeshWriter"):
            action()
    assert num_faces(tmp_path) == [12]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        MeshWriter(tmp_path / "file")


def damage_manifest(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def exchange_offsets(folder):
    path = arrays_of(folder) / "faces_offsets.npy"
    np.save(path, np.load(path)[::-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: damage_manifest(f, version=9), "format version 9, this library reads 1; prep"),
        (lambda f: damage_manifest(f, format="other"), "is no 'meshgpt-pytorch meshes'"),
        (lambda f: (f / "dataset.json").write_text("{"), r"dataset\.json is damaged"),
        (lambda f: damage_manifest(f, num_meshes=4), r"wanted 4 meshes.* got \[3\]"),
        (lambda f: shutil.rmtree(arrays_of(f)), "is damaged: .*No such file"),
        (lambda f: cut(arrays_of(f) / "vertices.npy"), r"vertices\.npy is damaged"),
        (lambda f: cut(arrays_of(f) / "hashes.npy"), r"hashes\.npy is damaged"),
        (lambda f: (arrays_of(f) / "label_name.npy").write_bytes(b""), r"name\.npy is damaged"),
        (exchange_offsets, r"faces_offsets\.npy must rise from 0 to the 22 rows"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, damage, message):
    write(tmp_path, name=["a", "b", "c"])
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        MeshDataset(tmp_path)


def test_a_changed_byte_is_found_by_verifying(tmp_path):
    path = arrays_of(write(tmp_path, name=["a", "b", "c"])) / "vertices.npy"
    contents = bytearray(path.read_bytes())
    contents[-12] ^= 1
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=r"mesh 2 \('c'\) of .* is damaged"):
        MeshDataset(tmp_path).verify()
    MeshDataset.from_meshes(MESHES).verify()


def test_a_data_set_that_is_replaced_while_it_is_opened_is_opened_anew(tmp_path, monkeypatch):
    write(tmp_path)
    read_manifest = disk.read_manifest

    def read_and_be_overtaken(folder):
        manifest = read_manifest(folder)
        monkeypatch.setattr(disk, "read_manifest", read_manifest)
        write(tmp_path, MESHES[1:])
        return manifest

    monkeypatch.setattr(disk, "read_manifest", read_and_be_overtaken)
    assert num_faces(tmp_path) == [6, 4]
