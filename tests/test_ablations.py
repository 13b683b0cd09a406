"Many runs: made once, each on its own, and made again only when something that matters has changed"
import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

import ivgr.studies.ablations as ab
from ivgr.studies.ablations import (
    ARMS, DONE, FAILED, OLD, WAITING, Arm, ablate, append_rows, jobs_for, read_rows, revisit,
    seconds_left, small, states, states_table,
)
from ivgr.core import InputError

TINY = replace(small(ARMS["full"]).setting, steps=1, queries=2, ask=dict(test=2))
def tiny(name, **changes): return Arm(name, name, replace(TINY, **changes))
def quiet(text): pass
def bare(rows, *less): return [{k:v for k,v in r.items() if "seconds" not in k and k not in less} for r in rows]

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Two arms, one of which crashes; made once for all tests here"
    out = tmp_path_factory.mktemp("ablate")
    arms = [tiny("broken", policy=str(out/"nowhere")), tiny("good")]
    return out,arms,ablate(arms, [0], out, out, say=quiet)

def test_a_crash_stops_no_other_run(made):
    out,arms,found = made
    assert found=={("broken", 0):FAILED, ("good", 0):DONE}
    assert {r["arm"] for r in read_rows(out)}=={"good"}
    log = jobs_for(arms, [0], out)[0].beside("log").read_text()
    assert "nowhere" in log and "InputError" in log

def test_rows_say_what_was_done(made):
    out,arms,_ = made
    rows = read_rows(out)
    assert [(r["split"], r["mode"]) for r in rows]==[("training", "both"), ("test", "textual"), ("test", "grounded")]
    assert all(r["key"]==jobs_for(arms, [0], out)[1].key and r["machine"]["threads"]==1 and r["seconds"]>0 for r in rows)
    assert rows[0]["rollouts"]==TINY.rollouts and rows[0]["setting"]["steps"]==1
    folder = jobs_for(arms, [0], out)[1].folder
    assert (folder/"config.json").exists() and not list(folder.glob("checkpoint-*")) # the trained policy is kept, and not what it takes to go on

def test_what_is_finished_is_not_made_again(made, monkeypatch):
    out,arms,_ = made
    def never(*args, **kwargs): raise AssertionError("a process was started")
    monkeypatch.setattr(ab.subprocess, "Popen", never)
    before = (out/ab.MADE).read_bytes()
    assert ablate(arms[1:], [0], out, out, say=quiet)=={("good", 0):DONE}
    assert (out/ab.MADE).read_bytes()==before

def test_a_run_that_finished_unseen_is_taken_over(made, tmp_path, monkeypatch):
    out,arms,_ = made
    monkeypatch.setattr(ab.subprocess, "Popen", None)
    assert ablate(arms[1:], [0], out, tmp_path, say=quiet)=={("good", 0):DONE}  # its rows are in its folder, and nowhere else
    assert read_rows(tmp_path)==read_rows(out)

def test_the_same_run_gives_the_same_rows(made, tmp_path):
    out,arms,_ = made
    ablate(arms[1:], [0], tmp_path, tmp_path, say=quiet)
    assert bare(read_rows(tmp_path))==bare(read_rows(out))

def test_a_run_that_is_stopped_goes_on(tmp_path, monkeypatch):
    arm = tiny("stopped", steps=4, queries=4, pool=4, reference="random", doubt=.3, samples=1, anneal=True) # all that chance has a part in
    def log(folder): return [{k:v for k,v in json.loads(l).items() if not k.startswith("time/")} for l in (folder/"metrics.jsonl").read_text().splitlines()]
    whole = ab.run(arm, 0, tmp_path/"whole", tmp_path)
    score,seen = ab.RecordingTrainer.score,[]
    def stops(self, groups, batch):
        seen.append(batch)
        if len(seen)==3: raise RuntimeError("stopped")
        return score(self, groups, batch)
    monkeypatch.setattr(ab.RecordingTrainer, "score", stops)
    with pytest.raises(RuntimeError, match="stopped"): ab.run(arm, 0, tmp_path/"again", tmp_path)
    again = ab.run(arm, 0, tmp_path/"again", tmp_path)
    assert seen==[0, 1, 2, 2, 3]
    assert bare(again, "resumed")==bare(whole) and log(tmp_path/"again")==log(tmp_path/"whole")
    assert again[0]["resumed"] and "resumed" not in whole[0] and whole[0]["references"]
    made = json.loads((tmp_path/"again"/"made.json").read_text())
    (tmp_path/"again"/"made.json").write_text(json.dumps(made|dict(machine=dict(cpu="another"))))
    assert "resumed" not in ab.run(arm, 0, tmp_path/"again", tmp_path)[0]       # half of it would come from elsewhere

def test_other_settings_and_other_code_make_a_run_old(made, monkeypatch):
    out,arms,_ = made
    good = arms[1]
    other = good._replace(setting=replace(good.setting, tau=.5))
    assert states(jobs_for([other], [0, 1], out), read_rows(out))=={("good", 0):OLD, ("good", 1):WAITING}
    monkeypatch.setattr(ab, "code_version", lambda: "new")
    assert states(jobs_for([good], [0], out), read_rows(out))=={("good", 0):OLD}

def test_what_makes_a_run_old_and_what_does_not():
    home = Path(ab.__file__).parent
    for name,roots in ab._PARTS.items():
        source = (home/f"{name}.py").read_text()
        defined = {n for node in ast.parse(source).body for n in ab._named(node)}
        assert set(roots)<=defined, name                          # a root that is misspelt would be overlooked
    def version(name, old, new):
        source = (home/f"{name}.py").read_text()
        assert old in source
        return ab.code_text(source, ab._PARTS[name])!=ab.code_text(source.replace(old, new), ab._PARTS[name])
    assert version("data", 'convert("RGB")', 'convert("L")')      # how a picture is read
    assert version("ablations", "box_text((x1, y1, x2, y2), 1000)", "m[0]")
    assert not version("ablations", 'for n in (2, 4, 16)', 'for n in (2, 4, 16, 32)') # another arm
    assert not version("ablations", 'ax.set_ylim(', 'ax.set_xlim(')

def test_code_that_changes_under_a_command_is_noticed(made):
    out,arms,_ = made
    order = json.dumps(dict(name="x", about="x", setting=TINY.__dict__, seed=0, key="other", folder=str(out/"x"), out=str(out)))
    with pytest.raises(InputError, match="the code has changed"): ab.run_alone(order)
    assert not (out/"x.rows").exists()

def test_a_run_that_another_command_is_at_is_left_to_it(made, tmp_path):
    _,arms,_ = made
    job = jobs_for(arms[1:], [0], tmp_path)[0]
    with ab.FileLock(job.beside("lock")):
        assert ablate(arms[1:], [0], tmp_path, tmp_path, say=quiet)=={("good", 0):ab.BUSY}
    assert not read_rows(tmp_path)

def test_the_latest_of_equal_rows_counts_and_damage_is_told(tmp_path):
    row = dict(arm="a", seed=0, split="test", mode="textual")
    append_rows([row|dict(key="1"), row|dict(key="1", seed=1)], tmp_path)
    append_rows([row|dict(key="2")], tmp_path)
    assert [(r["seed"], r["key"]) for r in read_rows(tmp_path)]==[(0, "2"), (1, "1")]
    with open(tmp_path/ab.MADE, "a") as f: f.write('{"arm":')
    with pytest.raises(InputError, match="damaged"): read_rows(tmp_path)
    assert read_rows(tmp_path/"none")==[]

def test_time_left(tmp_path):
    a,b = jobs_for([tiny("a"), tiny("b", steps=3)], [0], tmp_path)
    done = dict(key=a.key, machine=ab.machine(), seconds=30.)
    rows = [done|dict(split="training", rollouts=TINY.rollouts), done|dict(split="test", mode="textual", n=2), done|dict(split="test", mode="grounded", n=2)]
    pace = 60/(TINY.rollouts+2)
    assert seconds_left([b], [], rows, 1)==pytest.approx(pace*(3*TINY.rollouts+2))
    assert seconds_left([a, b], [], rows, 2)==pytest.approx(pace*(4*TINY.rollouts+4)/2)
    assert seconds_left([b], [], [], 1) is None
    for useless in (dict(machine={"cpu":"another"}), dict(resumed=True)): assert seconds_left([b], [], [rows[0]|useless], 1) is None

def test_the_table():
    lines = states_table({("a", 0):DONE, ("long name", 0):"40%", ("a", 1):WAITING}).splitlines()
    assert lines[0].split()==["arm", "seed", "0", "seed", "1"] and lines[1].split()==["a", "done", "-"]
    assert len({len(l) for l in lines})==1

def test_rows_of_an_earlier_run_are_left_out(tmp_path):
    row = dict(arm="a", seed=0, mode="textual")
    append_rows([row|dict(key="1", split=s) for s in ("test", "shifted", "tools")]+[row|dict(key="3", seed=1, split="test")], tmp_path)
    append_rows([row|dict(key="2", split="test")], tmp_path)
    assert sorted((r["seed"], r["key"], r["split"]) for r in read_rows(tmp_path))==[(0, "2", "test"), (1, "3", "test")]

def test_finished_runs_are_revisited_once(made, tmp_path):
    out,arms,_ = made
    said = []
    append_rows(read_rows(out), tmp_path)
    assert revisit(arms, [0], out, tmp_path, said.append)==1
    assert said==["broken, seed 0: there is no finished run to revisit", "good, seed 0: revisited"]
    rows = read_rows(tmp_path)
    assert [(r["split"], r["mode"]) for r in rows[3:]]==[("tools", m) for m in ("textual", "grounded", "crops", "crops+union")]+[("attention", m) for m in ("textual", "grounded")]
    assert {r["key"] for r in rows}=={jobs_for(arms, [0], out)[1].key} and [r["n"] for r in rows[3:]]==[2]*6
    assert rows[1]["accuracy"]==rows[3]["accuracy"]  # without tools as before
    before = (tmp_path/ab.MADE).read_bytes()
    assert revisit(arms[1:], [0], out, tmp_path, said.append)==1 and (tmp_path/ab.MADE).read_bytes()==before
    assert seconds_left(jobs_for(arms[1:], [1], out), [], rows, 1)==seconds_left(jobs_for(arms[1:], [1], out), [], rows[:3], 1)

def test_a_policy_that_is_gone_is_told(made, tmp_path):
    out,arms,_ = made
    append_rows(read_rows(out), tmp_path)
    with pytest.raises(InputError, match="trained policy of good, seed 0"): revisit(arms[1:], [0], tmp_path, tmp_path, quiet)
