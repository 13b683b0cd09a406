"""Write README.md (and its figures, index_files/) from nbs/index.ipynb, without Quarto.

With --check, write nothing and fail where they differ."""
import argparse,posixpath,re,shutil,sys
from pathlib import Path
import nbformat
from execnb.nbio import nb2str,read_nb
from nbconvert import MarkdownExporter
from nbdev.processors import FilterDefaults,hide_,rm_export

ROOT = Path(__file__).resolve().parent.parent
FIGS = 'index_files'
_link = re.compile(r'(\]\()(?![a-z]+:|#|/)([^)\s]+)')

class Filter(FilterDefaults):
    "nbdev's own filter, less what only a website needs"
    drop = {'FrontmatterProc', 'add_show_docs', 'exec_show_docs', 'clean_show_doc', 'add_links', 'add_fold',
            'mv_exports'}
    def base_procs(self): return [p for p in super().base_procs() if p.__name__ not in self.drop]
    def xtra_procs(self): return [rm_export, hide_]  # in place of those for pages, in settings.ini

def _from_root(m): return m[1] + posixpath.normpath('nbs/'+m[2])  # links are relative to nbs/ in the notebook

def build(nb_path):
    "The text of README.md and a dict from path to bytes of its figures"
    nb = read_nb(nb_path)
    Filter()(nb)
    nb = nbformat.reads(nb2str(nb), as_version=4)
    nb.cells = [c for c in nb.cells if c.cell_type!='raw']  # what the website's first page says to those who link to it
    nb.metadata.language_info = {'name':'python'}
    for cell in nb.cells:
        if cell.cell_type=='markdown': cell.source = _link.sub(_from_root, cell.source)
        if cell.cell_type!='code': continue
        marks = re.findall(r'^#\| *(echo|output): *false', cell.source, flags=re.M)
        cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
        if 'echo' in marks:  # the Markdown that it displays is all that is wanted of it
            shown = '\n\n'.join(o.data['text/markdown'] for o in cell.outputs if 'text/markdown' in o.get('data', {}))
            cell.update(cell_type='markdown', source=shown)
            for k in ('outputs', 'execution_count'): del cell[k]
            continue
        if 'output' in marks: cell.outputs = []
    text,res = MarkdownExporter().from_notebook_node(nb, {'output_files_dir':FIGS})
    text = re.sub(r'[ \t]+$', '', text, flags=re.M)
    return re.sub(r'\n{3,}', '\n\n', text).strip()+'\n', dict(res['outputs'])

def stale():
    "What would change: a list of paths"
    text,figs = build(ROOT/'nbs/index.ipynb')
    want = {'README.md':text.encode(), **figs}
    files = [p for p in [ROOT/'README.md', *(ROOT/FIGS).glob('*')] if p.exists()]
    have = {p.relative_to(ROOT).as_posix():p.read_bytes() for p in files}
    return [p for p in sorted({*want,*have}) if want.get(p)!=have.get(p)], want

def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--check', action='store_true', help='only compare')
    args = ap.parse_args()
    diff,want = stale()
    if args.check:
        if diff: sys.exit(f"{', '.join(diff)}: not what nbs/index.ipynb says; run `make readme` and commit the result")
        return
    shutil.rmtree(ROOT/FIGS, ignore_errors=True)
    for p,b in want.items():
        (ROOT/p).parent.mkdir(exist_ok=True)
        (ROOT/p).write_bytes(b)

if __name__=='__main__': main()
