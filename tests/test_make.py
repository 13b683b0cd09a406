"What `make` installs, with whom and when: the commands are recorded, nothing is fetched"
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECORD = """#!/bin/sh
here=$(basename "$0"); case $0 in *.venv/bin/*) here=.venv/$here;; esac
echo "$here $*" >> "$RECORD"
case "$*" in
  "-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/ivgr;;
  *"pip install"*) case " $FAILS " in *" $here "*) exit 1;; esac;;
esac
"""

@pytest.fixture
def make(tmp_path):
    "A function that calls `make` and returns what was installed"
    for name in ("Makefile", "settings.ini", "setup.py", "constraints.txt"):
        shutil.copy(ROOT/name, tmp_path)
    tools = tmp_path/"bin"
    tools.mkdir()
    for name in ("dirname", "basename", "mkdir", "cp", "touch", "env", "sh", "uname"):
        os.symlink(shutil.which(name), tools/name)
    record = tmp_path/"record"

    def add(name):
        (tools/name).write_text(RECORD)
        (tools/name).chmod(0o755)

    def run(target, uv=False, fails=""):
        record.write_text("")
        add("python3")
        if uv:
            add("uv")
        env = dict(PATH=str(tools), RECORD=str(record), FAILS=fails)
        done = subprocess.run([shutil.which("make"), target], cwd=tmp_path, env=env, capture_output=True, text=True)
        lines = [line.split() for line in record.read_text().splitlines() if "pip install" in line]
        assert all("-c constraints.txt" in " ".join(words) for words in lines)
        return done.returncode, [(Path(words[0]).name, words[-1]) for words in lines]
    return run

EXTRAS = ".[dev,qlora,judge,maths,bench]"

def test_the_demo_installs_the_package_and_tests_the_rest(make):
    assert make("demo") == (0, [("python", ".")])
    assert make("demo") == (0, [])  # it is there
    assert make("test") == (0, [("python", EXTRAS)])
    assert make("test") == (0, [])
    assert make("demo") == (0, [])

def test_tests_first(make):
    assert make("test") == (0, [("python", "."), ("python", EXTRAS)])
    assert make("demo") == (0, [])

def test_uv_where_it_is_there(make):
    assert make("demo", uv=True) == (0, [("uv", ".")])
    assert make("test", uv=True) == (0, [("uv", EXTRAS)])

def test_pip_where_uv_cannot(make):
    assert make("demo", uv=True, fails="uv") == (0, [("uv", "."), ("python", ".")])

def test_what_was_not_installed_is_tried_again(make):
    status, tried = make("demo", fails=".venv/python")
    assert status != 0 and tried == [("python", ".")]
    assert make("demo") == (0, [("python", ".")])
