"A run that is killed at any moment, also in the middle of a save, loses nothing: resumed, it ends as if it had not been"
import random,signal,time

import pytest

from ivgr.needle import write_needle
from ivgr.train.runs import whole_checkpoints

from fault_server import FaultServer
from conftest import FORKSERVER
from forked import Forked,command,pair

COMMON = ["--max_steps", "4", "--save_steps", "1", "--per_device_train_batch_size", "2", "--n_rollouts", "3", "--max_new_tokens", "40",
          "--learning_rate", "1e-3", "--use_cpu", "true", "--save_total_limit", "1"]

def start(data, out, *flags):
    return command(out.with_suffix(".log"), "train", "--data", data, "--output_dir", out, *COMMON, *flags)

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_needle(folder, "train", 12, progress=False)
    return folder

@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")/"run"
    start(data, out).finish()
    return out

def wait_for(path, process):
    for _ in range(12000):
        if path.exists() or not process.running(): return
        time.sleep(.01)

@pytest.mark.parametrize("sign", ["checkpoint-2/model.safetensors", "checkpoint-3/optimizer.pt"])  # written in the middle of a save
def test_killed_while_saving(data, whole, tmp_path, sign):
    out = tmp_path/"run"
    process = start(data, out)
    wait_for(out/sign, process)
    process.send(signal.SIGKILL)
    assert process.end()[0]==-signal.SIGKILL, "the run ended before it could be killed"
    start(data, out, "--resume").finish()
    for name in ("model.safetensors", "archive.jsonl", "completions.jsonl"):
        assert (out/name).read_bytes()==(whole/name).read_bytes(), name
    assert len((out/"metrics.jsonl").read_text().splitlines())==4

def stop_after(out, process, *signals):
    "Send signals, 50 ms apart, when two steps are logged; exit status, what was said, and the number of the last whole checkpoint"
    log = out/"metrics.jsonl"
    while process.running() and not (log.exists() and log.read_text().count("\n")>=2): time.sleep(.005)
    for number in signals:
        process.send(number)
        time.sleep(.05)
    status,text = process.end(120)
    saved = whole_checkpoints(out)
    return status,text,int(saved[-1].name.split("-")[1]) if saved else 0

LONG = ["--max_steps", "1000", "--save_steps", "1000"]

@pytest.mark.parametrize("name,exit_status", [("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 138)])
def test_a_signal_saves_the_last_finished_step(name, exit_status, data, tmp_path):
    out = tmp_path/"run"
    status,text,step = stop_after(out, start(data, out, *LONG), getattr(signal, name))
    assert status==exit_status and f"stopped by {name}; go on with --resume, from checkpoint-{step}" in text, text
    assert step>=2 and "Traceback" not in text
    if name!="SIGTERM": return
    longer = ["--max_steps", step+1, "--save_steps", "1000"]
    start(data, out, *longer, "--resume").finish()
    start(data, tmp_path/"whole", *longer).finish()
    for file in ("model.safetensors", "archive.jsonl", "completions.jsonl"):
        assert (out/file).read_bytes()==(tmp_path/"whole"/file).read_bytes(), file

@pytest.mark.parametrize("kind,who", [("train", (0, 1)), ("train", (1,)), ("train", (0,)), ("sft", (1,))])
def test_two_processes_stop_together(kind, who, data, tmp_path):
    "A signal to both or to one: both save the same step, wait for each other, and go on from there"
    out = tmp_path/"run"
    words = [kind, "--data", data, "--output_dir", out, "--use_cpu", "true", "--per_device_train_batch_size", "2", "--logging_steps", "1"]
    words += ["--n_rollouts", "2", "--max_new_tokens", "30"] if kind=="train" else ["--policy", "tiny"]
    two = pair(tmp_path/"log", *words, *LONG)
    log = out/"metrics.jsonl"
    while all(p.running() for p in two) and not (log.exists() and log.read_text().count("\n")>=2): time.sleep(.005)
    for rank in who: two[rank].send(signal.SIGTERM)
    saved = [p.end() for p in two]
    last = whole_checkpoints(out)[-1]
    assert [status for status,_ in saved]==[143, 143], saved
    for _,text in saved: assert f"stopped by SIGTERM; go on with --resume, from {last.name}" in text and "Traceback" not in text, text
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"}<={p.name for p in last.iterdir()}
    if who==(1,): # what they do next is what they would have done
        step = int(last.name.split("-")[1])
        for p in pair(tmp_path/"again", *words, "--max_steps", step+1, "--save_steps", "1000", "--resume"): p.finish()
        assert len(log.read_text().splitlines())==step+1

def test_a_cold_start_saves_too(tmp_path):
    write_needle(tmp_path/"data", "train", 12, progress=False)
    out = tmp_path/"run"
    words = ["sft", "--data", tmp_path/"data", "--policy", "tiny", "--output_dir", out, "--use_cpu", "true", "--logging_steps", "1", *LONG]
    status,text,step = stop_after(out, command(tmp_path/"log", *words), signal.SIGTERM)
    assert (status,step>=2)==(143, True) and "go on with --resume" in text, text

def test_two_signals_leave_nothing_half_written_that_is_passed_over_in_silence(data, tmp_path):
    out = tmp_path/"run"
    status,text,step = stop_after(out, start(data, out, *LONG), signal.SIGINT, signal.SIGINT)
    assert status==130, text
    status,text = start(data, out, *LONG[:1], step+1, "--resume").end()
    if step: assert status==0, text
    else: assert status==2 and "nothing to go on from" in text, text

def limited(words, size):
    "A command whose disk takes no file above a size"
    import resource,sys
    from ivgr.tools.cli import main
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    sys.exit(main(words))

def test_a_full_disk_is_one_sentence(data, tmp_path):
    words = [str(w) for w in ("train", "--data", data, "--output_dir", tmp_path/"run", *COMMON)]
    status,text = Forked(tmp_path/"log", limited, words, 100_000).end()
    assert status==2 and "can't write" in text and "File too large" in text and "MB were free" in text and "Traceback" not in text, text
    assert "nothing was saved yet" in text

def test_a_directory_that_cannot_be_written(data, tmp_path):
    (tmp_path/"file").touch()
    for command_,flag in (("train", "--output_dir"), ("data", "--out")):
        words = ["train", "--data", data, *COMMON] if command_=="train" else ["data", "needle", "--n", "2"]
        status,text = command(tmp_path/f"{command_}.log", *words, flag, tmp_path/"file"/"run").end()
        assert status==2 and f"can't open '{tmp_path}/file" in text and "Not a directory" in text and "Traceback" not in text, text
        assert "--resume" not in text, text

def live(data, out, url, sizes, resume):
    import torch
    from ivgr.serve.endpoint import EndpointConfig
    from ivgr.train.rl import train
    from ivgr.trainer import DualStreamConfig
    torch.set_num_threads(1)
    args = DualStreamConfig(data=data, output_dir=out, judge="endpoint", use_cpu=True, **sizes)
    train(args, resume, progress=False, endpoint=EndpointConfig(url=url, model="m"))

def steps(out):
    "Lines of the log that are whole"
    log = out/"metrics.jsonl"
    return log.read_text().splitlines()[:-1] if log.exists() else []

def half_saved(out):
    "Is there a checkpoint that is not complete?"
    whole = whole_checkpoints(out)
    return any(p not in whole for p in out.glob("checkpoint-*"))

def test_killed_twenty_times(data, tmp_path):
    "One run, killed wherever it happens to be, with a judge on a server; what it ends with is what it would have ended with"
    sizes = dict(max_steps=32, save_steps=1, per_device_train_batch_size=2, n_rollouts=3, max_new_tokens=40, learning_rate=1e-3, save_total_limit=2)
    rng,kills,judging,broken = random.Random(0),0,0,0
    with FaultServer(latency=.1) as server:
        def start(out, resume):
            process = FORKSERVER.Process(target=live, args=(str(data), str(out), server.url, sizes, resume))
            process.start()
            return process
        process = start(tmp_path/"whole", False)
        while process.is_alive() and not steps(tmp_path/"whole"): time.sleep(.01)
        began = time.monotonic()
        process.join(240)
        assert process.exitcode==0
        pace = (time.monotonic()-began)/sizes["max_steps"]         # seconds a step takes here
        out,done = tmp_path/"run",0
        while kills<20:
            process = start(out, bool(done))
            def wait(sign):
                while process.is_alive() and not sign(): time.sleep(.002)
            wait(lambda: len(steps(out))>done)                     # one more step at least, and then
            if kills%3==0: time.sleep(rng.random()*pace)           # anywhere,
            elif kills%3==1: wait(lambda: server.open)             # in a call of the judge,
            else: wait(lambda: half_saved(out))                    # or in a save
            judging += server.open>0
            assert process.is_alive(), "the run ended before it could be killed"
            process.kill()
            process.join()
            broken += half_saved(out)
            kills,done = kills+1,len(steps(out))
        process = start(out, True)
        process.join(240)
        assert process.exitcode==0
    assert judging>=5 and broken>=5, (judging, broken)
    for name in ("model.safetensors", "archive.jsonl", "completions.jsonl"):
        assert (tmp_path/"run"/name).read_bytes()==(tmp_path/"whole"/name).read_bytes(), name
