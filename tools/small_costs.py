"""Measure what should cost next to nothing, one thread, the best of five, and write nbs/results/small_costs.json.

    OMP_NUM_THREADS=1 python tools/small_costs.py"""
import json,subprocess,sys,tempfile,time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ivgr.archive import Archive, Reference, score_groups
from ivgr.studies.bench import environment
from ivgr.boxes import Frame
from ivgr.core import Group, Rollout, Stream, write_atomic
from ivgr.data.images import load_image
from ivgr.data.samples import Samples
from ivgr.needle import write_needle
from ivgr.prompts import parse

def best(f, times=5, before=lambda: None):
    "Seconds of the fastest of some calls, what is done before each of them not counted"
    def one():
        before()
        start = time.perf_counter()
        f()
        return time.perf_counter()-start
    return min(one() for _ in range(times))

def started(*words): return best(lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True))

def rollouts(streams=(Stream.GROUNDED, Stream.TEXTUAL), n=80):
    "Replies with a fact, a box where the stream has them, and one of four answers"
    for s in streams:
        box = lambda i: f" <box>[{100+i}, 200, 300, 400]</box>" if s==Stream.GROUNDED else ""
        for i in range(n):
            text = f"<think>The red tile{box(i)} is in the upper left. Its top is blue.</think><answer>{'ABCD'[i%4]}</answer>"
            yield Rollout(s, [1]*30, [-1.]*30, text, parsed=parse(text, s, Frame(1000, 1000, "unit1000")))

def write_large(folder, copies=51):
    "51,000 rows with their pictures inside, as the authors publish theirs"
    write_needle(folder/"scenes", "train", 1000, progress=False)
    rows = pq.read_table(folder/"scenes/train.parquet").to_pylist()
    for row in rows: row["images"] = [dict(bytes=(folder/"scenes"/path).read_bytes(), path=path) for path in row["images"]]
    table = pa.Table.from_pylist(rows)
    with pq.ParquetWriter(folder/"train.parquet", table.schema) as writer:
        for k in range(copies):
            ids = pa.array([f"{row['id']}-{k}" for row in rows])
            writer.write_table(table.set_column(table.schema.get_field_index("id"), "id", ids))

def first_and_last(folder):
    samples = Samples(folder, "train")
    return load_image(samples[0].images[0]), load_image(samples[-1].images[0])

def main():
    torch.set_num_threads(1)
    costs = {"import ivgr, s":started("-c", "import ivgr"), "ivgr --help, s":started("-m", "ivgr", "--help")}
    with tempfile.TemporaryDirectory() as folder:
        data,path = Path(folder)/"data",Path(folder)/"archive.jsonl"
        costs["needle scenes written a second"] = 1000/best(lambda: write_needle(data, "train", 1000, progress=False), 3)
        samples = Samples(data, "train")
        costs["needle scenes read a second"] = 1000/best(lambda: [load_image(s.images[0]) for s in samples], 3)
        large = Path(folder)/"large"
        large.mkdir()
        write_large(large)
        memory,before = psutil.Process().memory_info,psutil.Process().memory_info().rss
        first_and_last(large)
        costs["51,000 rows with pictures opened, MB more"] = (memory().rss-before)/1e6
        costs["51,000 rows with pictures opened, first and last read, s"] = best(lambda: first_and_last(large))
        groups = [Group(s, list(rollouts()), Frame(1000, 1000, "unit1000"), (96, 96)) for s in samples[:16]]
        costs[f"rewards of {sum(len(g.rollouts) for g in groups)} rollouts, no judge, s"] = best(lambda: score_groups(groups, Archive(.3), None, 0))
        archive,text = Archive(.3),"The red tile is in the upper left. Its top is blue. "*6
        state = lambda queries,box_reward: archive.state_dict()|dict(references=[
            vars(Reference(f"query {i}", text, ((100., 200., 300., 400.),), box_reward, 3)) for i in range(queries)])
        whole,rewards = state(50_000, .6),iter((.7, .75, .8, .85, .9))
        costs["archive of 50,000 queries saved, s"] = best(lambda: archive.save(path), before=lambda: archive.load_state_dict(whole))
        costs["saved again with 500 better references, s"] = best(lambda: archive.save(path), before=lambda: archive.merge(state(500, next(rewards))))
        costs["archive of 50,000 queries loaded, s"] = best(lambda: Archive.load(path))
    write_atomic("nbs/results/small_costs.json", json.dumps(dict(machine=environment(), best_of=5, found={k:round(v, 3) for k,v in costs.items()}), indent=1)+"\n")
    for k,v in costs.items(): print(f"{k:60} {v:8.3f}")

if __name__=="__main__": main()
