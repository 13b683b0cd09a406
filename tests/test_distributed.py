"Two processes train as one does, and end together"
import json,os,subprocess,sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from ivgr.data.samples import Samples
from ivgr.needle import write_needle
from ivgr.policy import load_policy
from ivgr.qlora import LoraSettings, add_lora
from ivgr.sampler import QueryOrder
from ivgr.serve.rollouts import chat
from ivgr.policy import encode

from forked import both
from rollout_server import RolloutFake
from two_processes import REDRAWN,OneByOne,Uneven,fit,run
from two_with_server import SETTINGS

HERE = Path(__file__).parent

def launch(script, *args):
    "Start a script in two processes"
    env = os.environ|{"OMP_NUM_THREADS":"1", "HF_HUB_OFFLINE":"1", "NO_PROXY":"*", "PYTHONPATH":os.pathsep.join([str(HERE.parent), str(HERE)])}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
               "--dynamo_backend", "no", "--main_process_port", "0", str(HERE/script), *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def lines(path): return [{k:v for k,v in json.loads(l).items() if not k.startswith("time/") and k!="eval_runtime"} for l in path.read_text().splitlines()]

def saved(ran, name):
    "What one process, and each of two, have saved: the same weights, beside the same log"
    out,_,said = ran
    for rank in (0, 1): assert (out/"two"/f"{name}-{rank}.pt").exists(), said
    one,two = torch.load(out/"one"/f"{name}-0.pt"),[torch.load(out/"two"/f"{name}-{rank}.pt") for rank in (0, 1)]
    for each in two:
        for k,w in one["weights"].items(): torch.testing.assert_close(each["weights"][k], w, rtol=0, atol=1e-5)
    a,b = (lines(out/n/name/"metrics.jsonl") for n in ("one", "two"))
    assert len(a)==len(b)>1
    for x,y in zip(a, b):
        assert x.keys()==y.keys()
        for k in x: assert y[k]==pytest.approx(x[k], abs=2e-5, rel=1e-4), k
    return one,two

@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "Run two processes, and meanwhile the same in one"
    out = tmp_path_factory.mktemp("runs")
    write_needle(out/"data", "train", 12, progress=False)
    (out/"two").mkdir()
    process = launch("two_processes.py", out/"data", out/"two")
    torch.set_num_threads(1)
    run(OneByOne, out/"data", out/"one"/"even", 8, updates_per_rollout=2)
    run(Uneven, out/"data", out/"one"/"uneven", 4, max_steps=2)
    run(OneByOne, out/"data", out/"one"/"redrawn", 8, **REDRAWN)
    for policy in ("tiny", "blank"): fit(out/"data", out/"one"/f"sft-{policy}", 6, policy)
    said,_ = process.communicate(timeout=240)
    return out,process.returncode,said

@pytest.mark.parametrize("name", ["sft-tiny", "sft-blank"])
def test_the_same_fine_tune(ran, name):
    "Weights and log of a cold start are those of a single process with the same batches; a warm-up is learned once, and taken over"
    saved(ran, name)
    assert len(lines(ran[0]/"one"/name/"metrics.jsonl"))==2

@pytest.mark.parametrize("name", ["even", "uneven", "redrawn"])
def test_the_same_update(ran, name):
    "Weights, archive, log, held-out numbers and completions are those of a single process with the same groups"
    out,(one,two) = ran[0],saved(ran, name)
    assert all(each["archive"]==one["archive"] for each in two) and one["archive"]["references"]
    a,b = ((out/n/name/"completions.jsonl").read_text() for n in ("one", "two"))
    assert a==b and a
    log = lines(out/"two"/name/"metrics.jsonl")
    assert {row["step"] for row in log if row.get("eval_n")==3}=={row["step"] for row in log if row["step"]%2==0}
    assert name!="redrawn" or sum(row.get("redrawn", 0) for row in log)>0

def test_resumed(ran):
    "Two processes go on from a checkpoint to the last bit"
    out,_,said = ran
    for rank in (0, 1):
        whole,resumed = (torch.load(out/"two"/f"{name}-{rank}.pt") for name in ("even", "resumed"))
        assert resumed["archive"]==whole["archive"]
        for k,w in whole["weights"].items(): assert torch.equal(resumed["weights"][k], w), k

def test_one_fails(ran):
    "The error of one process is shown and ends all"
    out,status,said = ran
    assert status!=0
    assert "ivgr train: the second process could not go on" in said, said
    assert len(lines(out/"two"/"failed"/"metrics.jsonl"))==1

@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "Two processes and one server, which refuses the adapters of one run, and drops the connection of one process of another in its third step"
    out,runs,lost = tmp_path_factory.mktemp("served"),{},{}
    write_needle(out/"data", "train", 12, progress=False)
    def fault(i):
        request = server.seen[i]
        if "lora_path" in request:
            runs[request["lora_name"]] = run = Path(request["lora_path"]).parents[1].name
            return "no-file" if run=="refused" else None
        name = request.get("model")
        if runs.get(name)=="lost" and name.endswith("-3") and lost.setdefault(name, request["seed"])==request["seed"]: return "cut"
    with RolloutFake(add_lora(load_policy(device="cpu"), LoraSettings(rank=4)), fault) as server:
        both(out/"said", "two_with_server.py", out/"data", out, server.url)
    return out,server,runs

def test_one_adapter_a_step_for_both(served):
    "It is loaded once, everything is asked of it before it is unloaded, and nothing stays behind"
    out,server,runs = served
    log = [(what, name) for what,name in server.log if runs[name]=="whole"]
    names = list(dict.fromkeys(name for _,name in log))
    assert len(names)==SETTINGS["max_steps"]
    asked = {name:log.count(("chat/completions", name)) for name in names}
    bring = [[("unload_lora_adapter", before)]*bool(before)+[("load_lora_adapter", name)] for before,name in zip([None, *names], names)]
    assert log==[x for name,first in zip(names, bring) for x in first+[("chat/completions", name)]*asked[name]]+[("unload_lora_adapter", names[-1])]
    assert not server.adapters and not list((out/"whole"/"adapters").iterdir())

def test_each_asks_for_its_share(served):
    "Each stream of each query of the batch is asked once, for N replies, with a seed of its own; and the replies are those of the policy as it is"
    out,server,runs = served
    policy,samples,asked = load_policy(device="cpu"),Samples(out/"data"),defaultdict(list)
    for r in server.seen:
        if "messages" in r and runs[r["model"]]=="whole": asked[r["model"]].append(r)
    order = QueryOrder(samples.paired, 2*SETTINGS["per_device_train_batch_size"], seed=42)
    for step,requests in enumerate(asked.values()):
        queries = [encode(policy, samples[i]) for i in order.batch(step)]
        assert sorted(json.dumps(r["messages"]) for r in requests)==sorted(json.dumps(chat(policy, q, s)) for q in queries for s in q.suffixes)
        assert {r["n"] for r in requests}=={SETTINGS["n_rollouts"]} and len({r["seed"] for r in requests})==len(requests)
    steps = lines(out/"whole"/"metrics.jsonl")
    assert len(steps)==len(asked)==SETTINGS["max_steps"]
    assert all(s["rollout/mismatch_max"]<1e-3 and s["rollout/retries"]==0 for s in steps)

def test_an_adapter_that_is_refused(served):
    "The error of the process that loads it is that of both"
    out,*_ = served
    first,second = ((out/f"refused-{rank}.txt").read_text() for rank in (0, 1))
    assert first==second and first.startswith("InputError: the rollout server can't be used: /load_lora_adapter") and "No adapter found" in first

def test_lost_by_one_and_resumed(served):
    "A request of one process that fails for good ends both; both save the last finished step, and go on as if nothing had been"
    out,*_ = served
    first,second = ((out/f"lost-{rank}.txt").read_text() for rank in (0, 1))
    assert first==second and first.startswith("ConnectionError: the rollout server failed 2 times: /chat/completions")
    assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"}<={p.name for p in (out/"lost"/"checkpoint-2").iterdir()}
    for rank in (0, 1):
        whole,lost = (torch.load(out/f"{name}-{rank}.pt") for name in ("whole", "lost"))
        assert any(w.any() for k,w in whole.items() if "lora_B" in k)
        for k,w in whole.items(): assert torch.equal(lost[k], w), k
    for name in ("archive.jsonl", "completions.jsonl"): assert (out/"lost"/name).read_bytes()==(out/"whole"/name).read_bytes(), name
