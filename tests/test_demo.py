"The demo's two trainings, in processes of their own: a signal stops both with a checkpoint, and both go on"
import os,signal,threading,time

import pytest

from ivgr.core import read_jsonl
from ivgr.demo import stop_with_parent
from ivgr.train.runs import whole_checkpoints

from forked import Forked,command

def start(out, *flags): return command(out.with_suffix(".log"), "demo", "--out", out, "--steps", "4", "--n_test", "8", *flags)

@pytest.mark.timeout(900)  # each start has two processes of its own
def test_stopped_and_resumed(tmp_path):
    out = tmp_path/"demo"
    process = start(out)
    while process.running() and not (out/"full/metrics.jsonl").exists(): time.sleep(.05)
    process.send(signal.SIGTERM)
    status,words = process.end(400)
    assert status==128+signal.SIGTERM and "go on with --resume" in words, words
    assert whole_checkpoints(out/"full") and not (out/"full/.lock").exists()  # its process has ended, after a save
    assert not (out/"summary.json").exists()
    status,words = start(out, "--resume").end(400)
    assert status==0 and "Texts true about the place" in words, words
    for run in ("full", "control"):
        assert [row["step"] for row in read_jsonl(out/run/"metrics.jsonl")]==[1, 2, 3, 4]
        assert f"{out/run}\n" in words and (out/run/"model.safetensors").exists()
    for name in ("summary.json", "summary.md", "curves.png", "scenes.png"): assert str(out/name) in words and (out/name).exists()

def wait_for_the_end(of):
    os.dup2(os.open(of, os.O_RDONLY), 0)
    threading.Thread(target=stop_with_parent, daemon=True).start()
    threading.Event().wait(100)

def test_ends_with_the_process_that_started_it(tmp_path):
    os.mkfifo(tmp_path/"pipe")
    child = Forked(tmp_path/"said", wait_for_the_end, str(tmp_path/"pipe"))
    writes = os.open(tmp_path/"pipe", os.O_WRONLY)  # waits for who reads
    time.sleep(.2)
    assert child.running()
    os.close(writes)
    assert child.end(100)[0]==-signal.SIGTERM
