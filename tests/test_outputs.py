"tools/outputs.py stores what a notebook gives, keeps what was skipped, and its check sees each difference"
import base64,io,json,re,shutil,subprocess,sys
from pathlib import Path
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
FIGURE = "import matplotlib.pyplot as plt\n\nfig,ax = plt.subplots(figsize=(1,1), dpi=50)\nax.plot([0,1]);"

def cell(i, source, *text):
    out = dict(output_type='execute_result', execution_count=None, metadata={}, data={'text/plain':list(text)})
    outs = [out] if text else []
    return dict(cell_type='code', execution_count=None, id=str(i)*8, metadata={}, outputs=outs, source=source)

@pytest.fixture
def project(tmp_path):
    for d in ('nbs', 'tools'): (tmp_path/d).mkdir()
    for f in ('settings.ini', 'tools/outputs.py'): shutil.copy(ROOT/f, tmp_path/f)
    cells = [cell(0, '1+1'), cell(1, '#| slow\n2+2', 'kept'), cell(2, FIGURE),
             cell(3, 'import sys; print("no", file=sys.stderr)')]
    nb = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path/'nbs/a.ipynb').write_text(json.dumps(nb))
    return tmp_path

def picture(output):
    "Pixels per inch and size of a stored figure"
    im = Image.open(io.BytesIO(base64.b64decode(output['data']['image/png'])))
    return round(im.info['dpi'][0]),im.size

def outputs(top, *args):
    r = subprocess.run([sys.executable, 'tools/outputs.py', *args], cwd=top, stdin=subprocess.DEVNULL,
                       capture_output=True, text=True)
    return r.returncode, r.stdout+r.stderr

def read(top): return json.loads((top/'nbs/a.ipynb').read_text())
def write(top, nb): (top/'nbs/a.ipynb').write_text(json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False)+'\n')

def test_store_then_check(project):
    assert outputs(project)[0]==0
    two,kept,figure,err = [c['outputs'] for c in read(project)['cells']]
    assert two[0]['data']['text/plain']==['2'] and kept[0]['data']['text/plain']==['kept']
    assert err==[]
    dpi,size = picture(figure[0])
    assert dpi==192 and figure[0]['metadata']['image/png']==dict(width=size[0]//2, height=size[1]//2)  # sharp, whatever its cell says
    rc,out = outputs(project, '--check')
    assert rc==0 and 'a.ipynb: same' in out, out

    nb = read(project)
    nb['cells'][0]['outputs'][0]['data']['text/plain'] = ['3']
    write(project, nb)
    bad = dict(cells=[cell(0, 'x = 0'), cell(1, '1/x')], metadata={}, nbformat=4, nbformat_minor=5)
    (project/'nbs/b.ipynb').write_text(json.dumps(bad))
    rc,out = outputs(project, '--check')
    assert rc==1 and '"3"' in out and '"2"' in out, out
    assert 'b.ipynb: failed' in out and 'ZeroDivisionError' in out, out
    assert read(project)==nb  # a check writes nothing

def test_tests_compare_outputs_on_request(project):
    collector = re.sub(r'set_forkserver_preload\(\[.*?\]\)', 'set_forkserver_preload([])', (ROOT/'conftest.py').read_text(), flags=re.S)
    (project/'conftest.py').write_text(collector)  # the notebook needs none of the libraries that take seconds
    assert outputs(project)[0]==0
    nb = read(project)
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--check-outputs', 'nbs']
    def run(): return subprocess.run(command, cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    same = run()
    assert same.returncode==0 and '1 passed' in same.stdout, same.stdout+same.stderr
    nb['cells'][0]['outputs'][0]['data']['text/plain'] = ['3']
    write(project, nb)
    other = run()
    assert other.returncode==1 and '"3"' in other.stdout and '"2"' in other.stdout, other.stdout
    assert read(project)==nb
