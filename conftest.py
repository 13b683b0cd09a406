"""Every notebook is a test: `pytest nbs tests` runs the notebooks beside the plain tests.

A notebook runs in a process of its own, with a time limit, and skips the cells that `nbdev_test` skips."""
import contextlib, os, signal, subprocess, sys, time
from pathlib import Path
import pytest
from hypothesis import settings

ROOT = Path(__file__).parent
os.environ.setdefault('OMP_NUM_THREADS', '1')  # tests run side by side
os.environ.setdefault('HF_HUB_OFFLINE', '1')   # and need no network

# Random examples: the same ones in every run; IVGR_SLOW=1 draws 10,000 new ones (give pytest --timeout=0)
settings.register_profile('quick', max_examples=200, deadline=None, derandomize=True, database=None)
settings.register_profile('slow', max_examples=10_000, deadline=None)
settings.load_profile('slow' if os.environ.get('IVGR_SLOW') else 'quick')

RUN = """
import faulthandler,sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
fname,limit,flags = sys.argv[1:]
faulthandler.dump_traceback_later(float(limit), exit=True)  # says where it hangs; ends even where pytest itself is gone
cfg = get_config()
ok,_ = test_nb(Path(fname), skip_flags=cfg.tst_flags.split(), force_flags=flags.split(), basepath=cfg.config_path)
sys.exit(not ok)
"""

def pytest_addoption(parser):
    group = parser.getgroup('notebooks')
    group.addoption('--nb-flags', default='', help="also run the cells marked with these, e.g. --nb-flags='slow gpu'")
    group.addoption('--nb-limit', type=float, default=240, help='seconds that one notebook may take (default: 240)')

def pytest_collect_file(file_path, parent):
    if file_path.suffix!='.ipynb' or file_path.name.startswith(('_','.')): return
    if not (file_path.parent/'.notest').exists(): return Notebook.from_parent(parent, path=file_path)

class Notebook(pytest.File):
    def collect(self): yield NotebookItem.from_parent(self, name='notebook')

class NotebookFailed(Exception): "What the notebook's process said before it failed"

def _kill(proc):
    with contextlib.suppress(ProcessLookupError, PermissionError): os.killpg(proc.pid, signal.SIGKILL)

class NotebookItem(pytest.Item):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_marker(pytest.mark.timeout(0))  # --nb-limit takes the place of pytest-timeout

    def runtest(self):
        limit,start = self.config.getoption('--nb-limit'),time.monotonic()
        cmd = [sys.executable, '-c', RUN, str(self.path), str(limit), self.config.getoption('--nb-flags')]
        proc = subprocess.Popen(cmd, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True)
        try: out,_ = proc.communicate(timeout=limit+5)
        except subprocess.TimeoutExpired:
            _kill(proc)
            out,_ = proc.communicate()
        finally: _kill(proc)  # Ctrl-C, or what the notebook itself started
        if proc.returncode==0: return
        if time.monotonic()-start>=limit: out += f"\nstopped after {limit:g} s, the limit for one notebook (--nb-limit)"
        elif proc.returncode<0: out += f"\nthe process was ended by signal {-proc.returncode}"
        raise NotebookFailed(out)

    def repr_failure(self, excinfo, style=None):
        if excinfo.errisinstance(NotebookFailed): return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self): return self.path, None, f"notebook {self.path.relative_to(ROOT)}"
