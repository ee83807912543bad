"""Worker processes: one that ends takes its mesh with it, and nothing else."""

import textwrap

import pytest

from meshgpt_pytorch.mesh import save_mesh
from meshgpt_pytorch.prepare import pool
from meshgpt_pytorch.prepare.options import PrepareOptions
from meshgpt_pytorch.prepare.pool import prepare_in_processes
from meshgpt_pytorch.prepare.sources import find_sources
from tests.helpers import box_mesh

# a worker in which files kill the process, hang, find the disk full or no package to decimate with
HOSTILE = textwrap.dedent(
    """
    import json, os, signal, sys, time
    sys.path[:] = json.loads(sys.argv[1])
    from meshgpt_pytorch.prepare import single
    from meshgpt_pytorch.mesh.simplify import MissingSimplifierError
    prepare_one = single.prepare_one

    def hostile(source, options, results):
        if "crash" in source.key:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "leave" in source.key:
            os._exit(3)
        if "hang" in source.key:
            time.sleep(600)
        if "full" in source.key:
            raise OSError(28, "No space left on device", "somewhere")
        if "fail" in source.key:
            raise RuntimeError("out of memory")
        if "missing" in source.key:
            raise MissingSimplifierError("neither is installed")
        print("libraries print")
        return prepare_one(source, options, results)

    single.prepare_one = hostile
    from meshgpt_pytorch.prepare.worker import main
    main()
    """
)


def run(names, tmp_path, monkeypatch, **options):
    for name in names:
        save_mesh(box_mesh(), tmp_path / "models" / f"{name}.obj")
    monkeypatch.setattr(pool, "START", HOSTILE)
    settings = {"num_workers": 1, "seconds_per_mesh": 60.0, **options}
    sources = find_sources(tmp_path / "models")
    return {
        record.key: record
        for record in prepare_in_processes(
            sources, PrepareOptions(), tmp_path / "results", **settings
        )
    }


def test_a_crash_costs_one_mesh(tmp_path, monkeypatch):
    records = run(("a", "crash", "fail", "leave", "z"), tmp_path, monkeypatch)
    assert {key: record.outcome for key, record in records.items()} == {
        "a.obj": "kept",
        "crash.obj": "crashed",
        "fail.obj": "crashed",
        "leave.obj": "crashed",
        "z.obj": "kept",
    }
    assert records["crash.obj"].reason == "the process that read it was ended by signal 11"
    assert records["leave.obj"].reason == "the process that read it was ended with status 3"


def test_a_mesh_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    records = run(("hang",), tmp_path, monkeypatch, seconds_per_mesh=0.5)
    assert records["hang.obj"].outcome == "timed out"
    assert records["hang.obj"].reason == "it took longer than seconds_per_mesh=0.5"


def test_workers_that_cannot_start_end_the_run(tmp_path, monkeypatch):
    save_mesh(box_mesh(), tmp_path / "models" / "a.obj")
    monkeypatch.setattr(pool, "START", "raise SystemExit(7)")
    sources = find_sources(tmp_path / "models")
    with pytest.raises(RuntimeError, match=r"it ended with 7; pass num_workers=0"):
        list(
            prepare_in_processes(
                sources, PrepareOptions(), tmp_path / "results", num_workers=1, seconds_per_mesh=9
            )
        )


def test_without_a_package_to_decimate_with_the_run_ends(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="neither is installed"):
        run(("missing",), tmp_path, monkeypatch)


def test_a_full_disk_ends_the_run(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="No space left on device") as caught:
        run(("full",), tmp_path, monkeypatch)
    assert caught.value.errno == 28
