"Many runs: made once, each on its own, and made again only when their settings have changed"
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import ivgr.studies.ablations as ab
from ivgr.core import InputError
from ivgr.studies.ablations import (
    BUSY, DONE, FAILED, OLD, WAITING, ablate, append_rows, jobs_for, read_rows, revisit, states,
    states_table,
)
from ivgr.studies.arms import ARMS, Arm, small
from ivgr.studies.measures import RecordingTrainer

ROOT = Path(__file__).parent.parent
TINY = replace(small(ARMS["full"]).setting, steps=1, queries=2, questions=2)

def tiny(name, **changes): return Arm(name, name, replace(TINY, **changes))

def quiet(text): pass

def bare(rows, *less):
    return [{k:v for k,v in r.items() if "seconds" not in k and k not in less} for r in rows]

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Two arms, one of which crashes; made once for all tests here"
    out = tmp_path_factory.mktemp("ablate")
    arms = [tiny("broken", options=dict(objective="nowhere")), tiny("good")]
    return out, arms, ablate(arms, [0], out, out, say=quiet)

def test_a_crash_stops_no_other_run(made):
    out, arms, found = made
    assert found=={("broken", 0):FAILED, ("good", 0):DONE}
    assert {r["arm"] for r in read_rows(out)}=={"good"}
    log = jobs_for(arms, [0], out)[0].beside("log").read_text()
    assert "nowhere" in log and "InputError" in log

def test_rows_say_what_was_done(made):
    out, arms, _ = made
    rows = read_rows(out)
    job = jobs_for(arms, [0], out)[1]
    assert [(r["split"], r["mode"]) for r in rows]==[("training", "both"), ("test", "textual"), ("test", "grounded")]
    assert all(r["key"]==job.key and r["machine"]["threads"]==1 and r["seconds"]>0 for r in rows)
    assert len({r["commit"] for r in rows})==1
    assert rows[0]["rollouts"]==TINY.rollouts and rows[0]["setting"]["steps"]==1
    # the trained policy is kept, and not what it takes to go on
    assert (job.folder/"config.json").exists() and not list(job.folder.glob("checkpoint-*"))

def test_what_is_finished_is_not_made_again(made, monkeypatch):
    out, arms, _ = made
    def never(*args, **kwargs): raise AssertionError("a process was started")
    monkeypatch.setattr(ab.subprocess, "Popen", never)
    before = (out/ab.ROWS_FILE).read_bytes()
    assert ablate(arms[1:], [0], out, out, say=quiet)=={("good", 0):DONE}
    assert (out/ab.ROWS_FILE).read_bytes()==before

def test_a_run_that_finished_unseen_is_taken_over(made, tmp_path, monkeypatch):
    out, arms, _ = made
    monkeypatch.setattr(ab.subprocess, "Popen", None)
    assert ablate(arms[1:], [0], out, tmp_path, say=quiet)=={("good", 0):DONE}  # its rows are beside its folder only
    assert read_rows(tmp_path)==read_rows(out)

def test_the_same_run_gives_the_same_rows(made, tmp_path):
    out, arms, _ = made
    ablate(arms[1:], [0], tmp_path, tmp_path, say=quiet)
    assert bare(read_rows(tmp_path))==bare(read_rows(out))

def test_a_run_that_is_stopped_goes_on(tmp_path, monkeypatch):
    # all that chance has a part in
    arm = tiny("stopped", steps=4, queries=4, pool=4, reference="random", doubt=.3, samples=1)
    def log(folder):
        lines = (folder/"metrics.jsonl").read_text().splitlines()
        return [{k:v for k,v in json.loads(line).items() if not k.startswith("time/")} for line in lines]
    whole = ab.run(arm, 0, tmp_path/"whole", tmp_path)
    score, seen = RecordingTrainer.score, []
    def stops(self, *args):
        seen.append(args[-1])
        if len(seen)==3: raise RuntimeError("stopped")
        return score(self, *args)
    monkeypatch.setattr(RecordingTrainer, "score", stops)
    with pytest.raises(RuntimeError, match="stopped"): ab.run(arm, 0, tmp_path/"again", tmp_path)
    again = ab.run(arm, 0, tmp_path/"again", tmp_path)
    assert seen==[0, 1, 2, 2, 3]
    assert bare(again, "resumed")==bare(whole) and log(tmp_path/"again")==log(tmp_path/"whole")
    assert again[0]["resumed"] and "resumed" not in whole[0] and whole[0]["references"]
    mark = json.loads((tmp_path/"again"/"made.json").read_text())
    (tmp_path/"again"/"made.json").write_text(json.dumps(mark|dict(machine=dict(cpu="another"))))
    assert "resumed" not in ab.run(arm, 0, tmp_path/"again", tmp_path)[0]       # half of it would come from elsewhere

def test_other_settings_make_a_run_old(made):
    out, arms, _ = made
    good = arms[1]
    other = good._replace(setting=replace(good.setting, tau=.5))
    assert states(jobs_for([other], [0, 1], out), read_rows(out))=={("good", 0):OLD, ("good", 1):WAITING}
    assert states(jobs_for([good], [0], out), read_rows(out))=={("good", 0):DONE}
    assert jobs_for([other], [0], out)[0].folder!=jobs_for([good], [0], out)[0].folder  # what is trained already stays

def test_the_stored_results_are_done():
    "Every stored row belongs to an arm as it is defined today"
    rows = read_rows(ROOT/"nbs/results")
    stored = {(r["arm"], r["seed"]) for r in rows}
    jobs = [job for job in jobs_for(ARMS.values(), range(30), "runs") if (job.arm.name, job.seed) in stored]
    assert len(jobs)==len(stored) and set(states(jobs, rows).values())=={DONE}

def test_a_run_that_another_command_is_at_is_left_to_it(made, tmp_path):
    _, arms, _ = made
    job = jobs_for(arms[1:], [0], tmp_path)[0]
    with ab.FileLock(job.beside("lock")):
        assert ablate(arms[1:], [0], tmp_path, tmp_path, say=quiet)=={("good", 0):BUSY}
    assert not read_rows(tmp_path)

def test_an_interruption_stops_the_runs(tmp_path):
    "Ctrl-C that reaches the command alone: its processes end with it, and what was not begun is not begun"
    argv = ["ablate", "--arm", "full", "--seeds", "0", "1", "--workers", "1", "--steps", "1000", "--out", str(tmp_path)]
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from ivgr.tools.cli import main; exit(main({argv}))"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        while not list(tmp_path.glob("full-0-*.log")) and process.poll() is None: time.sleep(.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60)==130 and "the same command" in process.stderr.read()
        assert not list(tmp_path.glob("full-1-*.log"))
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)   # with its runs

def test_the_latest_of_equal_rows_counts_and_damage_is_told(tmp_path):
    row = dict(arm="a", seed=0, split="test", mode="textual")
    append_rows([row|dict(key="1"), row|dict(key="1", seed=1)], tmp_path)
    append_rows([row|dict(key="2")], tmp_path)
    assert [(r["seed"], r["key"]) for r in read_rows(tmp_path)]==[(0, "2"), (1, "1")]
    with open(tmp_path/ab.ROWS_FILE, "a") as f: f.write('{"arm":')
    with pytest.raises(InputError, match="damaged"): read_rows(tmp_path)
    assert read_rows(tmp_path/"none")==[]

def test_the_table():
    lines = states_table({("a", 0):DONE, ("long name", 0):FAILED, ("a", 1):WAITING}).splitlines()
    assert lines[0].split()==["arm", "seed", "0", "seed", "1"] and lines[1].split()==["a", "done", "-"]
    assert len({len(line) for line in lines})==1

def test_rows_of_an_earlier_run_are_left_out(tmp_path):
    row = dict(arm="a", seed=0, mode="textual")
    first = [row|dict(key="1", split=s) for s in ("test", "shifted", "tools")]
    append_rows(first+[row|dict(key="3", seed=1, split="test")], tmp_path)
    append_rows([row|dict(key="2", split="test")], tmp_path)
    assert sorted((r["seed"], r["key"], r["split"]) for r in read_rows(tmp_path))==[(0, "2", "test"), (1, "3", "test")]

def test_finished_runs_are_revisited_once(made, tmp_path):
    out, arms, _ = made
    told = []
    append_rows(read_rows(out), tmp_path)
    assert revisit(arms, [0], out, tmp_path, told.append)==1
    assert told==["broken, seed 0: there is no finished run to revisit", "good, seed 0: revisited"]
    rows = read_rows(tmp_path)
    tools = [("tools", m) for m in ("textual", "grounded", "crops", "crops+union")]
    assert [(r["split"], r["mode"]) for r in rows[3:]]==tools+[("attention", m) for m in ("textual", "grounded")]
    assert {r["key"] for r in rows}=={jobs_for(arms, [0], out)[1].key} and [r["n"] for r in rows[3:]]==[2]*6
    assert rows[1]["accuracy"]==rows[3]["accuracy"]  # without tools as before
    before = (tmp_path/ab.ROWS_FILE).read_bytes()
    assert revisit(arms[1:], [0], out, tmp_path, told.append)==1 and (tmp_path/ab.ROWS_FILE).read_bytes()==before

def test_a_policy_that_is_gone_is_told(made, tmp_path):
    out, arms, _ = made
    append_rows(read_rows(out), tmp_path)
    with pytest.raises(InputError, match="trained policy of good, seed 0"): revisit(arms[1:], [0], tmp_path, tmp_path, quiet)

def test_the_picture_on_the_start_page_shows_the_stored_rows():
    "Drawn by tools/results.py, which notes a digest of the rows"
    sys.path.insert(0, str(ROOT/"tools"))
    try: import results
    finally: sys.path.remove(str(ROOT/"tools"))
    rows, digest = results.shown_rows()
    assert rows and Image.open(ROOT/"nbs/images/components.png").text["Description"]==digest, "run: python tools/results.py --ablations"
