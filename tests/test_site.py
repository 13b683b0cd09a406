"The pages of the website: nothing that is written gets lost on the way, and what nbdev and Quarto stumble over is not there"
import importlib.util,json,os,re
from pathlib import Path
import pytest,yaml
from filelock import FileLock
from forked import Forked

ROOT = Path(__file__).parent.parent
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(NBS.rglob('[!_.]*.ipynb'))
by_name = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(NBS).with_suffix('').as_posix())

def load_tool():
    spec = importlib.util.spec_from_file_location('docs_tool', ROOT/'tools/docs.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool

docs = load_tool()

def cells(path): return [(c, ''.join(c['source'])) for c in json.loads(path.read_text())['cells']]

# What is written
def address(path):
    "Of a notebook or text on the website"
    return path.relative_to(NBS).with_name(docs.without_number(path.stem)).as_posix()

def rendered(nbs):
    "Files that become pages"
    patterns = yaml.safe_load((ROOT/'_quarto.yml').read_text())['project']['render']
    return sorted({p for pattern in patterns for p in nbs.rglob(pattern.replace('**/', '')) if p.name[0] not in '._'})

def test_every_page_has_an_address_of_its_own():
    "nbdev drops the number of a notebook; two pages of one name, and Quarto stops after rendering half of them"
    names = [address(p) for p in rendered(NBS)]
    assert len(names)==len(NOTEBOOKS)+1  # and the one for wrong addresses
    assert len(names)==len(set(names)), sorted(n for n in names if names.count(n)>1)

def test_a_text_beside_the_notebooks_is_no_page():
    "An orphan would be found by the search, without a way on"
    texts = {p for s in ('md', 'qmd') for p in NBS.rglob(f'*.{s}')}
    assert texts&set(rendered(NBS))=={NBS/'404.qmd'}

def test_every_page_is_in_the_sidebar():
    side = yaml.safe_load((NBS/'sidebar.yml').read_text())['website']['sidebar']['contents']
    hrefs = [x if isinstance(x, str) else x['href'] for section in side for x in section['contents']]
    files = [h for h in hrefs if h.endswith('.ipynb')]
    assert sorted(files)==[p.relative_to(NBS).as_posix() for p in sorted(NOTEBOOKS, key=lambda p: p.relative_to(NBS).as_posix())]

@by_name
def test_first_cell_is_title_and_one_sentence(path):
    "nbdev makes them the page's head, and drops all else that stands in this cell"
    cell,text = cells(path)[0]
    assert cell['cell_type']=='markdown'
    assert re.fullmatch(r'# [^\n]+\n\n> [^\n]+[.?!]\n?', text), text

# What becomes of it
def prepare(folder):
    from execnb.nbio import read_nb,write_nb
    from nbdev.processors import FilterDefaults
    os.chdir(ROOT)
    for p in NOTEBOOKS:
        nb = read_nb(p)
        FilterDefaults()(nb)
        to = Path(folder)/p.relative_to(NBS)
        to.parent.mkdir(parents=True, exist_ok=True)
        write_nb(nb, to)

@pytest.fixture(scope='session')
def pages(tmp_path_factory):
    "Where the prepared notebooks are: made once, by whichever process comes first"
    shared = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: shared = shared.parent
    folder = shared/'pages'
    with FileLock(shared/'pages.lock'):
        if not folder.exists():
            folder.mkdir()
            Forked(shared/'pages.said', prepare, folder).finish()
    return folder

def page(pages, path): return cells(pages/path.relative_to(NBS))

def words(text): return re.sub(r'\]\([^)]*\)|[`\[\]\s]', '', text)

def written(path):
    "Markdown cells after the first"
    return [s for c,s in cells(path)[1:] if c['cell_type']=='markdown']

def shown(path, pages): return '\n'.join(s for c,s in page(pages, path) if c['cell_type']=='markdown')

def test_diagrams_fit_the_page():
    "What stands in a text as it is, without a language, is not broken into lines"
    for p in NOTEBOOKS:
        for text in written(p):
            lines = [l[4:] for l in re.findall(r'^    .*$', text, flags=re.M) if re.search('[─│▶]', l)]
            assert all(len(l)<=82 for l in lines), f'{p.name}: {max(lines, key=len)}'

def code_in(text): return '\n'.join(re.findall(r'^```.*?^```', text, flags=re.M|re.S))

def test_nothing_that_is_written_is_lost(pages):
    missing = []
    for p in NOTEBOOKS:
        have = words(shown(p, pages))
        missing += [f'{p.name}: {s[:80]}' for s in written(p) if words(s) not in have]
    assert not missing

def test_blocks_of_exported_names_can_be_read(pages):
    "No links in the middle of code, no signature that says nothing, no name of a module that is not there"
    for p in NOTEBOOKS:
        code = code_in(shown(p, pages))
        for bad in ('](http', '__main__', '(\n    *args, **kwargs\n)', '`', 'LNone'):
            assert bad not in code.replace('```', ''), f'{p.name}: {bad} in\n{code}'

def test_settings_are_a_table_of_our_own(pages):
    seen = 0
    for p in NOTEBOOKS:
        declared = re.findall(r'^    (\w+): [^=\n]+ = _?(?:lora_)?setting\(', '\n'.join(s for c,s in cells(p) if c['cell_type']=='code' and '#| export' in s), flags=re.M)
        text = shown(p, pages)
        seen += len(declared)
        for name in declared: assert f'| <code>{name}</code> |' in text, f'{p.name}: {name} is not in a table'
        assert '<code>adam_beta1</code>' not in text and 'adam_beta1' not in code_in(text)
    assert seen>40

def sight(cell, source):
    "Whether a cell shows a table, a picture or a diagram"
    from ivgr.tools.pages import has_sight
    kinds = {k:''.join(v) for o in cell.get('outputs', ()) for k,v in o.get('data', {}).items()}
    if any(k.startswith('image/') or k=='text/html' for k in kinds): return True
    return has_sight(source if cell['cell_type']=='markdown' else kinds.get('text/markdown', ''))

def test_every_page_begins_with_something_to_look_at(pages):
    "Within about a screen of text, and without code before it"
    blind = []
    for p in NOTEBOOKS:
        seen = 0
        for c,s in page(pages, p)[2:]:
            if seen>1800 or sight(c, s): break
            seen += len(s) if c['cell_type']=='markdown' else 0
        if not sight(c, s) and p.name!='index.ipynb': blind.append(p.relative_to(NBS).as_posix())
    assert not blind

def test_the_page_of_the_commands_lists_them_first():
    from ivgr.tools.cli import COMMANDS
    table = re.findall(r'^\| \[`ivgr ([\w-]+)`\]\(#[\w-]+\) \| (.*) \|$', written(NBS/'tools/cli.ipynb')[0], flags=re.M)
    assert dict(table)=={name:command.about for name,command in COMMANDS.items()}

# Links of the rendered site
def test_a_broken_link_of_the_site_is_seen(tmp_path):
    (tmp_path/'data').mkdir()
    (tmp_path/'index.html').write_text(f'<a href="data/a.html#one">x</a><a href="{docs.HOME}data/a.html">x</a><a href="{docs.REPO}README.md">x</a><a href="https://else.org/x">x</a>')
    (tmp_path/'data/a.html').write_text('<h1 id="one">x</h1><a href="../index.html">x</a><a href="../">x</a>')
    assert not list(docs.broken(tmp_path))
    (tmp_path/'data/a.html').write_text('<a href="../gone.html">x</a><img src="gone.png"><script src="https://else.org/x.js"></script>')
    assert sorted(l.split(': ', 1)[1] for l in docs.broken(tmp_path))==['../gone.html: no such file', 'data/a.html#one: no such heading', 'gone.png: no such file', 'loads https://else.org/x.js from elsewhere']

def test_pages_lose_their_numbers_and_scripts_from_elsewhere(tmp_path):
    (tmp_path/'05_judge.html').write_text(f'<a href="05_judge.html#x"><a href="{docs.HOME}judge.html#x"><script src="https://cdnjs.cloudflare.com/a/require.js"></script>')
    docs.drop_numbers(tmp_path)
    docs.finish(tmp_path)
    assert (tmp_path/'judge.html').read_text()=='<a href="judge.html#x"><a href="judge.html#x">'

def test_fonts_from_elsewhere_are_seen_and_dropped(tmp_path):
    rule = 'body{color:red}'
    (tmp_path/'theme.css').write_text(f'/* x */@import url(https://fonts.example/css2?family=A:wght@300;400);@import "//b.example/x.css";{rule}')
    assert sum('from elsewhere' in line for line in docs.broken(tmp_path))==2
    docs.finish(tmp_path)
    assert (tmp_path/'theme.css').read_text()==f'/* x */{rule}' and not list(docs.broken(tmp_path))

def test_printed_sentences_are_broken_and_columns_are_not(tmp_path):
    def html(kind, text): return f'<div class="cell-output cell-output-stdout">\n<pre{kind}><code>{text}</code></pre></div>'
    prose,columns = 'textual: The red tile\n    format 1.00','a    b\n1    2'
    (tmp_path/'a.html').write_text(html('', prose)+html('', columns)+html('', '| a | b |'))
    docs.finish(tmp_path)
    assert (tmp_path/'a.html').read_text()==html(' class=" prose"', prose)+html('', columns)+html('', '| a | b |')

def test_a_flag_is_not_parted_from_its_dashes(tmp_path):
    (tmp_path/'a.html').write_text('<code>ivgr --help-all</code><code>a--b</code><code class="sourceCode sh">ivgr --help</code>')
    docs.finish(tmp_path)
    assert (tmp_path/'a.html').read_text()=='<code>ivgr <span class="flag">--help-all</span></code><code>a--b</code><code class="sourceCode sh">ivgr --help</code>'

def test_formulas_become_mathml(tmp_path):
    (tmp_path/'a.html').write_text(r'<span class="math inline">\(a &lt; b\)</span> <span class="math display">\[\sum_i x_i\]</span><link rel="stylesheet" href="https://x/katex@1/k.css">')
    docs.write_formulas(tmp_path)
    text = (tmp_path/'a.html').read_text()
    assert text.count('<math')==2 and '<mo>∑</mo>' in text and r'\(' not in text and 'katex@' not in text

def test_sharp_figures_are_shown_at_half_their_pixels(tmp_path):
    import base64,io
    from matplotlib.figure import Figure
    def html(dpi):
        data = io.BytesIO()
        Figure(figsize=(2, 1)).savefig(data, format='png', dpi=dpi)
        return f'<p><img alt="x" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"></p>'
    (tmp_path/'a.html').write_text(html(192)+html(96))
    docs.halve_figures(tmp_path)
    assert (tmp_path/'a.html').read_text()==html(192).replace('<img', '<img width="192"')+html(96)

# Colours
def luminance(colour):
    "As WCAG defines it, from 0 to 1"
    parts = [int(colour[i:i+2], 16)/255 for i in (1, 3, 5)]
    red,green,blue = [c/12.92 if c<=.04045 else ((c+.055)/1.055)**2.4 for c in parts]
    return .2126*red+.7152*green+.0722*blue

def contrast(a, b):
    high,low = sorted(map(luminance, (a, b)), reverse=True)
    return (high+.05)/(low+.05)

def low_contrasts(css):
    "Colours of writing that are hard to read on their ground"
    schemes = [dict(re.findall(r'--([\w-]+): (#[0-9a-f]{6});', body)) for body in re.findall(r'^(?::root|\.quarto-dark) \{(.*?)^\}', css, flags=re.M|re.S)]
    assert len(schemes)==2 and schemes[0].keys()==schemes[1].keys() and len(schemes[0])>15
    for colours in schemes:
        for name,ink in colours.items():
            if '-on-' not in name: continue
            ground = colours[name.split('-on-')[1]+'-ground']
            if contrast(ink, ground)<4.5: yield f'{name}: {ink} on {ground} is {contrast(ink, ground):.1f}:1'

def test_contrasts():
    css = (NBS/'styles.css').read_text()
    assert round(contrast('#000000', '#ffffff'))==21
    assert not list(low_contrasts(css))
    assert len(list(low_contrasts(css.replace('--link-on-page: #0b57a4', '--link-on-page: #2780e3'))))==1  # the theme's own blue

def test_wide_things_scroll_by_themselves():
    css = (NBS/'styles.css').read_text()
    for what in ('main table', 'span.math.display'): assert re.search(rf'^{re.escape(what)} \{{[^}}]*overflow-x: auto', css, flags=re.M)

def test_the_font_for_formulas_has_its_licence():
    assert 'SIL OPEN FONT LICENSE' in (NBS/'fonts/OFL.txt').read_text() and (NBS/'fonts/STIXTwoMath.woff2').stat().st_size<200_000
    assert 'fonts/*' in yaml.safe_load((ROOT/'_quarto.yml').read_text())['project']['resources']
