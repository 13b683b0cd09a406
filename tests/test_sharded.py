"A run whose frozen base is split between two processes is the run in which each holds all of it"
import pytest
import torch

from ivgr.core import InputError
from ivgr.data.samples import Samples
from ivgr.needle import write_needle
from ivgr.policy import load_policy
from ivgr.serve.policy_judge import PolicyJudge
from ivgr.qlora import LoraSettings, add_lora
from ivgr.trainer import DualStreamConfig, DualStreamTrainer

from forked import both
from rollout_server import RolloutFake
from test_distributed import lines
from two_sharded import RUNS

@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "Two processes and their server; a process that waits for the other is a hang, and ends at the time limit"
    out = tmp_path_factory.mktemp("sharded")
    write_needle(out/"data", "train", 12, progress=False)
    with RolloutFake(add_lora(load_policy(device="cpu"), LoraSettings(rank=4, vision=True))) as server:
        both(out/"said", "two_sharded.py", out/"data", out, server.url)
    return out

def close(a, b):
    assert a.keys()==b.keys() and any(w.any() for n,w in a.items() if "lora_B" in n)
    for n in a: torch.testing.assert_close(a[n], b[n], rtol=0, atol=1e-6)

@pytest.mark.parametrize("name", RUNS)
def test_as_if_it_were_whole(ran, name):
    "The same adapter in both processes, the same log; and each holds half of the layers"
    for rank in (0, 1):
        whole,sharded = (torch.load(ran/f"{name}-{how}-{rank}.pt") for how in ("whole", "sharded"))
        close(whole["adapter"], sharded["adapter"])
        assert .45*whole["held"]<sharded["held"]<.55*whole["held"]
    whole,sharded = (lines(ran/f"{name}-{how}"/"metrics.jsonl") for how in ("whole", "sharded"))
    assert len(whole)==len(sharded)==2
    for a,b in zip(whole, sharded):
        assert a.keys()==b.keys()
        for k in a.keys()-{"rollout/seconds"}: assert b[k]==pytest.approx(a[k], abs=2e-5, rel=1e-4), k

def test_what_is_saved_is_whole(ran):
    "The first process writes the adapter as one, and it is read without the other"
    trained = torch.load(ran/"kl-sharded-1.pt")["adapter"]
    close(trained, {n:w for n,w in load_policy(ran/"kl-sharded", device="cpu").model.named_parameters() if "lora" in n})

def test_resumed(ran):
    for rank in (0, 1):
        whole,resumed = (torch.load(ran/f"{name}-{rank}.pt")["adapter"] for name in ("kl-sharded", "resumed"))
        for n,w in whole.items(): assert torch.equal(resumed[n], w), n

@pytest.mark.parametrize("lora,bits,judge,sampler,words", [(False, None, False, True, "set lora_rank"), (True, 8, False, True, "set quantise=4"),
                                                           (True, None, True, True, "choose another judge"), (True, None, False, False, "set rollout_url"),
                                                           (True, 4, False, True, "one process")])
def test_refused(tmp_path, lora, bits, judge, sampler, words):
    write_needle(tmp_path, "train", 2, progress=False)
    policy = load_policy(device="cpu", quantise=bits)
    if lora: policy = add_lora(policy, LoraSettings(rank=4))
    args = DualStreamConfig(output_dir=str(tmp_path), shard_base=True, quantise=bits, use_cpu=True)
    with pytest.raises(InputError, match=f"shard_base=True: .*{words}"):
        DualStreamTrainer(policy, args, Samples(tmp_path), PolicyJudge(policy) if judge else None, (lambda *_: None) if sampler else None)
