"What each of two processes that share a base runs in test_sharded.py: `accelerate launch tests/two_sharded.py DATA OUT URL`"
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from ivgr.judge import RubricJudge
from ivgr.serve.rollouts import RolloutConfig
from ivgr.train.rl import train
from ivgr.trainer import DualStreamConfig, DualStreamTrainer

SETTINGS = dict(n_rollouts=2, per_device_train_batch_size=2, max_new_tokens=12, use_cpu=True, lora_rank=4, lora_vision=True, tokens_per_forward=1,
                save_steps=1, optim="sgd", learning_rate=2., warmup_steps=0)
RUNS = dict(kl=dict(beta=.05, gradient_checkpointing=True), no_signal={}, four=dict(beta=.05, quantise=4))

class Waits(RubricJudge):
    "The reference would run in a thread beside it"
    waits = True

class Uneven(DualStreamTrainer):
    "Three queries a batch: the first process has two, each with a forward of its own, and the second one, which teaches nothing"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.judge,whole = Waits(),self.order.batch
        self.order.batch = lambda step: whole(step)[:3]
    def roll_out(self, samples, batch):
        groups = super().roll_out(samples, batch)
        for g in groups:
            for i,r in enumerate(g.rollouts): r.advantage = float(i%2*2-1)*(self.args.process_index==0)
        return groups

def run(data, out, url, resume=False, **settings):
    "Train, and keep the adapter, and how many bytes of the layers this process holds"
    args = DualStreamConfig(output_dir=str(out), data=data, **SETTINGS|dict(max_steps=2)|settings)
    policy = train(args, resume, progress=False, rollouts=RolloutConfig(url=url, timeout=60.), trainer_class=Uneven)
    weights = {n:w for n,w in policy.model.named_parameters() if ".language_model.layers." in n and "lora" not in n}
    torch.save(dict(adapter={n:w.detach() for n,w in policy.model.named_parameters() if "lora" in n},
                    held=sum((w.to_local() if isinstance(w, DTensor) else w).nbytes for w in weights.values())), f"{out}-{args.process_index}.pt")

if __name__=="__main__":
    torch.set_num_threads(1)
    data,out,url = sys.argv[1],Path(sys.argv[2]),sys.argv[3]
    for name,settings in RUNS.items():
        for how in ("whole", "sharded"): run(data, out/f"{name}-{how}", url, shard_base=how=="sharded", **settings)
    run(data, out/"resumed", url, shard_base=True, **RUNS["kl"]|dict(max_steps=1))
    run(data, out/"resumed", url, resume=True, shard_base=True, **RUNS["kl"])
