"""The log file: it rotates, it is private, and its trouble is nobody else's."""

import io
import logging
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll import logs

memory = logging.getLogger("plimsoll.memory")


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("plimsoll")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    root.handlers[:] = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "plimsoll.log"


def test_the_file_is_made_with_the_first_record_for_its_owner_only(file: Path) -> None:
    logs.configure("info", io.StringIO(), file)
    assert not file.parent.exists()
    memory.info("⚠️ Высокое использование памяти: 87.5%")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "plimsoll.memory: ⚠️ Высокое использование памяти: 87.5%\n" in file.read_text("utf-8")


def test_a_file_that_was_there_becomes_its_owners_alone_and_a_device_is_left_as_it_is(file: Path) -> None:
    file.parent.mkdir()
    file.touch(0o644)
    logs.configure("info", io.StringIO(), file)
    memory.info("a line")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = Path("/dev/null").stat().st_mode
    logs.configure("info", io.StringIO(), Path("/dev/null"))
    memory.info("a line")
    assert Path("/dev/null").stat().st_mode == before


def test_the_file_rotates_at_five_megabytes_and_five_files_are_kept(file: Path) -> None:
    logs.configure("info", io.StringIO(), file)
    for _ in range(32):
        memory.info("x" * 1_000_000)
    files = sorted(one.name for one in file.parent.iterdir())
    assert files == ["plimsoll.log", *(f"plimsoll.log.{number}" for number in range(1, 5))]
    assert all(one.stat().st_size <= 5_000_000 for one in file.parent.iterdir())
    assert {stat.S_IMODE(one.stat().st_mode) for one in file.parent.iterdir()} == {0o600}


def test_a_folder_that_cant_be_written_is_one_warning(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.parent.write_text("a file where the folder should be")
    stream = io.StringIO()
    logs.configure("info", stream, file)
    for number in range(3):
        memory.info("record %d", number)
    told = stream.getvalue()
    assert told.count("can't be written") == 1
    assert "the log goes on without it" in told
    assert "record 2" in told
    assert capsys.readouterr().err == ""
    file.parent.unlink()
    memory.info("back")
    assert "back" in file.read_text("utf-8")


def test_the_folder_that_is_deleted_meanwhile_is_made_again(file: Path) -> None:
    logs.configure("info", io.StringIO(), file)
    memory.info("before")
    shutil.rmtree(file.parent)
    memory.info("after")
    assert "after" in file.read_text("utf-8")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's full disk")
def test_a_full_disk_raises_into_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    logs.configure("info", stream, Path("/dev/full"))
    memory.info("one")
    memory.info("two")
    assert stream.getvalue().count("No space left on device") == 1
    assert "two" in stream.getvalue()
    assert capsys.readouterr().err == ""


def test_a_name_that_is_not_text_is_written_with_escapes(file: Path) -> None:
    logs.configure("info", io.StringIO(), file)
    memory.info("caf\udce9")
    assert "caf\\udce9" in file.read_text("utf-8")


def run(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"import logging, os, sys\nfrom pathlib import Path\nfrom plimsoll import logs\n{code}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )  # type: ignore[call-overload]


@pytest.mark.parametrize("end", ["", "logging.shutdown(); os._exit(3)"])
def test_what_was_logged_is_written_before_the_process_ends(file: Path, end: str) -> None:
    code = f"""
logs.configure("info", file=Path(sys.argv[1]))
for number in range(500):
    logging.getLogger("plimsoll.memory").info("line %d", number)
{end}
"""
    told = run(code, str(file))
    assert told.stderr.splitlines()[-1].endswith("line 499")
    assert len(file.read_text("utf-8").splitlines()) == 500


def test_a_pipe_that_nobody_reads_blocks_no_caller(file: Path) -> None:
    code = """
import time
read, write = os.pipe()
sys.stderr = os.fdopen(write, "w")
logs.configure("info")
began = time.monotonic()
for number in range(20_000):
    logging.getLogger("plimsoll.memory").info("x" * 100)
print(time.monotonic() - began)
sys.stdout.flush()
os._exit(0)
"""
    assert float(run(code).stdout) < 10


def test_a_traceback_stays_readable(file: Path) -> None:
    code = """
logs.configure("info")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("plimsoll.http").exception("one\\nline")
"""
    lines = run(code).stderr.splitlines()
    assert lines[0].endswith("plimsoll.http: one\\nline")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ZeroDivisionError: division by zero"
