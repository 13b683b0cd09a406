"What each of two processes that share a rollout server runs in test_distributed.py: `accelerate launch tests/two_with_server.py DATA OUT URL`"
import sys
from pathlib import Path

import torch

from ivgr.core import InputError
from ivgr.serve.rollouts import RolloutConfig
from ivgr.train.rl import train
from ivgr.trainer import DualStreamConfig

SETTINGS = dict(max_steps=3, save_steps=3, n_rollouts=2, per_device_train_batch_size=2, max_new_tokens=30, use_cpu=True, lora_rank=4,
                optim="sgd", learning_rate=2., warmup_steps=0)     # steps that the server can't miss

def run(data, out, url, resume=False):
    "Train, and keep the weights, or what ended it"
    args = DualStreamConfig(output_dir=str(out), data=data, **SETTINGS)
    try:
        policy = train(args, resume, progress=False, rollouts=RolloutConfig(url=url, retries=1, backoff=.02, timeout=60.))
        torch.save({k:w for k,w in policy.model.state_dict().items() if "lora" in k}, f"{out}-{args.process_index}.pt")
    except (InputError, ConnectionError) as e: Path(f"{out}-{args.process_index}.txt").write_text(f"{type(e).__name__}: {e}")

if __name__=="__main__":
    torch.set_num_threads(1)
    data,out,url = sys.argv[1:]
    for name in ("whole", "refused", "lost"): run(data, Path(out)/name, url)
    run(data, Path(out)/"lost", url, resume=True)
