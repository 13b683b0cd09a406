"""Write nbs/results/shipped.json, from which the start page draws its table, or the start page's picture of the ablations.

Give finished demos:
    for seed in 0 1 2; do ivgr demo --seed $seed --out runs/demo-$seed; done
    python tools/results.py --demo runs/demo-0 runs/demo-1 runs/demo-2 --cpu "AMD EPYC, 2 cores"
The picture is drawn from nbs/results/ablations.jsonl, and keeps a digest of the rows that it shows:
    python tools/results.py --ablations
"""
import argparse,json
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).resolve().parent.parent

def demo_row(folder):
    "What one demo measured"
    s = json.loads((Path(folder)/'summary.json').read_text())
    keys = ('seed', 'steps', 'n_train', 'seconds', 'seconds_training', 'workers', 'versions', 'differences')
    return {k:s[k] for k in keys}

def shown_rows():
    "The rows of the component study, and their digest"
    from ivgr.studies.ablations import read_rows
    from ivgr.studies.arms import STUDIES
    rows = [r for r in read_rows(ROOT/'nbs/results') if r['arm'] in STUDIES['components']]
    ordered = sorted(json.dumps(r, sort_keys=True) for r in rows)
    return rows, sha256('\n'.join(ordered).encode()).hexdigest()[:16]

def draw_ablations():
    "Write nbs/images/components.png"
    from ivgr.studies.figures import draw_components
    rows, digest = shown_rows()
    drawn = BytesIO()
    draw_components(rows).savefig(drawn, dpi=160)
    notes = PngInfo()
    notes.add_text('Description', digest)
    few_colours = Image.open(drawn).convert('RGB').quantize(64)  # a third of the bytes
    few_colours.save(ROOT/'nbs/images/components.png', optimize=True, pnginfo=notes)

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = ap.add_mutually_exclusive_group(required=True)
    what.add_argument('--demo', nargs='+', metavar='DIR', help='output directories of `ivgr demo`')
    what.add_argument('--ablations', action='store_true', help="draw the start page's picture of the ablations")
    ap.add_argument('--cpu', help='the processor of the demos, in words')
    a = ap.parse_args()
    if a.ablations:
        draw_ablations()
        return
    if not a.cpu:
        ap.error('--cpu: say on which processor the demos ran')
    out = dict(cpu=a.cpu, demos=[demo_row(d) for d in a.demo])
    (ROOT/'nbs/results/shipped.json').write_text(json.dumps(out, indent=1)+'\n')

if __name__=='__main__': main()
