"The workflows: actions pinned to commits, no more rights than a job needs, the versions that are promised"
import re
from pathlib import Path
import pytest,yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT/'.github/workflows').glob('*.yml'))
by_name = pytest.mark.parametrize('path', WORKFLOWS, ids=lambda p: p.stem)
WRITES = {('docs', 'deploy'):{'pages':'write', 'id-token':'write'}, ('release', 'publish'):{'id-token':'write'}}

def load(path): return yaml.load(path.read_text(), yaml.BaseLoader)  # noqa: S506 -- only texts, since `on` is no truth value here

def test_there_are_three(): assert [p.stem for p in WORKFLOWS]==['docs', 'release', 'test']

def unpinned(text): return [l for l in re.findall(r'uses: *(.*)', text) if not re.fullmatch(r'[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+', l)]

@by_name
def test_actions_are_pinned_to_a_commit_with_its_version(path):
    assert 'uses:' in path.read_text() and not unpinned(path.read_text())

def test_a_tag_is_no_pin():
    assert len(unpinned('uses: actions/checkout@v4\nuses: a/b@8e8c483db84b4bee98b60c0593521ed34d9990e8\n'))==2

def test_one_version_of_each_action():
    used = {m for p in WORKFLOWS for m in re.findall(r'uses: *(\S+@\S+)', p.read_text())}
    assert len(used)==len({u.split('@')[0] for u in used})

@by_name
def test_jobs_read_and_few_write(path):
    flow = load(path)
    assert flow['permissions']=={'contents':'read'}
    for name,job in flow['jobs'].items():
        assert job.get('permissions', {})==WRITES.get((path.stem, name), {}), name
        assert int(job['timeout-minutes'])<=60, name
        for step in job['steps']:
            assert not step.get('uses', '').startswith('actions/checkout') or step['with']['persist-credentials']=='false'
            assert '${{ github.' not in step.get('run', ''), "what others name is passed by env, never pasted into a script"
    assert 'secrets.' not in path.read_text() and 'pull_request_target' not in flow['on']

def test_the_promised_versions_are_tested():
    settings = (ROOT/'settings.ini').read_text()
    tested = load(ROOT/'.github/workflows/test.yml')['jobs']['test']['strategy']['matrix']['python']
    assert tested==['3.10', '3.11', '3.12', '3.13'] and f'min_python = {tested[0]}' in settings

def test_a_release_is_tested_and_named_by_its_tag():
    flow = load(ROOT/'.github/workflows/release.yml')
    assert list(flow['on'])==['push'] and list(flow['on']['push'])==['tags'] and flow['jobs']['publish']['needs']=='build'
    runs = [s.get('run', '') for s in flow['jobs']['build']['steps']]
    assert any('settings.ini' in r for r in runs) and any('.ci/run' in r for r in runs)
    assert not any('run' in s for s in flow['jobs']['publish']['steps'])  # what may publish runs no code of ours
