"""Write nbs/results/shipped.json, from which the start page draws its table.

Give finished demos:
    for seed in 0 1 2; do ivgr demo --seed $seed --out runs/demo-$seed; done
    python tools/results.py --demo runs/demo-0 runs/demo-1 runs/demo-2 --cpu "AMD EPYC, 2 cores"
"""
import argparse,json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def demo_row(folder):
    "What one demo measured"
    s = json.loads((Path(folder)/'summary.json').read_text())
    keys = ('seed', 'steps', 'n_train', 'seconds', 'seconds_training', 'workers', 'versions', 'differences')
    return {k:s[k] for k in keys}

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--demo', required=True, nargs='+', metavar='DIR', help='output directories of `ivgr demo`')
    ap.add_argument('--cpu', required=True, help='the processor, in words')
    a = ap.parse_args()
    out = dict(cpu=a.cpu, demos=[demo_row(d) for d in a.demo])
    (ROOT/'nbs/results/shipped.json').write_text(json.dumps(out, indent=1)+'\n')

if __name__=='__main__': main()
