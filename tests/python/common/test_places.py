"""Where results are written: found before anything runs, or handled."""

import errno
import os
from pathlib import Path

import pytest

from mlcalib.common import files
from mlcalib.common.files import (
    atomic_folder,
    check_file,
    check_output,
    locked,
    parts_folder,
    remove_partial,
)
from mlcalib.judging.journal import Journal


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """A folder that cannot be replaced, as a mount point; what is beside is another file system."""
    out, rename = tmp_path / "out", Path.rename
    (out / "lost+found").mkdir(parents=True)

    def crosses(self, target):
        if out in (Path(target), self) or (out in self.parents) != (out in Path(target).parents):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self))
        return rename(self, target)

    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    monkeypatch.setattr(Path, "rename", crosses)
    return out


def test_a_mount_point_is_filled_from_inside(mount):
    parts = parts_folder(mount)
    with locked(parts):
        check_output(mount)
        (mount / ".partial-1").mkdir()  # a run was killed
        remove_partial(mount)
        with atomic_folder(mount) as folder:
            assert folder.parent == mount
            (folder / "mlcalib.json").write_text("{}")
            (folder / "model.safetensors").write_text("weights")
    assert parts.parent == mount
    assert {path.name for path in mount.iterdir()} == {
        *("lost+found", ".parts", "mlcalib.json", "model.safetensors")
    }
    assert [path.name for path in mount.parent.iterdir()] == ["out"]
    with pytest.raises(FileExistsError):
        check_output(mount)


def test_a_file_system_that_cannot_rename_is_found_at_the_start(tmp_path, monkeypatch):
    def refuses(self, target):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(self))

    monkeypatch.setattr(Path, "rename", refuses)
    with pytest.raises(OSError, match=r"cannot write .*give another path"):
        check_output(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_whole_is_kept_when_the_last_step_fails(tmp_path, monkeypatch):
    rename = Path.rename

    def refuses(self, target):
        if Path(target).name == "out":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuses)

    def write():
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("a")

    with pytest.raises(OSError, match=r"out\.partial-\d+ is whole, but .*; move it"):
        write()
    (kept,) = tmp_path.iterdir()
    assert (kept / "a").read_text() == "a"


def test_a_disk_that_is_full_is_found_at_the_start(tmp_path, monkeypatch):
    def full(self, _):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"[Qq]uota"):
        check_output(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["q?x", "50%", "a b", "[a]*", "ключ"])
def test_any_name_will_do(name, tmp_path):
    out = tmp_path / name
    begun = out.with_name(f".{name}.partial-1")
    begun.mkdir()
    remove_partial(out)
    assert not begun.exists()
    check_output(out)
    with atomic_folder(out) as folder:
        (folder / "a").write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_home_directory_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with atomic_folder("~/out") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "out/a").is_file()
    assert parts_folder("~/out") == tmp_path / ".out.parts"


def test_a_file_that_cannot_be_written_is_found_at_the_start(tmp_path):
    check_file(tmp_path / "rows.jsonl")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IsADirectoryError, match="give the path of a file"):
        check_file(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*rows.jsonl"):
        check_file(tmp_path / "file" / "rows.jsonl")


def test_without_locks_a_file_stands_in(tmp_path, monkeypatch, caplog):
    class NoLock(files.FileLock):
        def acquire(self, *_, **__):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files, "FileLock", NoLock)
    with locked(tmp_path / "parts"):
        assert "without locks" in caplog.text
        with pytest.raises(BlockingIOError, match="another process"), locked(tmp_path / "parts"):
            pass
    with locked(tmp_path / "parts"):
        pass


def test_two_runs_on_one_journal_are_locked_out(tmp_path):
    path = tmp_path / "judgements.jsonl"
    with Journal(path, "mark", "judgements", dict) as first:
        first.append({"id": "1"})
        with path.open("a") as file:  # the first run is in the middle of a line
            file.write('{"id": "2"')
        with pytest.raises(BlockingIOError, match="another run is writing"):
            Journal(path, "mark", "judgements", dict)
        assert path.read_text().endswith('{"id": "2"')
    with Journal(path, "mark", "judgements", dict) as again:
        assert again.rows == [{"id": "1"}]


def test_a_journal_without_locks_says_so(tmp_path, monkeypatch, caplog):
    def refuses(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuses)
    with Journal(tmp_path / "a.jsonl", "mark", "judgements", dict):
        assert "start no second run" in caplog.text
