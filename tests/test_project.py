"The project's own files agree with each other: pins with requirements, website and index with the notebooks"
import ast,json,re,shutil,subprocess,sys
from configparser import ConfigParser
from collections import Counter
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
import conftest,ivgr,pytest,yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {p.relative_to(ROOT/'nbs').as_posix() for p in (ROOT/'nbs').rglob('[!_.]*.ipynb')}

def settings():
    cfg = ConfigParser(delimiters='=', interpolation=None)
    cfg.read(ROOT/'settings.ini')
    return cfg['DEFAULT']

def norm(name): return re.sub(r'[-_.]+', '-', name).lower()

def pins():
    reqs = [Requirement(l) for l in (ROOT/'constraints.txt').read_text().splitlines() if l and l[0]!='#']
    used = [(norm(r.name), str(r.specifier)[2:]) for r in reqs if r.marker is None or r.marker.evaluate()]
    assert len(used)==len(dict(used)), "a package is pinned twice"
    return dict(used)

def needed(wanted, anywhere):
    "Names of all that some requirements bring in; `anywhere`: less what only some platforms need"
    seen,todo = set(),[(Requirement(r),'') for r in wanted]
    while todo:
        req,extra = todo.pop()
        name = norm(req.name)
        mark = req.marker
        if mark is not None and (anywhere and 'platform' in str(mark) or not mark.evaluate({'extra':extra})): continue
        for e in ['', *req.extras]:
            if (name,e) in seen: continue
            seen.add((name,e))
            todo += [(Requirement(r), e) for r in metadata.requires(name) or []]
    return {name for name,_ in seen}

def test_all_that_is_installed_is_pinned():
    ours = [r for k,v in settings().items() if k.endswith('requirements') for r in v.split()]
    assert needed(ours, True) <= pins().keys()

def test_pins_are_within_the_ranges_of_settings_ini():
    have = pins()
    for k,v in settings().items():
        if k.endswith('requirements'):
            for r in map(Requirement, v.split()): assert r.specifier.contains(have[norm(r.name)]), f"{k}: {r}"

def _notebooks_in(x):
    if isinstance(x, str): return [x] if x.endswith('.ipynb') else []
    return [n for y in (x.values() if isinstance(x, dict) else x) for n in _notebooks_in(y)]

def test_sidebar_lists_every_notebook_once():
    listed = _notebooks_in(yaml.safe_load((ROOT/'nbs/sidebar.yml').read_text()))
    assert sorted(listed)==sorted(NOTEBOOKS)

INDEX = ''.join(''.join(c['source']) for c in json.loads((ROOT/'nbs/index.ipynb').read_text())['cells'])

def test_index_links_the_book_and_every_tutorial():
    linked = set(re.findall(r'\]\(([\w/]+\.ipynb)\)', INDEX))
    wanted = {n for n in NOTEBOOKS if n.startswith('tutorials/') or re.match(r'\d\d_', n)}
    assert not wanted-linked
    assert linked<=NOTEBOOKS

def test_index_shows_every_folder_of_notebooks():
    tree = re.search(r'```\nnbs/.*?```', INDEX, re.S)[0]
    assert set(re.findall(r'── (\w+)/', tree))=={n.split('/')[0] for n in NOTEBOOKS if '/' in n}|{'results'}
    for path in re.findall(r'^([a-z][\w.]+)', tree, re.M): assert (ROOT/path).exists(), path

def test_readme_is_short():
    assert (ROOT/'README.md').stat().st_size<=12*1024

@pytest.mark.parametrize('path', ['nbs/index.ipynb', 'README.md', 'CONTRIBUTING.md', 'Makefile', '.ci/run'])
def test_every_make_target_that_is_mentioned_exists(path):
    targets = set(re.findall(r'^([a-z-]+):', (ROOT/'Makefile').read_text(), flags=re.M))
    text = (ROOT/path).read_text()
    for m in re.findall(r'(?:`|^|^ *"|run: )make ([a-z][a-z -]*)', text, flags=re.M):
        assert set(m.split()) <= targets, f"make {m}"

def test_versions_agree():
    version = settings()['version']
    assert yaml.safe_load((ROOT/'CITATION.cff').read_text())['version']==version
    assert f'## {version}' in (ROOT/'CHANGELOG.md').read_text()
    assert ivgr.__version__==version

def test_ruff_finds_nothing():
    r = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise'], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode==0, r.stdout+r.stderr

def test_types_hold_where_they_are_checked(tmp_path):
    r = subprocess.run([sys.executable, '-m', 'mypy', '--cache-dir', str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert r.returncode==0, r.stdout+r.stderr

def test_nothing_is_unpickled_and_no_foreign_code_is_run():
    "Weights are safetensors, archives and settings JSON or YAML; what others publish is read, never executed"
    for f in (ROOT/'ivgr').rglob('*.py'):
        for node in ast.walk(ast.parse(f.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split('.')[0] for n in names if n}&{'pickle', 'cloudpickle', 'dill', 'joblib', 'shelve', 'marshal'}, f"{f.name}: {names}"
            if not isinstance(node, ast.Call): continue
            called,given = ast.unparse(node.func),{k.arg:ast.unparse(k.value) for k in node.keywords}
            assert called not in ('eval', 'exec', 'os.system', 'yaml.load', 'np.fromfile'), f"{f.name}: {called}"
            assert given.get('trust_remote_code', 'False')=='False' and given.get('allow_pickle', 'False')=='False', f"{f.name}: {ast.unparse(node)}"
            if called=='torch.load': assert given.get('weights_only')=='True', f"{f.name}: {ast.unparse(node)}"
            if called.endswith('.extractall'): raise AssertionError(f"{f.name}: {called} takes members unchecked")

def test_no_path_of_a_machine_is_written_down():
    "Nothing tracked names a home directory or a key"
    files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\n')
    for f in filter(None, files):
        text = (ROOT/f).read_bytes()
        found = re.search(rb'/(?:home|Users|root)/\w|[A-Z]:\\\\?Users|\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,})\b|-----BEGIN [A-Z ]*PRIVATE KEY', text)
        assert not found or f.endswith(('.png', '.safetensors')), f"{f}: {found[0]}"

BASE = """
import sys
import ivgr, ivgr.tools.cli
heavy = {'torch', 'transformers', 'bitsandbytes', 'openai', 'math_verify', 'trl', 'nbdev', 'matplotlib', 'datasets', 'shtab', 'rich'}
print(sorted(heavy&{m.split('.')[0] for m in sys.modules}))
"""

def test_the_command_starts_without_what_it_does_not_need():
    "Not even torch is imported for `ivgr --help`"
    r = subprocess.run([sys.executable, '-c', BASE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert r.stdout.strip()=='[]'

WITHOUT = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder
absent = set(sys.argv[1].split())
class Less(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split('.')[0] in absent else super().find_spec(name, path, target)
sys.meta_path[:] = [Less if finder is PathFinder else finder for finder in sys.meta_path]
import ivgr
for m in pkgutil.walk_packages(ivgr.__path__, 'ivgr.'): importlib.import_module(m.name)
print('ivgr.demo' in sys.modules, absent & sys.modules.keys())
"""

def test_every_module_imports_without_the_extras():
    "`make demo` installs what the package needs, and nothing of what its extras bring"
    have = needed(settings()['requirements'].split(), False) | {'ivgr', 'pip', 'setuptools'}
    absent = {m for m,names in metadata.packages_distributions().items() if not have & set(map(norm, names))}
    assert {'bitsandbytes', 'openai', 'math_verify', 'trl', 'nbdev', 'pytest', 'fastapi'} <= absent and not absent & {'torch', 'numpy', 'peft'}
    r = subprocess.run([sys.executable, '-c', WITHOUT, ' '.join(absent)], cwd=ROOT, capture_output=True, text=True)
    assert (r.returncode, r.stdout.strip())==(0, 'True set()'), r.stdout+r.stderr[-2000:]

def _pytest(top, *args):
    r = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *args], cwd=top,
                       stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return r.returncode, r.stdout+r.stderr

def test_notebooks_are_collected_skipped_failed_and_stopped(tmp_path):
    "The collector in conftest.py: as `nbdev_test`, with a limit, and it says what failed"
    def nb(name, *cells):
        cells = [dict(cell_type='code', execution_count=None, id=str(i)*8, metadata={}, outputs=[], source=s)
                 for i,s in enumerate(cells)]
        (tmp_path/name).write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    shutil.copy(ROOT/'settings.ini', tmp_path)
    collector = re.sub(r'set_forkserver_preload\(\[.*?\]\)', 'set_forkserver_preload([])', (ROOT/'conftest.py').read_text(), flags=re.S)
    (tmp_path/'conftest.py').write_text(collector)  # these notebooks need none of the libraries that take seconds
    nb('good.ipynb', 'x = 1', '#| slow\nx = 2', '#| eval: false\n1/0', 'assert x==1')
    nb('bad.ipynb', 'x = 1', 'assert x==2, "planted"')
    nb('_draft.ipynb', '1/0')
    (tmp_path/'test_start.py').write_text('import subprocess,sys\ndef test_start(): subprocess.run([sys.executable, "-c", ""], check=True)\n')
    rc,out = _pytest(tmp_path, '.')
    assert rc==1 and '1 failed, 2 passed' in out and 'planted' in out and '_draft' not in out, out
    assert 'processes that tests started: 1 (' in out, out
    (tmp_path/'test_start.py').unlink()
    rc,out = _pytest(tmp_path, '--nb-flags', 'slow', 'good.ipynb')
    assert rc==1 and '1 failed' in out and 'assert x==1' in out, out  # now the slow cell ran
    nb('bad.ipynb', 'import time; time.sleep(60)')
    rc,out = _pytest(tmp_path, '--nb-limit', '4', 'bad.ipynb')
    assert rc==1 and '1 failed' in out and 'stopped after 4 s' in out and 'bad.ipynb' in out, out

def test_too_many_starts_of_python_fail(monkeypatch):
    session = SimpleNamespace(exitstatus=0)
    for n,status in ((conftest.MOST_STARTS, 0), (conftest.MOST_STARTS+1, 1)):
        monkeypatch.setattr(conftest, 'starts_of', Counter(a=n))
        conftest.pytest_sessionfinish(session)
        assert session.exitstatus==status

def test_who_stops_reading_is_not_told_about_it():
    done = subprocess.Popen([sys.executable, "-m", "ivgr", "--print-completion", "bash"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done.stdout.close()
    assert (done.stderr.read(), done.wait()) == (b"", 141)
