"Two processes train as one does, and end together"
import json,os,subprocess,sys
from pathlib import Path

import pytest
import torch

from ivgr.data import write_needle

from two_processes import OneByOne,Uneven,run

HERE = Path(__file__).parent

def lines(path): return [{k:v for k,v in json.loads(l).items() if not k.startswith("time/")} for l in path.read_text().splitlines()]

@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "Run two processes, and meanwhile the same in one"
    out = tmp_path_factory.mktemp("runs")
    write_needle(out/"data", "train", 12, progress=False)
    env = os.environ|{"OMP_NUM_THREADS":"1", "HF_HUB_OFFLINE":"1", "PYTHONPATH":os.pathsep.join([str(HERE.parent), str(HERE)])}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--main_process_port", "0", str(HERE/"two_processes.py"), str(out/"data"), str(out/"two")]
    (out/"two").mkdir()
    process = subprocess.Popen(launch, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    torch.set_num_threads(1)
    run(OneByOne, out/"data", out/"one"/"even", 8, updates_per_rollout=2)
    run(Uneven, out/"data", out/"one"/"uneven", 4, max_steps=2)
    said,_ = process.communicate(timeout=240)
    return out,process.returncode,said

@pytest.mark.parametrize("name", ["even", "uneven"])
def test_the_same_update(ran, name):
    "Weights, archive, log and completions are those of a single process with the same groups"
    out,_,said = ran
    one = torch.load(out/"one"/f"{name}-0.pt")
    for rank in (0, 1):
        assert (out/"two"/f"{name}-{rank}.pt").exists(), said
        two = torch.load(out/"two"/f"{name}-{rank}.pt")
        assert two["archive"]==one["archive"] and one["archive"]["references"]
        for k,w in one["weights"].items(): torch.testing.assert_close(two["weights"][k], w, rtol=0, atol=1e-5)
    a,b = (lines(out/n/name/"metrics.jsonl") for n in ("one", "two"))
    assert len(a)==len(b)>1
    for x,y in zip(a, b):
        assert x.keys()==y.keys()
        for k in x: assert y[k]==pytest.approx(x[k], abs=2e-5, rel=1e-4), k
    a,b = ((out/n/name/"completions.jsonl").read_text() for n in ("one", "two"))
    assert a==b and a

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
