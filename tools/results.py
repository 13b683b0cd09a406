"""Write nbs/results/shipped.json, from which the start page draws its tables.

Give what `ivgr eval` wrote for the shipped policy, and finished demos:
    ivgr data needle --split test --n 2048 --out runs/needle
    ivgr eval --policy tiny --data runs/needle --out runs/tiny
    python tools/results.py --eval runs/tiny --demo runs/demo-0 runs/demo-1 runs/demo-2 --cpu "AMD EPYC, 2 cores"
"""
import argparse,json
from pathlib import Path
from ivgr.evaluate.leaderboard import read_run
from ivgr.evaluate.statistics import summarise

ROOT = Path(__file__).resolve().parent.parent

def demo_row(folder):
    "What one demo measured"
    s = json.loads((Path(folder)/'summary.json').read_text())
    keys = ('seed', 'steps', 'n_train', 'seconds', 'seconds_training', 'workers', 'versions', 'before', 'after', 'control', 'differences')
    return {k:s[k] for k in keys}

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--eval', required=True, metavar='DIR', help='output directory of `ivgr eval`')
    ap.add_argument('--demo', required=True, nargs='+', metavar='DIR', help='output directories of `ivgr demo`')
    ap.add_argument('--cpu', required=True, help='the processor, in words')
    a = ap.parse_args()
    out = dict(cpu=a.cpu, shipped=summarise(read_run(a.eval)[1]), demos=[demo_row(d) for d in a.demo])
    (ROOT/'nbs/results/shipped.json').write_text(json.dumps(out, indent=1)+'\n')

if __name__=='__main__': main()
