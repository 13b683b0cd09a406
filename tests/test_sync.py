"The guard of tools/sync.py lets a good tree pass, and each thing it guards against makes it fail"
import os,shutil,subprocess,sys
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
FILES = ['settings.ini', 'pyproject.toml', '_quarto.yml', 'nbs/00_core.ipynb', 'nbs/index.ipynb', 'nbs/nbdev.yml',
         'nbs/sidebar.yml', 'tools/sync.py', 'tools/readme.py']
ENV = {k:v for k,v in os.environ.items() if k!='IN_TEST' and not k.startswith('GIT_')}
ENV |= {f'GIT_{who}_{what}':f'{who}@localhost' for who in ('AUTHOR','COMMITTER') for what in ('NAME','EMAIL')}

def run(*cmd, cwd, check=True):
    r = subprocess.run(cmd, cwd=cwd, env=ENV, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check: assert r.returncode==0, r.stdout+r.stderr
    return r.returncode, r.stdout+r.stderr

def sync(cwd): return run(sys.executable, 'tools/sync.py', cwd=cwd, check=False)

def commit(cwd):
    run('git', 'add', '-A', cwd=cwd)
    run('git', '-c', 'core.hooksPath=/dev/null', 'commit', '-q', '-m', 'x', cwd=cwd)

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A small project of the same make: one module, the index and the tools, committed and in step"
    top = tmp_path_factory.mktemp('project')
    for f in FILES:
        (top/f).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT/f, top/f)
    (top/'nbs/_quarto.yml').symlink_to('../_quarto.yml')
    (top/'.gitignore').write_text('__pycache__/\n')
    run(sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()', cwd=top)
    run(sys.executable, 'tools/readme.py', cwd=top)
    run('git', 'init', '-q', cwd=top)
    commit(top)
    return top

def test_a_tree_in_step_passes_and_is_left_alone(project):
    rc,out = sync(project)
    assert rc==0, out
    assert run('git', 'status', '--porcelain', cwd=project)[1]==''

def edited_module(top):
    with (top/'ivgr/core.py').open('a') as f: f.write('\nedited = True\n')
    return 'ivgr/core.py'

def orphaned_module(top):
    shutil.copy(top/'ivgr/core.py', top/'ivgr/ghost.py')
    return 'ivgr/ghost.py'

def conflict_marker(top):
    nb = top/'nbs/00_core.ipynb'
    lines = nb.read_text().splitlines(True)
    nb.write_text(''.join(lines[:9] + ['<'*7+' HEAD\n'] + lines[9:]))
    return 'nbs/00_core.ipynb:10'

def marker_in_a_cell(top):  # as Jupyter stores it, in the string of a source line: valid JSON
    nb = top/'nbs/index.ipynb'
    nb.write_text(nb.read_text().replace('"# ivgr\\n"', f'"{"<"*7} HEAD\\n",\n    "# ivgr\\n"', 1))
    return 'nbs/index.ipynb:'

def edited_readme(top):
    with (top/'README.md').open('a') as f: f.write('More.\n')
    return 'README.md'

@pytest.mark.parametrize('mistake', [edited_module, orphaned_module, conflict_marker, marker_in_a_cell, edited_readme])
def test_a_mistake_fails_and_is_named(project, mistake):
    good = run('git', 'rev-parse', 'HEAD', cwd=project)[1].strip()
    try:
        where = mistake(project)
        commit(project)
        rc,out = sync(project)
        assert rc!=0 and where in out, out
    finally: run('git', 'reset', '-q', '--hard', good, cwd=project)

def test_work_that_git_does_not_have_is_not_touched(project):
    p = project/'ivgr/core.py'
    before = p.read_text()
    try:
        p.write_text(before+'# mine\n')
        rc,out = sync(project)
        assert rc!=0 and 'ivgr/core.py' in out, out
        assert p.read_text()==before+'# mine\n'
    finally: p.write_text(before)
