"""Run notebooks and store what they print and draw.

Cells that `nbdev_test` skips are skipped here and keep their stored outputs; what goes to stderr is not stored. With
--check, write nothing and fail where the outputs would change. Figures are drawn at DPI, whatever their cell says, and shown at
half their pixels, as Quarto does; they are compared by their pixels. Newer processors round otherwise, so all use the
instructions that older ones have too."""
import argparse,base64,difflib,io,os,subprocess,sys,tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from execnb.nbio import nb2str,read_nb

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
DPI = 192  # twice the 96 of a browser's inch, so that 10 points in a figure are 10 points on a page, and sharp
AVX2 = dict(ATEN_CPU_CAPABILITY='avx2', MKL_CBWR='AVX2', ONEDNN_MAX_CPU_ISA='AVX2')
SAME_EVERYWHERE = dict(AVX2, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', PYTHONHASHSEED='0', IN_TEST='1')  # when a process starts

def _pixels(png):
    from PIL import Image
    im = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGBA')
    return im.size,im.tobytes()

def _keep_same_figures(old, new):
    "Take the stored bytes of a figure that looks the same: compression differs between machines"
    for a,b in zip(old, new):
        a,b = a.get('data', {}),b.get('data', {})
        if 'image/png' in a and 'image/png' in b and _pixels(a['image/png'])==_pixels(b['image/png']):
            b['image/png'] = a['image/png']

def execute(path):
    "The notebook at `path` as text, with fresh outputs"
    from execnb.shell import CaptureShell
    from fastcore.xtras import str2bool
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor,extract_directives
    cfg,nb = get_config(),read_nb(path)
    skip = set(cfg.tst_flags.split())
    front = getattr(NBProcessor(path, procs=FrontmatterProc, process=True).nb, 'frontmatter_', {})
    if str2bool(front.get('skip_exec', False)): return nb2str(nb)
    shell,stored = CaptureShell(path),{}
    shell.run(f"set_matplotlib_formats('retina', dpi={DPI})")
    for i,cell in enumerate(nb.cells):
        if cell.cell_type!='code': continue
        marks = extract_directives(cell, remove=False)
        if marks.get('eval:', [''])[0].lower()=='false' or skip & marks.keys(): continue
        stored[i],cell.outputs = cell.outputs,[]
        shell.cell(cell)
        if shell.exc: sys.exit(shell.prettytb(fname=path))
        cell.outputs = [o for o in cell.outputs if o.get('name')!='stderr']
    clean_nb(nb, clean_ids=cfg.clean_ids)
    for i,outs in stored.items(): _keep_same_figures(outs, nb.cells[i].outputs)
    return nb2str(nb)

def difference(path, new):
    "Where the stored notebook and its new text differ; empty where they do not"
    old = nb2str(read_nb(path))
    diff = difflib.unified_diff(old.splitlines(), new.splitlines(), 'stored', 'run again', n=2, lineterm='')
    return '\n'.join(line[:160] for line in islice(diff, 60))

def _run(path, limit):
    "`execute` in a process of its own; returns (new text or None, what went wrong)"
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp)/'nb'
        env = dict(os.environ, **SAME_EVERYWHERE)
        try: r = subprocess.run([sys.executable, __file__, '--one', path, out], cwd=path.parent, env=env, timeout=limit,
                                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace')
        except subprocess.TimeoutExpired: return None,f'stopped after {limit:g} s (--limit)'
        if r.returncode: return None,r.stdout+r.stderr
        return out.read_text(encoding='utf-8'),''

def main():
    if sys.argv[1:2]==['--one']:
        text = execute(Path(sys.argv[2]))
        return Path(sys.argv[3]).write_text(text, encoding='utf-8') and None
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('notebooks', nargs='*', type=Path, help='which (default: all in nbs/)')
    ap.add_argument('--check', action='store_true', help='only compare')
    ap.add_argument('--workers', type=int, default=2, help='notebooks at a time')
    ap.add_argument('--limit', type=float, default=240, help='seconds that one notebook may take')
    args = ap.parse_args()
    from nbdev.doclinks import nbglob
    paths = [p.resolve() for p in args.notebooks] or sorted(nbglob(NBS, as_path=True))
    bad = 0
    with ThreadPoolExecutor(args.workers) as pool:
        for path,(new,err) in zip(paths, pool.map(lambda p: _run(p, args.limit), paths)):
            if new is None: bad,what = bad+1,'failed\n'+err
            elif not (diff := difference(path, new)): what = 'same'
            elif args.check: bad,what = bad+1,'differs\n'+diff
            else:
                path.write_text(new, encoding='utf-8')
                what = 'stored'
            print(f'{path.name}: {what}', flush=True)
    hint = '; `make outputs` stores new outputs' if args.check else ''
    if bad: sys.exit(f"{bad} of {len(paths)} notebooks: see above{hint}")

if __name__=='__main__': main()
