"What a reader meets on the website holds: links lead somewhere, equations can be shown, pictures are described, names are explained"
import ast,importlib,inspect,json,posixpath,pkgutil,re,subprocess,textwrap
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
import pypandoc,pytest,yaml
from fastcore.docments import docments
import ivgr

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').rglob('[!_.]*.ipynb'))
SITE,REPO = 'https://ivgr.github.io/ivgr/','https://github.com/ivgr/ivgr/blob/main/'
by_name = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(ROOT/'nbs').with_suffix('').as_posix())

def cells(path): return [(c, ''.join(c['source'])) for c in json.loads(path.read_text())['cells']]

def outputs(cell, kind):
    "What a cell shows of a kind of data"
    return [''.join(v) for o in cell.get('outputs', ()) for k,v in o.get('data', {}).items() if k.startswith(kind)]

def options(source):
    "What a cell asks of the website: its lines `#| name: value`"
    return yaml.safe_load('\n'.join(re.findall(r'^#\| ?([\w-]+: .*)$', source, flags=re.M))) or {}

def shown_markdown(path):
    "All text of a notebook: written, or the output of a cell"
    return '\n\n'.join(t for c,s in cells(path) for t in ([s] if c['cell_type']=='markdown' else outputs(c, 'text/markdown')))

def pandoc(text, reader):
    "HTML with equations as MathML; what can't be converted is an error"
    r = subprocess.run([pypandoc.get_pandoc_path(), '-f', reader, '-t', 'html', '--mathml', '--fail-if-warnings'], input=text,
                       capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    return r.stdout

class Page(HTMLParser):
    "Links, anchors and pictures of a page"
    def __init__(self, html):
        super().__init__()
        self.links,self.ids,self.nameless = [],set(),[]
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.links += [a[k] for k in ('href', 'src') if k in a]
        self.ids |= {a['id']} if 'id' in a else set()
        if tag=='img' and not a.get('alt'): self.nameless.append(a.get('src'))

@cache
def page(path):
    return Page(pandoc(*((shown_markdown(path), 'markdown') if path.suffix=='.ipynb' else (path.read_text(), 'gfm'))))

def broken(path, top):
    "Links of a page that lead nowhere; those to the website and to files on GitHub are looked up here, other addresses not at all"
    for link in page(path).links:
        to,_,anchor = unquote(link).partition('#')
        if to.startswith(SITE): file = top/'nbs'/(to[len(SITE):].replace('.html', '.ipynb') or 'index.ipynb')
        elif to.startswith(REPO): file = top/to[len(REPO):]
        elif re.match('[a-z]+:', to): continue
        else:
            file = Path(posixpath.normpath(path.parent/to)) if to else path
            if path.suffix=='.ipynb' and top/'nbs' not in file.parents: yield f'{link}: not on the website, link to {REPO}...'
        if not file.exists(): yield f'{link}: no such file'
        elif anchor and file.suffix in ('.ipynb', '.md') and anchor not in page(file).ids: yield f'{link}: no such heading'

@by_name
def test_links_of_a_notebook_lead_somewhere(path): assert not list(broken(path, ROOT))

@pytest.mark.parametrize('name', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'])
def test_links_of_a_text_lead_somewhere(name): assert not list(broken(ROOT/name, ROOT))

def test_a_broken_link_is_seen(tmp_path):
    (tmp_path/'nbs').mkdir()
    (tmp_path/'there.md').write_text('')
    def say(*texts):
        cells = [dict(cell_type='markdown', source=t) for t in texts]
        (tmp_path/'nbs/a.ipynb').write_text(json.dumps(dict(cells=cells)))
        page.cache_clear()
        return [b.split(':')[-1] for b in broken(tmp_path/'nbs/a.ipynb', tmp_path)]
    assert say('# A head', f'[x](#a-head) [y](a.ipynb#a-head) [z]({SITE}a.html#a-head) [f]({REPO}there.md) `[no](link)`')==[]
    assert say('# A head', f'[x](#head) [y](b.ipynb) [z]({SITE}b.html) [f]({REPO}gone.md)')==[' no such heading']+[' no such file']*3
    assert 'not on the website' in list(say('[x](../there.md)') and broken(tmp_path/'nbs/a.ipynb', tmp_path))[0]
    with pytest.raises(AssertionError, match='TeX'): say(r'$\nonsense{x}$')
    page.cache_clear()

@by_name
def test_every_picture_is_described(path):
    "In the text, and where code draws it: `#| fig-alt: ...` in the cell, for each of its pictures"
    assert not page(path).nameless
    for c,s in cells(path):
        n = sum(any(k.startswith('image/') for k in o.get('data', ())) for o in c.get('outputs', ()))
        hidden = re.search(r'^#\| ?(hide|export)\b|^#\| ?include: false', s, flags=re.M)
        if not n or hidden: continue
        said = options(s).get('fig-alt')
        said = said if isinstance(said, list) else [said] if said else []
        assert len(said)==n and all(len(t)>20 for t in said), f'{n} pictures, described as {said}:\n{s}'

def explained(lines):
    "Whether a comment stands on the first line"
    return '#' in lines[0]

def undocumented(name, f):
    "What is not said of a function: what it does, and what its parameters mean"
    kinds = inspect.signature(f).parameters
    own = [k for k,p in kinds.items() if k not in ('self', 'cls') and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    said = docments(f, full=True)
    head = [l for l in inspect.getsource(f).splitlines() if not l.startswith(('@', ' @')) and 'def ' in l][:1]
    if not inspect.getdoc(f): yield f'{name} has no docstring'
    if not explained(head): yield from (f'{name}: {k}' for k in own if not said[k].docment)

def of_class(name, cls):
    "The same of a class: its fields, its constructor, and what it does that its bases do not"
    if cls.__dict__.get('__doc__', '').startswith(f'{cls.__name__}('): yield f'{name} has no docstring'
    lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
    for x in ast.parse('\n'.join(lines)).body[0].body:
        if isinstance(x, ast.AnnAssign):
            text = ' '.join(lines[x.lineno-1:x.end_lineno])
            if not re.search(r'#|setting\(|help=', text): yield f'{name}: {x.target.id}'
    for k,v in vars(cls).items():
        f = getattr(v, '__func__', None) or getattr(v, 'fget', None) or getattr(v, 'func', v)
        if not inspect.isfunction(f) or not f.__module__.startswith('ivgr.') or k[0]=='_' and k!='__init__': continue
        try: short = explained([l for l in inspect.getsource(f).splitlines() if 'def ' in l])
        except (OSError, IndexError): continue  # made by a decorator
        inherited = any(hasattr(b, k) for b in cls.__mro__[1:])
        for x in undocumented(f'{name}.{k}', f):
            if x.endswith('docstring') and (short or k=='__init__' or inspect.getdoc(getattr(cls, k))): continue
            if x.endswith('docstring') or k=='__init__' or not inherited: yield x

@pytest.mark.parametrize('name', [m.name[5:] for m in pkgutil.walk_packages(ivgr.__path__, 'ivgr.') if not m.name.endswith('__')])
def test_every_exported_name_is_explained(name):
    mod = importlib.import_module(f'ivgr.{name}')
    bad = []
    for n in getattr(mod, '__all__', ()):
        o = getattr(mod, n)
        if getattr(o, '__module__', None)!=mod.__name__: continue
        if inspect.isclass(o): bad += of_class(n, o)
        elif inspect.isfunction(o): bad += undocumented(n, o)
    assert not bad

def test_the_website_has_what_its_settings_name():
    "The social card, small enough to be shown with a link; a page for wrong addresses; light and dark; pages that can be seen as a notebook"
    config = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    site,html = config['website'],config['format']['html']
    assert (ROOT/'nbs'/site['image']).stat().st_size<=60_000 and site['image-alt'] and site['open-graph']
    assert (ROOT/site['repo-subdir']).is_dir() and set(html['theme'])=={'light', 'dark'} and html['html-math-method']=='mathml'
    assert (ROOT/'nbs/404.qmd').exists() and (ROOT/'nbs'/html['css']).exists()

@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.parent.name=='tutorials' and 'code' in {c['cell_type'] for c,_ in cells(p)}], ids=lambda p: p.relative_to(ROOT/'nbs').with_suffix('').as_posix())
def test_a_tutorial_opens_in_colab(path):
    "With a badge, and a cell that installs the package where it is missing"
    text = '\n'.join(s for _,s in cells(path))
    assert f'https://colab.research.google.com/github/ivgr/ivgr/blob/main/nbs/tutorials/{path.name}' in text
    assert 'if find_spec("ivgr") is None:' in text
