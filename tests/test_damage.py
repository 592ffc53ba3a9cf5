"""Files that are damaged anywhere are read as what they are said to hold, or named in an error of ours; nothing else happens."""

import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_lightning.errors import DataError
from tests.damage import WHOLE, damaged, read, suffix


def examine(kind: str, content: bytes, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about what it makes of odd bytes
        name = f"file{ending}"
        (Path(folder) / name).write_bytes(content)
        try:
            read(Path(folder), name, WHOLE[kind][0])
        except DataError as error:
            assert name in str(error)


def cases() -> st.SearchStrategy[tuple[str, bytes, str]]:
    def of(kind: str) -> st.SearchStrategy[tuple[str, bytes, str]]:
        endings = st.just(suffix(kind)) | st.just(suffix(kind)) | st.sampled_from([".png", ".npy", ".jpg", ""])
        return st.tuples(st.just(kind), damaged(kind), endings)

    return st.sampled_from(sorted(WHOLE)).flatmap(of)


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_files_are_read(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"x{suffix(kind)}").write_bytes(WHOLE[kind][1]())
    assert read(tmp_path, f"x{suffix(kind)}", WHOLE[kind][0]).size


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(case=cases())
def test_damaged_files(case: tuple[str, bytes, str]) -> None:
    examine(*case)


@pytest.mark.slow
@settings(max_examples=1000, derandomize=True, deadline=None, database=None)
@given(case=cases())
def test_many_damaged_files(case: tuple[str, bytes, str]) -> None:
    examine(*case)
