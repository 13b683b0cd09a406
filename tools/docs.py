"""Build the website in _docs/: prepare its pages from the notebooks, render them, look for broken links.

Quarto renders where it is installed, else smalldocs does (pure Python, from 3.11 on). Pages have the same addresses either way.
With --prepare, stop at the pages in _proc/; with --check, only look for broken links in what was built."""
import argparse,base64,html,importlib.util,os,re,shutil,subprocess,sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
PAGES,SITE = ROOT/'_proc',ROOT/'_docs'
HOME,REPO = 'https://ivgr.github.io/ivgr/','https://github.com/ivgr/ivgr/blob/main/'

def prepare(workers):
    "Write the pages that a renderer turns into HTML"
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    os.chdir(ROOT)
    refresh_quarto_yml()
    proc_nbs(force=True, n_workers=workers)

def without_number(name):
    "As nbdev names a page: that of 05_judge is judge"
    return re.sub(r'^\d+[a-zA-Z0-9]*_', '', name)

UNREAD = 'website.image-alt|grid|tbl-colwidths|fig-format|fig-dpi|respect-user-color-scheme|html-math-method'  # settings for Quarto; the last is written here

def render():
    "Fill _docs/; the name of the renderer"
    shutil.rmtree(SITE, ignore_errors=True)
    if shutil.which('quarto'):
        subprocess.run(['quarto', 'render', '--no-cache'], cwd=PAGES, check=True)
        shutil.move(PAGES/'_docs', SITE)
        return 'Quarto'
    if importlib.util.find_spec('smalldocs') is None:
        print('The pages are in _proc/, not rendered: that takes Quarto, or Python 3.11 and `pip install smalldocs`.')
        sys.exit(sys.version_info>=(3, 11))  # no failure where it can't be installed
    r = subprocess.run([sys.executable, '-m', 'smalldocs.cli', 'render', '.'], cwd=PAGES, capture_output=True, text=True)
    said = [l for l in r.stderr.splitlines() if not re.search(f'output-file is not read|{UNREAD}|broken link', l)]
    if r.returncode: sys.exit('\n'.join(said))
    print('\n'.join(said))
    shutil.move(PAGES/'_docs', SITE)
    drop_numbers(SITE)
    write_formulas(SITE)
    halve_figures(SITE)
    return 'smalldocs'

def drop_numbers(site):
    "Give pages the names that Quarto gives them, which links to exported names use"
    new = {p.name:without_number(p.name) for p in site.glob('*.html') if without_number(p.name)!=p.name}
    if not new: return
    old = re.compile(r'(?<![\w-])(' + '|'.join(map(re.escape, new)) + ')')
    for p in [p for s in ('html', 'json', 'xml', 'js') for p in site.rglob(f'*.{s}') if 'site_libs' not in p.parts]:
        p.write_text(old.sub(lambda m: new[m[1]], p.read_text()))
    for a,b in new.items(): (site/a).rename(site/b)

FORMULA = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', flags=re.S)

def write_formulas(site):
    "TeX becomes MathML, which needs no script from elsewhere; pandoc writes it, as it does for Quarto"
    import pypandoc
    pages = {p:p.read_text() for p in site.rglob('*.html')}
    tex = sorted({m.groups() for t in pages.values() for m in FORMULA.finditer(t)})
    text = '\n\n'.join(f'${html.unescape(t).strip()}$' if kind=='inline' else f'$${html.unescape(t).strip()}$$' for kind,t in tex)
    out = pypandoc.convert_text(text, 'html', format='markdown', extra_args=['--mathml'])
    made = re.findall(r'<math.*?</math>', out, flags=re.S)
    if len(made)!=len(tex): sys.exit(f'{len(tex)} formulas, but pandoc made {len(made)}')
    mathml = dict(zip(tex, made))
    for p,t in pages.items():
        t = FORMULA.sub(lambda m: f'<span class="math {m[1]}">{mathml[m.groups()]}</span>', t)
        p.write_text(re.sub(r'<(?:link|script)[^>]*/katex@[^>]*>(?:</script>)?', '', t))

FIGURE = re.compile(r'<img(?= [^>]*src="data:image/png;base64,([^"]{400}))')

def width_on_page(png):
    "Half of a figure's pixels where it has 192 an inch, as tools/outputs.py stores them; None for another picture"
    at = png.find(b'pHYs')+4
    per_inch = round(int.from_bytes(png[at:at+4], 'big')*.0254)
    return int.from_bytes(png[16:20], 'big')//2 if at>=4 and per_inch==192 else None

def halve_figures(site):
    "Quarto shows sharp figures at half their pixels; smalldocs does not"
    def sized(match):
        width = width_on_page(base64.b64decode(match[1]))
        return match[0] if width is None else f'<img width="{width}"'
    for p in site.rglob('*.html'): p.write_text(FIGURE.sub(sized, p.read_text()))

IMPORTED = re.compile(r"""@import\s*(?:url\(["']?(?:https?:)?//[^)]*\)|["'](?:https?:)?//[^"']*["'])[^;]*;""")
PLAIN = re.compile(r'<pre(?: class="([^"]*)")?>(<code(?: class="sourceCode ")?>)(.*?)(?=</code>)', flags=re.S)

def keep_flags(match):
    "A flag in code that stands alone is not parted from its dashes"
    return '<code>' + re.sub(r'(?<![\w-])(--[a-z][\w-]*)', r'<span class="flag">\1</span>', match[1]) + '</code>'

def mark_prose(match):
    "What is no code in some language may be broken into lines, but for columns and diagrams"
    if re.search(r'^ *\||\S {3,}\S|[─│▶]', match[3], flags=re.M): return match[0]
    return f'<pre class="{match[1] or ""} prose">{match[2]}{match[3]}'

def finish(site):
    "What both renderers leave: scripts and fonts from elsewhere, a button without a name, links to the published site"
    for p in site.rglob('*.css'):
        t = p.read_text(encoding='utf-8')
        if IMPORTED.search(t): p.write_text(IMPORTED.sub('', t), encoding='utf-8')
    for p in site.rglob('*.html'):
        t = p.read_text()
        t = re.sub(r'<script[^>]*cdnjs[^>]*(?:require|jquery)[^>]*></script>\s*', '', t)
        t = re.sub(r"<script[^>]*>define\('jquery'.*?</script>\s*", '', t, flags=re.S)
        t = re.sub(r'(<button[^>]*quarto-search-button[^>]*aria-label=)""', r'\1"Search"', t)
        t = re.sub('<code>([^<]*)</code>', keep_flags, PLAIN.sub(mark_prose, t))
        t = re.sub(r'(<mo>(?:&#8289;|\u2061)</mo>)(?!<mo[^>]*>\()', r'\1<mspace width="0.17em"></mspace>', t)  # log x, not logx
        if p.name!='404.html':
            up = '../'*(len(p.relative_to(site).parts)-1)
            t = re.sub(rf'(<a [^>]*href="){HOME}([^"]*")', rf'\g<1>{up}\2', t)
        p.write_text(t)

class Page(HTMLParser):
    "Links and anchors of a page, and what it loads from elsewhere"
    def __init__(self, text):
        super().__init__()
        self.links,self.ids,self.foreign = [],set(),[]
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.add(a['id'])
        if tag=='a' and a.get('name'): self.ids.add(a['name'])
        if tag=='a' and a.get('href'): self.links.append(a['href'])
        loaded = a.get('src') if tag in ('img', 'script', 'iframe') else a.get('href') if tag=='link' and a.get('rel')=='stylesheet' else None
        if not loaded: return
        self.links.append(loaded)
        if re.match('(https?:)?//', loaded) and tag!='img': self.foreign.append(loaded)

def broken(site, root=ROOT):
    "Lines about links that lead nowhere: within the site, and to files of the repository"
    pages = {p.resolve():Page(p.read_text()) for p in site.rglob('*.html')}
    for path,page in pages.items():
        name = path.relative_to(site.resolve())
        yield from (f'{name}: loads {f} from elsewhere' for f in page.foreign)
        for link in page.links:
            to,_,anchor = unquote(html.unescape(link)).partition('#')
            to = to.partition('?')[0]
            if to.startswith(REPO): file,anchor = root/to[len(REPO):],''
            elif to.startswith(HOME) or to+'/'==HOME: file = site/(to[len(HOME):] or 'index.html')
            elif re.match('([a-z]+:|//)', to): continue
            elif to.startswith('/'): file = site/to.removeprefix('/ivgr').lstrip('/')
            else: file = path.parent/to if to else path
            file = file.resolve()
            if file.is_dir() and site.resolve() in (file, *file.parents): file = file/'index.html'
            if not file.exists(): yield f'{name}: {link}: no such file'
            elif anchor and file in pages and anchor not in pages[file].ids: yield f'{name}: {link}: no such heading'
    for path in site.rglob('*.css'):
        for line in IMPORTED.findall(path.read_text(encoding='utf-8')): yield f'{path.relative_to(site)}: loads {line[:60]} from elsewhere'

def weight(site, name='index.html'):
    "Bytes of a page and what it loads from the site, compressed"
    import zlib
    text = (site/name).read_text()
    page = Page(text)
    files = {(site/name).parent/l.partition('?')[0] for l in page.links if not l.endswith('.html')}
    if '<math' in text: files |= set(site.glob('fonts/*.woff2'))
    sizes = [len(zlib.compress(f.read_bytes())) for f in {site/name, *files} if f.is_file()]
    return sum(sizes)

def check(site):
    found = list(broken(site))
    kb = weight(site)/1000
    if kb>400: found.append(f'index.html: {kb:.0f} kB compressed with all that it loads, more than 400')
    if found: sys.exit('\n'.join(sorted(set(found))[:40]) + f'\n{len(found)} faults in {os.path.relpath(site)}/')
    pages = len(list(site.rglob('*.html')))
    print(f'{pages} pages in {os.path.relpath(site)}/, links lead somewhere; the first page weighs {kb:.0f} kB')

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--prepare', action='store_true', help='only write the pages, into _proc/')
    ap.add_argument('--check', action='store_true', help='only look for broken links in _docs/')
    ap.add_argument('--workers', type=int, default=2, help='notebooks at a time')
    args = ap.parse_args()
    if not args.check: prepare(args.workers)
    if args.prepare: return
    if not args.check:
        print(f'Rendered by {render()}')
        finish(SITE)
    check(SITE)

if __name__=='__main__': main()
