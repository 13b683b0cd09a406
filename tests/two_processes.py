"What each of two processes runs in test_distributed.py, and what the test runs in one: `accelerate launch tests/two_processes.py DATA OUT`"
import sys
from pathlib import Path

import torch
from transformers import PrinterCallback

from ivgr.tools.cli import main
from ivgr.core import InputError, rng_for
from ivgr.data.samples import Samples
from ivgr.policy import load_policy
from ivgr.sampler import sample_rollouts
from ivgr.train.sft import ColdStartConfig, cold_start
from ivgr.train.runs import RunLog
from ivgr.trainer import DualStreamConfig, DualStreamTrainer

class OneByOne(DualStreamTrainer):
    "Rollouts of a query depend on the query and the batch alone, so that one process and two have the same"
    def sample(self, queries, batch, attempt=0):
        a,out = self.args,[]
        for q in queries:
            generator = torch.Generator().manual_seed(rng_for(q.sample.id, batch).getrandbits(63))
            out += sample_rollouts(self.policy, [q], a.n_rollouts, a.max_new_tokens, a.temperature, a.top_p, generator, a.share_prefix)
        return out

class Uneven(OneByOne):
    "Three queries a batch for two processes, and all but the first have no advantages: the second process has nothing to learn from"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        whole = self.order.batch
        self.order.batch = lambda step: whole(step)[:3]
    def roll_out(self, samples, batch):
        groups = super().roll_out(samples, batch)
        first = self.samples[self.order.batch(batch)[0]].id
        for g in groups:
            for r in g.rollouts: r.advantage *= g.sample.id==first
        return groups

def run(cls, data, out, batch, resume=None, **settings):
    "Train, and keep what the test compares"
    settings = dict(max_steps=4, save_steps=2, n_rollouts=3, max_new_tokens=40, beta=.05, optim="sgd", learning_rate=.3, warmup_steps=0,
                    eval_strategy="steps", eval_steps=2)|settings
    args = DualStreamConfig(output_dir=str(out), use_cpu=True, disable_tqdm=True, per_device_train_batch_size=batch, **settings)
    trainer = cls(load_policy(device="cpu"), args, Samples(data), eval_samples=Samples(data)[:3])
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RunLog(progress=False))
    trainer.train(resume_from_checkpoint=resume)
    torch.save(dict(weights=trainer.model.state_dict(), archive=trainer.archive.state_dict()), f"{out}-{args.process_index}.pt")

REDRAWN = dict(max_steps=2, zero_variance="redraw", weights=dict(box=0, consistency=0))  # what is left is often equal

def fit(data, out, batch, policy):
    "Fine-tune on demonstrations, and keep what the test compares"
    args = ColdStartConfig(policy=policy, data=str(data), output_dir=str(out), use_cpu=True, per_device_train_batch_size=batch, max_steps=2, save_steps=2, logging_steps=1,
                           optim="sgd", learning_rate=.3, warmup_steps=0, see_steps=2, point_steps=2, point_scenes=4)
    torch.save(dict(weights=cold_start(args, progress=False).model.state_dict()), f"{out}-{args.process_index}.pt")

def failing(sample):
    def fail(self, queries, batch):
        if self.args.process_index==1 and batch==1: raise InputError("the second process could not go on")
        return sample(self, queries, batch)
    return fail

if __name__=="__main__":
    torch.set_num_threads(1)
    data,out = sys.argv[1:]
    run(OneByOne, data, Path(out)/"even", 4, updates_per_rollout=2)
    run(OneByOne, data, Path(out)/"resumed", 4, f"{out}/even/checkpoint-2", updates_per_rollout=2)
    run(Uneven, data, Path(out)/"uneven", 2, max_steps=2)
    run(OneByOne, data, Path(out)/"redrawn", 4, **REDRAWN)
    for policy in ("tiny", "blank"): fit(data, Path(out)/f"sft-{policy}", 3, policy)
    DualStreamTrainer.sample = failing(DualStreamTrainer.sample)
    sys.exit(main(["train", "--data", data, "--output_dir", f"{out}/failed", "--use_cpu", "true", "--max_steps", "3", "--n_rollouts", "2",
                   "--max_new_tokens", "30", "--per_device_train_batch_size", "1"]))
