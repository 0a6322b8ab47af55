import pytest

from aaren_rl.errors import CheckpointError, DataError
from aaren_rl.folders import clean_up, replace_file, whole_folder


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def fail_to_write(folder, reason, error):
    with whole_folder(folder, error) as partial:
        (partial / "b").write_text("second")
        raise reason


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "parent" / "data"
    with whole_folder(folder, DataError) as partial:
        (partial / "a").write_text("first")
    return folder


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path):
    folder = tmp_path / "new" / "data"
    with whole_folder(folder, DataError) as partial:
        (partial / "a").write_text("first")
        assert not folder.exists()
    assert contents(folder) == {"a": "first"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_whole_folder_replaces_the_one_before(folder):
    with whole_folder(folder, DataError) as partial:
        (partial / "b").write_text("second")
        assert contents(folder) == {"a": "first"}
    assert contents(folder) == {"b": "second"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_may_not_be_replaced_stays(folder):
    with pytest.raises(DataError, match="could not be written"), whole_folder(folder, DataError, replace=False) as new:
        (new / "b").write_text("second")
    assert contents(folder) == {"a": "first"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [DataError, CheckpointError])
def test_a_failing_write_raises_the_error_that_is_asked_for(folder, error):
    with pytest.raises(error, match="disk full; nothing was changed there"):
        fail_to_write(folder, OSError("disk full"), error)
    assert contents(folder) == {"a": "first"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_other_errors_pass_and_leave_the_old_folder(folder, error):
    with pytest.raises(error):
        fail_to_write(folder, error(), DataError)
    assert contents(folder) == {"a": "first"}
    assert list(folder.parent.iterdir()) == [folder]


def test_clean_up_undoes_what_a_killed_write_left(folder):
    parent = folder.parent
    (parent / ".data.partial-7").mkdir()
    (parent / ".data.old-7").mkdir()
    folder.rename(parent / ".lost.old-7")
    clean_up(parent)
    assert [path.name for path in parent.iterdir() if path.name == "lost"] == ["lost"]
    assert contents(parent / "lost") == {"a": "first"}
    assert not list(parent.glob(".*.partial-*"))
    assert not list(parent.glob(".*.old-*"))


def test_a_file_is_replaced_whole(tmp_path):
    for text in ("first", "second"):
        replace_file(tmp_path / "a.json", text)
        assert contents(tmp_path) == {"a.json": text}
