"The demo's two trainings, in processes of their own: a signal stops both with a checkpoint, and both go on"
import os,signal,subprocess,sys,time

import pytest

from ivgr.core import read_jsonl
from ivgr.train.runs import whole_checkpoints

def start(out, *flags):
    command = [sys.executable, "-m", "ivgr", "demo", "--out", out, "--steps", "4", "--n_test", "8", *flags]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

@pytest.mark.timeout(900)  # two starts of three processes
def test_stopped_and_resumed(tmp_path):
    out = tmp_path/"demo"
    process = start(out)
    while process.poll() is None and not (out/"full/metrics.jsonl").exists(): time.sleep(.05)
    process.send_signal(signal.SIGTERM)
    _,words = process.communicate(timeout=400)
    assert process.returncode==128+signal.SIGTERM and "go on with --resume" in words, words
    assert whole_checkpoints(out/"full") and not (out/"full/.lock").exists()  # its process has ended, after a save
    assert not (out/"summary.json").exists()
    process = start(out, "--resume")
    words,errors = process.communicate(timeout=400)
    assert process.returncode==0 and "Texts true about the place" in words, errors
    for run in ("full", "control"):
        assert [row["step"] for row in read_jsonl(out/run/"metrics.jsonl")]==[1, 2, 3, 4]
        assert f"{out/run}\n" in words and (out/run/"model.safetensors").exists()
    for name in ("summary.json", "summary.md", "curves.png", "scenes.png"): assert str(out/name) in words and (out/name).exists()

def test_ends_with_the_process_that_started_it(tmp_path):
    reads,writes = os.pipe()
    code = "import threading; from ivgr.demo import stop_with_parent; threading.Thread(target=stop_with_parent, daemon=True).start(); threading.Event().wait(100)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=reads)
    os.close(reads)
    os.close(writes)
    assert child.wait(100)==-signal.SIGTERM
