"A judge on a server that fails during training: no wrong score, no hang, no lost step"
import json,random,signal,time,warnings

import pytest
import torch

from ivgr.data.samples import Samples
from ivgr.needle import write_needle
from ivgr.serve.endpoint import EndpointConfig, EndpointJudge
from ivgr.policy import load_policy
from ivgr.train.runs import RunLog
from ivgr.trainer import DualStreamConfig, DualStreamTrainer

from fault_server import FAULTS,FaultServer,truth
from forked import command

SIZES = dict(max_steps=4, per_device_train_batch_size=4, n_rollouts=3, max_new_tokens=40, save_steps=4)

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_needle(folder, "train", 16, progress=False)
    return folder

@pytest.fixture(autouse=True)
def _direct(monkeypatch): monkeypatch.setenv("NO_PROXY", "*")

class Heard:
    "Passes everything on, and remembers it"
    def __init__(self, judge): self.judge,self.pairs,self.scores,self.report,self.waits = judge,[],[],judge.report,judge.waits
    def __call__(self, pairs):
        scores = self.judge(pairs)
        self.pairs += pairs
        self.scores += scores
        return scores

def run(url, data, out, **settings):
    "Train; what the judge was asked and said, and the lines of the log"
    judge = Heard(EndpointJudge(EndpointConfig(url=url, model="m", **dict(timeout=2., retries=3, backoff=.02, budget=60.)|settings)))
    args = DualStreamConfig(output_dir=str(out), beta=.01, judge="endpoint", judge_required=False, use_cpu=True, disable_tqdm=True, **SIZES)
    trainer = DualStreamTrainer(load_policy(device="cpu"), args, Samples(data), judge)
    trainer.add_callback(RunLog(progress=False))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a,b in zip(before, trainer.model.parameters())), "nothing was learned"
    return judge,[json.loads(l) for l in (out/"metrics.jsonl").read_text().splitlines()]

def test_three_in_ten_calls_fail(data, tmp_path):
    rng = random.Random(0)
    faults = [rng.choice(FAULTS) if rng.random()<.3 else None for _ in range(5000)]
    with FaultServer(lambda i: faults[i]) as server: judge,log = run(server.url, data, tmp_path/"run")
    for pair,score in zip(judge.pairs, judge.scores): assert score is None or abs(score-truth(pair))<1e-6
    assert len(log)==SIZES["max_steps"] and any(s is not None for s in judge.scores)
    assert sum(l["judge/missing"] for l in log)==judge.scores.count(None)
    assert sum(l["judge/pairs"] for l in log)==len(judge.pairs)
    assert sum(v for l in log for k,v in l.items() if k.startswith("judge/failed/"))>0

def test_down_from_beginning_to_end(data, tmp_path):
    with FaultServer() as server: gone = server.url
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        judge,log = run(gone, data, tmp_path/"run", retries=0)
    assert len([w for w in said if "NO SCORE" in str(w.message)])==1
    assert judge.pairs and set(judge.scores)=={None} and len(log)==SIZES["max_steps"]
    assert not any("textual/consistency" in l for l in log)  # absent, not 0
    assert all(l["judge/failed/connection"] for l in log if l["judge/pairs"])

@pytest.mark.parametrize("fault,words", [("401", "told to fail"), (None, "ConnectError")], ids=["refused", "down"])
def test_a_judge_that_never_answers_ends_the_run_with_the_servers_words(fault, words, data, tmp_path):
    few = ["--judge_retries", "0", "--judge_timeout", "2"]
    with FaultServer(lambda i: fault) as server:
        if fault is None: server.server.close()
        status,said = start(data, tmp_path/"run", server.url, *few).end(120)
        assert status==2 and words in said and "--judge_required false" in said and "Traceback" not in said, said
        start(data, tmp_path/"other", server.url, *few, "--judge_required", "false").finish()
    card = (tmp_path/"other"/"README.md").read_text()
    assert f"(model `m` at `{server.url}`)" in card and "scores 100.0% were missing" in card
    assert json.loads((tmp_path/"other"/"run.json").read_text())["judge_model"]=="m"

def start(data, out, url, *flags):
    sizes = [x for k,v in SIZES.items() for x in (f"--{k}", v)]
    return command(out.with_suffix(".log"), "train", "--data", data, "--output_dir", out, "--use_cpu", "true",
                   "--judge", "endpoint", "--judge_url", url, "--judge_model", "m", *sizes, *flags)

def test_ctrl_c_while_the_judge_hangs(data, tmp_path):
    with FaultServer() as server: start(data, tmp_path/"whole", server.url).finish()
    calls = [json.loads(l)["judge/calls"] for l in (tmp_path/"whole"/"metrics.jsonl").read_text().splitlines()]
    stop = max(i for i,n in enumerate(calls) if n)  # the last step that asks anything
    answered = sum(calls[:stop])
    assert stop>0
    with FaultServer(lambda i: "hang" if i>=answered else None) as server:
        stopped = start(data, tmp_path/"run", server.url)
        while len(server.seen)<=answered and stopped.running(): time.sleep(.01)
        asked = time.monotonic()
        stopped.send(signal.SIGINT)
        status,said = stopped.end(60)
        assert status==130 and "go on with --resume" in said, said
        assert time.monotonic()-asked<10  # one attempt alone would have hung for 30 s
    assert (tmp_path/"run"/f"checkpoint-{stop}").exists()  # though the next one was due at the end
    with FaultServer() as server: start(data, tmp_path/"run", server.url, "--resume").finish()
    for name in ("model.safetensors", "archive.jsonl", "completions.jsonl"):
        assert (tmp_path/"run"/name).read_bytes()==(tmp_path/"whole"/name).read_bytes(), name
