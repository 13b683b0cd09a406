"""Every notebook is a test: `pytest nbs tests` runs the notebooks beside the plain tests.

A notebook runs in a process of its own, with a time limit, and skips the cells that `nbdev_test` skips."""
import contextlib, faulthandler, multiprocessing, os, signal, sys, tempfile, time
from collections import Counter
from pathlib import Path
import pytest
from hypothesis import settings

ROOT = Path(__file__).parent
os.environ.setdefault('OMP_NUM_THREADS', '1')  # tests run side by side
os.environ.setdefault('HF_HUB_OFFLINE', '1')   # and need no network
if 'HF_HOME' not in os.environ: # and keep what they cache to themselves
    HOME = tempfile.TemporaryDirectory(prefix='ivgr-')
    os.environ['HF_HOME'] = HOME.name

# Random examples: the same ones in every run; IVGR_SLOW=1 draws 10,000 new ones (give pytest --timeout=0)
settings.register_profile('quick', max_examples=200, deadline=None, derandomize=True, database=None)
settings.register_profile('slow', max_examples=10_000, deadline=None)
settings.load_profile('slow' if os.environ.get('IVGR_SLOW') else 'quick')

# Importing these takes several times as long as most notebooks: it is done once, in a process of which each notebook gets a copy
FORKSERVER,FRESH = map(multiprocessing.get_context, ('forkserver', 'spawn'))
FORKSERVER.set_forkserver_preload(['nbdev.test', 'hypothesis', 'matplotlib.pyplot', 'math_verify', 'openai', 'transformers.trainer',
                                   'transformers.models.qwen3_vl.modeling_qwen3_vl'])

# A Python process that a test starts imports PyTorch and more, which takes 6 s: few do. tests/forked.py copies one that has it all
MOST_STARTS = 80                # By all tests together
STARTS = []                     # Commands that the present test has started
starts_of = Counter()           # Number of them by test

def note_start(event, args):
    if event=='subprocess.Popen' and any(sys.executable in str(word) for word in args[1]): STARTS.append(args[1])

sys.addaudithook(note_start)

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item, call):
    if call.when=='teardown':
        item.user_properties.append(('starts', len(STARTS)))
        STARTS.clear()

def pytest_runtest_logreport(report):
    if report.when=='teardown': starts_of[report.nodeid] += dict(report.user_properties).get('starts', 0)

def pytest_sessionfinish(session):
    if starts_of.total()>MOST_STARTS: session.exitstatus = pytest.ExitCode.TESTS_FAILED

def pytest_terminal_summary(terminalreporter):
    terminalreporter.line(f"Python processes that tests started: {starts_of.total()} (at most {MOST_STARTS})")
    if starts_of.total()>MOST_STARTS: terminalreporter.line('\n'.join(f'{n} {test}' for test,n in starts_of.most_common() if n))

def write_to(path):
    "What this process prints, and what it starts, goes to a file"
    for stream in (1, 2): os.dup2(os.open(path, os.O_CREAT|os.O_WRONLY|os.O_APPEND), stream)

def run_notebook(path, limit, flags, folder, check):
    "Run a notebook's cells, in a process of its own; what it prints and its temporary files are in `folder`"
    os.setsid()
    os.chdir(ROOT)
    os.environ['TMPDIR'] = tempfile.tempdir = folder
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    write_to(f'{folder}/said')
    faulthandler.dump_traceback_later(limit, exit=True)  # says where it hangs; ends even where pytest itself is gone
    from nbdev.config import get_config
    from nbdev.test import test_nb
    cfg = get_config()
    if check: sys.exit(other_outputs(path, cfg.config_path))
    ok,_ = test_nb(path, skip_flags=cfg.tst_flags.split(), force_flags=flags.split(), basepath=cfg.config_path)
    sys.exit(not ok)

def other_outputs(path, top):
    "Run a notebook; what differs from its stored outputs, or None: nothing does"
    from tools.outputs import difference, execute
    sys.path.insert(0, str(top))
    os.chdir(path.parent)
    diff = difference(path, execute(path))
    return f'{diff}\n\nother outputs than the stored ones: `make outputs` stores the new ones' if diff else None

def pytest_configure(config):
    if config.getoption('--check-outputs'):
        from tools.outputs import SAME_EVERYWHERE
        os.environ.update(SAME_EVERYWHERE)

def pytest_addoption(parser):
    group = parser.getgroup('notebooks')
    group.addoption('--nb-flags', default='', help="also run the cells marked with these, e.g. --nb-flags='slow gpu'")
    group.addoption('--check-outputs', action='store_true', help='a notebook also fails where its outputs are not the stored ones')
    group.addoption('--nb-limit', type=float, default=240, help='seconds that one notebook may take (default: 240)')

def pytest_collect_file(file_path, parent):
    if file_path.suffix!='.ipynb' or file_path.name.startswith(('_','.')): return
    if not (file_path.parent/'.notest').exists(): return Notebook.from_parent(parent, path=file_path)

class Notebook(pytest.File):
    def collect(self): yield NotebookItem.from_parent(self, name='notebook')

class NotebookFailed(Exception): "What the notebook's process said before it failed"

class NotebookItem(pytest.Item):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_marker(pytest.mark.timeout(0))  # --nb-limit takes the place of pytest-timeout

    def runtest(self):
        limit = self.config.getoption('--nb-limit')
        looks_there = self.path.read_text(encoding='utf-8').count('HF_HOME')>1  # in its own home, which is read at an import
        context = FRESH if looks_there else FORKSERVER
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            said = Path(folder, 'said')
            said.touch()
            flags,check = map(self.config.getoption, ('--nb-flags', '--check-outputs'))
            process = context.Process(target=run_notebook, args=(self.path, limit, flags, folder, check))
            process.start()
            began = time.monotonic()
            try: process.join(limit+5)
            finally: # Ctrl-C, or what the notebook itself started
                with contextlib.suppress(ProcessLookupError, PermissionError): os.killpg(process.pid, signal.SIGKILL)
            process.join()
            out = said.read_text(errors='replace')
        if process.exitcode==0: return
        if time.monotonic()-began>=limit: out += f"\nstopped after {limit:g} s, the limit for one notebook (--nb-limit)"
        elif process.exitcode<0: out += f"\nthe process was ended by signal {-process.exitcode}"
        raise NotebookFailed(out)

    def repr_failure(self, excinfo, style=None):
        if excinfo.errisinstance(NotebookFailed): return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self): return self.path, None, f"notebook {self.path.relative_to(ROOT)}"
