"""Loggers that wait for module logging, and digests that wait for OpenSSL."""

import hashlib
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrun import digests
from igrun.logs import Logger


def printed(code: str) -> list[str]:
    """What a program of its own prints on stderr."""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return told.stderr.splitlines()


def test_nothing_is_imported_for_what_nobody_would_see():
    code = "import sys; from igrun.logs import Logger; Logger('igrun.x').info('quiet'); print('logging' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (told.stdout, told.stderr) == ("False\n", "")


def test_a_warning_is_seen_though_nobody_configured_anything():
    assert printed("from igrun.logs import Logger; Logger('igrun.x').warning('%d of %s', 3, 'them')") == ["3 of them"]


@pytest.mark.parametrize("before", ["", "import logging\n"])
def test_what_is_prepared_is_done_before_the_first_record_that_counts_and_once(before):
    code = f"""{before}
from igrun import logs
def configure():
    import logging, sys
    print("configured", file=sys.stderr)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
logs.prepare(logs.INFO, configure)
logs.Logger("igrun.x").debug("too little")
logs.Logger("igrun.x").info("one")
logs.Logger("igrun.y").warning("two")
"""
    assert printed(code) == ["configured", "INFO igrun.x one", "WARNING igrun.y two"]


def test_records_of_others_wait_for_nothing_that_is_prepared():
    code = """
from igrun import logs
logs.prepare(logs.INFO, lambda: logs.logging().basicConfig(format="%(message)s!"))
import logging
logs.logging()
logging.getLogger("urllib3").warning("theirs")
"""
    assert printed(code) == ["theirs!"]


def test_a_record_is_about_the_line_that_logged_it(caplog):
    caplog.set_level(logging.DEBUG, "igrun.x")
    mine = Logger("igrun.x")
    mine.debug("a")
    mine.info("b")
    mine.warning("c")
    mine.log(logging.INFO, "d")
    assert [(one.levelname, one.funcName) for one in caplog.records] == [
        (level, "test_a_record_is_about_the_line_that_logged_it") for level in ("DEBUG", "INFO", "WARNING", "INFO")
    ]


@given(st.lists(st.binary(max_size=300), max_size=5), st.sampled_from([0, digests.LARGE]))
def test_a_digest_is_that_of_hashlib_whoever_makes_it(parts, size):
    made = digests.sha256(size=size)
    for part in parts:
        made.update(part)
    assert made.hexdigest() == hashlib.sha256(b"".join(parts)).hexdigest()
    assert digests.sha256(b"".join(parts)).hexdigest() == made.hexdigest()
