"""A long run under bad conditions: 500 steps of the demo's training, a judge that fails 1 call in 20, kills at random.

    python tools/soak.py --out runs/soak          # goes on where it stopped; nothing but the log and the run are written

Half of the steps see kills, the other half must run in one process, whose memory must stay within 5%. Each line of `soak.jsonl` is an
event (start, kill, end) or, every few seconds, the step that was reached and the resident memory in MiB. Linux only (reads /proc).
A whole run is in nbs/results/soak.jsonl, with seconds from its start."""
import argparse,json,os,random,signal,subprocess,sys,time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/'tests')]
from fault_server import FAULTS,FaultServer
from ivgr.needle import write_needle

def rss(pid):
    "MiB"
    try: return int(Path(f'/proc/{pid}/status').read_text().split('VmRSS:')[1].split()[0])/1024
    except (OSError, IndexError): return None  # it has just ended

def steps_of(run):
    "Lines of the log that are whole"
    log = run/'metrics.jsonl'
    return log.read_text().count('\n') if log.exists() else 0

def start(out, url, steps):
    cmd = [sys.executable, '-m', 'ivgr', 'train', '--data', str(out/'data'), '--output_dir', str(out/'run'), '--max_steps', str(steps), '--save_steps', '10',
           '--save_total_limit', '2', '--use_cpu', 'true', '--judge', 'endpoint', '--judge_url', url, '--judge_model', 'm', '--judge_timeout', '2',
           '--judge_backoff', '0.05', '--resume']
    env = os.environ|dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', NO_PROXY='*')
    with open(out/'train.log', 'ab') as log: return subprocess.Popen(cmd, env=env, stdout=log, stderr=log, cwd=ROOT)

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', default='runs/soak', help='directory of the run (default: runs/soak)')
    ap.add_argument('--steps', type=int, default=500, help='of training')
    ap.add_argument('--kills', type=int, default=8, help='in the first half')
    ap.add_argument('--every', type=float, default=5, help='seconds between looks')
    a = ap.parse_args()
    out,rng = Path(a.out).resolve(),random.Random(0)
    out.mkdir(parents=True, exist_ok=True)
    log = out/'soak.jsonl'
    events = [json.loads(l) for l in log.read_text().splitlines()] if log.exists() else []
    def say(**event):
        events.append(event|dict(time=round(time.time(), 1)))
        with open(log, 'a') as f: f.write(json.dumps(events[-1])+'\n')
        print(events[-1], flush=True)
    if not (out/'data'/'train.parquet').exists(): write_needle(out/'data', 'train', 16*a.steps//2, progress=False)
    due = sorted(rng.sample(range(2, a.steps//2), a.kills))[sum(e.get('event')=='kill' for e in events):]  # steps at which the next kills come
    faults = [rng.choice(FAULTS) if rng.random()<.05 else None for _ in range(10_000)]
    with FaultServer(lambda i: faults[i%len(faults)]) as server:
        while steps_of(out/'run')<a.steps:
            process = start(out, server.url, a.steps)
            say(event='start', step=steps_of(out/'run'))
            while process.poll() is None:
                time.sleep(a.every)
                step,memory = steps_of(out/'run'),rss(process.pid)
                if memory: say(step=step, memory=round(memory, 1))
                if due and step>=due[0]:
                    time.sleep(rng.uniform(0, 3))  # anywhere in a step or a save
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    say(event='kill', step=step)
                    while due and due[0]<=step: due.pop(0)
            if process.returncode not in (0, -signal.SIGKILL): raise SystemExit(f"the run ended with status {process.returncode}: see {out/'train.log'}")
    last = max(i for i,e in enumerate(events) if e.get('event')=='start')
    seen = [e for e in events[last:] if 'memory' in e and e['step']>=events[last]['step']+10]  # from the tenth step of the last process on
    if len(seen)<8: raise SystemExit(f"only {len(seen)} looks at the last process: too few to tell")
    early,late = (median(e['memory'] for e in part) for part in (seen[:len(seen)//4], seen[-len(seen)//4:]))
    rows = [json.loads(l) for l in (out/'run'/'metrics.jsonl').read_text().splitlines()]
    say(event='end', step=len(rows), kills=sum(e.get('event')=='kill' for e in events), early=early, late=late, grown=round(late/early-1, 4),
        pairs=sum(r['judge/pairs'] for r in rows), missing=sum(r['judge/missing'] for r in rows))
    assert [r['step'] for r in rows]==list(range(1, a.steps+1)), "the log does not hold each step once"
    assert late<=early*1.05, f"memory has grown from {early} to {late} MiB"

if __name__=='__main__': main()
