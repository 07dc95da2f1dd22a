"""Arrow streams and Parquet files: what is in them, when a file is complete, and what is refused."""

import io
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from igrun.engine import columnar
from igrun.errors import GadgetError, ParamError, UnsupportedError
from igrun.outputs import parquet
from igrun.outputs.modes import apart, files, mode_of
from igrun.record import At, Compare, DataSource, Derived, Field, Kind, Time
from tests.unit.conftest import Sample

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install igrun[arrow]")
pq = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).parents[2]
NUMBER = Field("n", "<u4", At(0))
SOURCE = DataSource("s", Kind.EVENTS, (NUMBER, Field("text", "|S4", At(4))), size=8)


@pytest.fixture
def sample() -> Sample:
    return Sample(SOURCE, [bytes([number, 0, 0, 0]) + b"abcd" for number in range(5)])


def in_files(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------- streams


def test_a_stream_on_standard_output_holds_every_row(sample):
    writer = sample.open("arrow")
    assert writer.write(sample.batch()) == 5
    assert writer.write(sample.batch(sample.records[1])) == 1
    writer.close()

    table = pa.ipc.open_stream(io.BytesIO(b"".join(sample.printed))).read_all()
    assert table.column("n").to_pylist() == [0, 1, 2, 3, 4, 1]


def test_each_batch_is_written_at_once(sample):
    writer = sample.open("arrow")
    writer.write(sample.batch())

    reader = pa.ipc.open_stream(io.BytesIO(b"".join(sample.printed)))
    assert reader.read_next_batch().num_rows == 5


def test_filtered_rows_are_left_out_and_not_counted(sample):
    writer = sample.open("arrow", keep=Compare(NUMBER, ">", 2), fields="n")

    assert writer.write(sample.batch()) == 2
    writer.close()
    table = pa.ipc.open_stream(io.BytesIO(b"".join(sample.printed))).read_all()
    assert table.to_pydict() == {"n": [3, 4]}


def test_a_stream_may_go_to_a_file(sample, tmp_path):
    writer = sample.open("arrow", file=str(tmp_path / "x.arrow"))
    writer.write(sample.batch())
    writer.close()

    assert not sample.printed
    assert pa.ipc.open_stream(tmp_path / "x.arrow").read_all().num_rows == 5


def test_a_stream_is_nothing_for_a_terminal(sample):
    with pytest.raises(ParamError, match="terminal"):
        sample.open("arrow", terminal=True)


# ---------------------------------------------------------------------------------------------- files


def test_a_file_has_its_name_when_it_is_complete(sample, tmp_path):
    writer = sample.open("parquet", file=str(tmp_path / "x.parquet"))
    writer.write(sample.batch())
    assert in_files(tmp_path) == [".x.parquet.part"]

    writer.close()
    assert in_files(tmp_path) == ["x.parquet"]
    assert pq.read_table(tmp_path / "x.parquet").column("n").to_pylist() == [0, 1, 2, 3, 4]
    assert pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_times_are_written_as_differences_and_only_numbers_have_bounds(tmp_path):
    boot = Field("at.boot", "<u8", At(0))
    fields = (
        *(boot, Field("at.wall", "T", Derived((boot,), Time()))),
        *(Field("n", "<u4", At(8)), Field("text", "|S4", At(12)), Field("list", "(2,)<u2", At(8))),
    )
    records = [struct.pack("<QI4s", 10**15 + number, number % 3, b"abcd") for number in range(500)]
    sample = Sample(DataSource("s", Kind.EVENTS, fields, size=16), records)
    writer = sample.open("parquet", file=str(tmp_path / "x.parquet"))
    writer.write(sample.batch())
    writer.close()

    written = pq.ParquetFile(tmp_path / "x.parquet")
    columns = {one.path_in_schema: one for one in map(written.metadata.row_group(0).column, range(5))}
    assert "DELTA_BINARY_PACKED" in columns["at.wall"].encodings
    assert "RLE_DICTIONARY" in columns["n"].encodings
    assert {name: one.is_stats_set for name, one in columns.items()} == {
        "at.boot": True, "at.wall": True, "n": True, "text": False, "list.list.element": True,
    }  # fmt: skip
    table = written.read()
    assert table.column("list").to_pylist()[4] == [1, 0]
    assert table.column("at.wall").cast(pa.int64()).to_pylist() == [10**15 + number for number in range(500)]


def test_the_next_file_begins_when_one_is_old_enough(sample, tmp_path):
    writer = sample.open("parquet", file=str(tmp_path / "x.parquet"), values={"parquet-time": "1ms"})
    for _ in range(3):
        time.sleep(0.002)
        writer.write(sample.batch())
    writer.close()

    names = ["x-0001.parquet", "x-0002.parquet", "x-0003.parquet", "x.parquet"]
    assert in_files(tmp_path) == names
    assert sum(pq.read_table(tmp_path / name).num_rows for name in names) == 15


def test_the_next_file_begins_when_one_is_large_enough(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS", 5)
    writer = parquet.ParquetWriter(shown(sample), tmp_path / "x.parquet", 1000, 0)
    for _ in range(20):
        writer.write(sample.batch())
    writer.close()

    names = in_files(tmp_path)
    assert len(names) > 2
    assert sum(pq.read_table(tmp_path / name).num_rows for name in names) == 100


def shown(sample):
    from igrun.engine.reference import ENGINE
    from igrun.outputs import Shown

    return Shown(sample.source, "parquet", None, sample.facts, ENGINE)


def test_a_run_that_is_killed_leaves_the_files_that_were_complete(tmp_path):
    script = (
        "import sys; from pathlib import Path; from igrun.outputs import parquet; sys.path.append(sys.argv[2])\n"
        "from tests.unit.test_outputs_arrow import SOURCE, Sample, shown\n"
        "sample = Sample(SOURCE, [bytes(8)] * 100); parquet.ROWS = 100\n"
        "writer = parquet.ParquetWriter(shown(sample), Path(sys.argv[1], 'x.parquet'), 500, 0)\n"
        "while True: writer.write(sample.batch())"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(ROOT)])
    deadline = time.monotonic() + 20
    while len(list(tmp_path.glob("*.parquet"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()

    complete = list(tmp_path.glob("*.parquet"))
    assert len(complete) >= 5
    assert all(pq.read_table(path).num_rows % 100 == 0 for path in complete)


def test_a_file_that_cannot_be_written_is_one_clear_line(sample, tmp_path):
    for mode in ("arrow", "parquet"):
        with pytest.raises(GadgetError, match="No such file"):
            sample.open(mode, file=str(tmp_path / "none" / "x"))


def test_parquet_wants_a_file(sample):
    with pytest.raises(ParamError, match="file"):
        sample.open("parquet")


def test_without_pyarrow_the_error_says_what_to_install(sample, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnsupportedError) as caught:
        sample.open("arrow")

    assert "igrun[arrow]" in caught.value.hint
    assert columnar.HINT in caught.value.hint


# ---------------------------------------------------------------------------------------------- which goes where


def test_a_mode_may_name_its_file():
    sources = {"s": SOURCE}

    assert mode_of(SOURCE, "parquet=/x/y.parquet", sources) == "parquet=/x/y.parquet"
    assert mode_of(SOURCE, "s:arrow=y", sources) == "arrow=y"
    with pytest.raises(ParamError, match="takes no file"):
        mode_of(SOURCE, "json=x", sources)


def test_sources_that_name_the_same_file_get_one_each():
    assert files({"a": "parquet=/d/x.parquet", "b": "parquet=/d/x.parquet", "c": "json"}) == {
        "a": "/d/x-a.parquet",
        "b": "/d/x-b.parquet",
        "c": "",
    }
    assert apart("plain", "a") == "plain-a"
    assert apart("d.d/.hidden", "a") == "d.d/.hidden-a"


@pytest.mark.parametrize("modes", [{"a": "arrow", "b": "arrow"}, {"a": "arrow", "b": "json"}])
def test_one_stream_has_room_on_standard_output(modes):
    with pytest.raises(ParamError, match="one Arrow stream"):
        files(modes)
    assert files({"a": "arrow", "b": "none", "c": "arrow=x"}) == {"a": "", "b": "", "c": "x"}
