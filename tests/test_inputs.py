"What people type, and what they are told: one line or two that name what was wrong, and never a traceback"
import json,os,re,subprocess,sys
from dataclasses import fields

import pytest
import torch
from transformers import TrainingArguments

from ivgr.needle import write_needle
from ivgr.policy import load_policy,save_policy
from ivgr.qlora import LoraSettings,add_lora
from ivgr.tools.cli import main
from ivgr.train.fields import EVALUATION,EVERYWHERE,HELD_OUT,LOADER,USED
from ivgr.train.sft import ColdStartConfig
from ivgr.trainer import DualStreamConfig

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Data, demonstrations, and adapters whose base is wrong"
    top = tmp_path_factory.mktemp("inputs")
    write_needle(top/"data", "train", 3, progress=False)
    turns = [dict(role="user", content="<image>What is it?"), dict(role="assistant", content="<think>x</think><answer>y</answer>")]
    (top/"talk.json").write_text(json.dumps([dict(messages=turns, images=["x.png"])]))
    import pandas as pd
    pd.DataFrame([dict(messages=turns, images=["x.png"])]).to_parquet(top/"talk.parquet")
    policy = load_policy(device="cpu")
    save_policy(policy, top/"base")
    save_policy(add_lora(load_policy(top/"base", device="cpu"), LoraSettings(rank=2)), top/"adapter")
    config = json.loads((top/"adapter"/"adapter_config.json").read_text())
    save_policy(add_lora(load_policy(top/"base", device="cpu"), LoraSettings(rank=2)), top/"own")
    (top/"own"/"adapter_config.json").write_text(json.dumps(config | dict(base_model_name_or_path=str(top/"own"))))
    with torch.no_grad(): next(policy.model.parameters()).mul_(1.01)
    save_policy(policy, top/"base")                                       # trained on, after the adapter was
    (top/"list.yaml").write_text("n_rollouts: [2, 3]\n")
    (top/"half.yaml").write_text("max_steps: 2.5\n")
    return top

LONG = "x"*5000
TRAIN = "train --data {data} --output_dir {out} --use_cpu true --max_steps 1"
SFT = "sft --data {data} --policy tiny --output_dir {out} --use_cpu true --max_steps 1"

TABLE = [
    # numbers
    (f"{TRAIN} --learning_rate nan", "learning_rate=nan: it has to be 0 or more"),
    (f"{TRAIN} --learning_rate inf", "learning_rate=inf"),
    (f"{TRAIN} --tau nan", "tau=nan: it has to be a number"),
    (f"{TRAIN} --max_steps 0", "max_steps=0: take at least 1 step"),
    (f"{SFT} --max_steps 0", "max_steps=0: take at least 1 step"),
    (f"{TRAIN} --max_steps ten", "argument --max_steps/--max-steps: invalid int value: 'ten'\nusage: ivgr train [--FLAG VALUE ...]; `ivgr train --help`"),
    ("train --data {data} --output_dir {out} --use_cpu true --num_train_epochs 0.01", "num_train_epochs=0.01: that is less than a step"),
    (f"{TRAIN} --num_train_epochs -1", "num_train_epochs=-1.0: it has to be more than 0"),
    (f"{TRAIN} --seed -1", "seed=-1: it has to be a whole number from 0"),
    (f"{TRAIN} --save_steps 0.5", "save_steps=0.5: a share of the run is not taken here; give a number of steps"),
    (f"{TRAIN} --warmup_steps -1", "warmup_steps=-1.0"),
    (f"{TRAIN} --adam_beta1 1", "adam_beta1=1.0: it has to be from 0 to below 1"),
    (f"{TRAIN} --max_grad_norm nan", "max_grad_norm=nan"),
    (f"{TRAIN} --temperature nan", "temperature=nan"),
    # words
    (f"{TRAIN} --optim adam", "argument --optim: invalid choice: 'adam'"),
    (f"{TRAIN} --lr_scheduler_type cosin", "lr_scheduler_type='cosin': choose one of linear"),
    (f"{TRAIN} --lr_scheduler_type reduce_lr_on_plateau", "choose another schedule"),
    (f"{TRAIN} --save_strategy best", "save_strategy='best': nothing is evaluated in this run"),
    (f"{TRAIN} --bf16 perhaps", "argument --bf16: "),
    # flags that are unknown, or that would do nothing
    (f"{TRAIN} --lr 1e-4", "unknown argument '--lr'; did you mean --learning_rate?"),
    (f"{TRAIN} --num_generations 4", "did you mean --n_rollouts?"),
    (f"{TRAIN} --learning_rat=1", "did you mean --learning_rate?"),
    (f"{TRAIN} --val_files x", "did you mean --eval_data?"),
    (f"{TRAIN} --zzzz 1", "see `ivgr train --help-all` for all flags"),
    ("data needle --ot {out}", "required: --out"),
    ("data needle --out {out} --sed 3", "unknown argument '--sed'; did you mean --seed?"),
    ("eval --benchmark needle-easy --polcy tiny", "did you mean --policy?"),
    ("trian", "ivgr: argument COMMAND: invalid choice: 'trian'"),
    ("", "ivgr: the following arguments are required: COMMAND"),
    # held-out questions
    (f"{TRAIN} --eval_strategy steps", "eval_strategy='steps': nothing is evaluated: give held-out questions as eval_data"),
    (f"{TRAIN} --eval_strategy epoch", "eval_strategy='epoch': a run does not stop between epochs"),
    (f"{SFT} --eval_strategy steps", "eval_strategy='steps': nothing is evaluated in this run"),
    (f"{TRAIN} --eval_steps 5", "eval_steps=5.0: nothing is evaluated in this run"),
    (f"{TRAIN} --eval_n 5", "eval_n=5: there are no questions to count"),
    (f"{TRAIN} --load_best_model_at_end true", "load_best_model_at_end=True: nothing is evaluated in this run"),
    (f"{TRAIN} --do_eval true", "do_eval=True: nothing is evaluated in this run"),
    (f"{TRAIN} --bf16_full_eval true", "bf16_full_eval=True: held-out questions are answered by sampling"),
    (f"{TRAIN} --eval_data {{data}} --eval_n 0", "eval_n=0: ask at least 1 question"),
    (f"{TRAIN} --eval_data {{data}} --eval_steps 0", "eval_steps=0.0: it has to be more than 0"),
    (f"{TRAIN} --eval_data {{data}} --eval_steps nan", "eval_steps=nan"),
    (f"{TRAIN} --eval_data {{data}} --metric_for_best_model loss", "metric_for_best_model='loss': choose one of textual/accuracy"),
    (f"{TRAIN} --eval_data {{data}} --load_best_model_at_end true --eval_steps 30", "--load_best_model_at_end requires the saving steps to be a round multiple"),
    (f"{TRAIN} --eval_data {{data}}/train.parquet", "questions are trained on, too, such as row 0"),
    (f"{TRAIN} --eval_data {{top}}/nowhere", "no data at"),
    (f"{TRAIN} --eval_data {{top}}/talk.json", "conversations"),
    (f"{TRAIN} --deepspeed ds.json", "deepspeed='ds.json': what learns is never split between cards"),
    (f"{TRAIN} --fsdp full_shard", "fsdp='full_shard': what learns is never split between cards"),
    (f"{TRAIN} --resume_from_checkpoint true", "go on with --resume"),
    (f"{TRAIN} --neftune_noise_alpha 5", "neftune_noise_alpha=5.0: its noise would change the log-probabilities"),
    (f"{SFT} --neftune_noise_alpha 5", "neftune_noise_alpha=5.0"),
    (f"{TRAIN} --auto_find_batch_size true", "lower tokens_per_forward"),
    (f"{TRAIN} --label_smoothing_factor 0.1", "label_smoothing_factor=0.1"),
    (f"{SFT} --gradient_accumulation_steps 2", "set tokens_per_forward instead"),
    (f"{TRAIN} --dataloader_num_workers 2", "dataloader_num_workers=2: reinforcement learning chooses and loads"),
    # data and policies
    ("train --output_dir {out} --use_cpu true", "no data was named: give --data"),
    ("sft --policy tiny --output_dir {out} --use_cpu true", "no data was named: give --data"),
    ("train --data {top}/talk.json --output_dir {out} --use_cpu true", "conversations: learn from them with `ivgr sft`"),
    ("train --data {top}/talk.parquet --output_dir {out} --use_cpu true", "conversations: learn from them with `ivgr sft`"),
    (f"{TRAIN} --policy {{top}}/own", "is an adapter itself"),
    (f"{TRAIN} --policy {{top}}/adapter", "was trained beside other weights than those of"),
    (f"{TRAIN} --judge endpoint", "--judge_url"),
    # paths of 5,000 characters
    (f"train --data {LONG} --output_dir {{out}} --use_cpu true", "too long"),
    (f"sft --data {LONG} --output_dir {{out}} --use_cpu true", "too long"),
    (f"train --data {{data}} --output_dir {LONG} --use_cpu true", "too long"),
    (f"{TRAIN} --policy {LONG}", LONG[:40]),
    (f"{TRAIN} --config {LONG}", "can't read the config file"),
    (f"{TRAIN} --judge endpoint --judge_url http://127.0.0.1:9/v1 --judge_model m --judge_cache {LONG}", "too long"),
    (f"eval --policy tiny --data {LONG}", "too long"),
    (f"eval --policy {LONG} --benchmark needle-easy", LONG[:40]),
    (f"eval --compare {LONG} {LONG}", LONG[:40]),
    (f"eval --benchmark needle-easy --n 1 --max_new_tokens 2 --out {LONG}", "too long"),
    (f"data show {LONG}", "too long"),
    (f"data needle --n 1 --out {LONG}", "too long"),
    (f"data show {{data}} --picture {LONG}.png", "too long"),
    (f"replies {LONG}", LONG[:40]),
    (f"plan --model {LONG}", LONG[:40]),
    (f"judge-check --n 9 --out {LONG}", "too long"),
    (f"demo --out {LONG}", "too long"),
    (f"bench --out {LONG}", "too long"),
    (f"ablate --list --results {LONG}", LONG[:40]),
    (LONG, "invalid choice"),
    # files
    (f"{TRAIN} --config {{top}}/list.yaml", "list.yaml': n_rollouts is [2, 3]: one value is needed"),
    ("train --data {data} --output_dir {out} --use_cpu true --config {top}/half.yaml", "invalid int value: '2.5'"),
]

def told(words, folder, capsys):
    "Exit status and errors of a command"
    words = [w.format(data=folder/"data", out=folder/"out", top=folder) for w in words.split()]
    try: status = main(words)
    except SystemExit as e: status = e.code
    return status,capsys.readouterr().err

@pytest.mark.parametrize("words,answer", TABLE, ids=[re.sub(r"\{\w+\}|x{9,}", "", words)[:90] for words,_ in TABLE])
def test_told(words, answer, folder, capsys, monkeypatch):
    for name in ("IVGR_JUDGE_URL", "IVGR_JUDGE_MODEL"): monkeypatch.delenv(name, raising=False)
    status,err = told(words, folder, capsys)
    assert status==2 and "Traceback" not in err, err
    assert answer in err, err
    assert len(err)<1600, len(err)
    assert not (folder/"out").exists() or not any((folder/"out").glob("*.safetensors"))

@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_bf16_without_a_gpu(folder, capsys):
    status,err = told("train --data {data} --output_dir {out} --bf16 true", folder, capsys)
    assert status==2 and "bf16=True: there is no GPU here" in err and "use_cpu" in err, err

def unusual(name):
    "A value that nobody has by default"
    default = {f.name:f.default for f in fields(TrainingArguments)}[name]
    if isinstance(default, bool): return not default
    if isinstance(default, (int, float)): return default+3
    return "x"

@pytest.mark.parametrize("cls,refused", [(DualStreamConfig, EVERYWHERE|EVALUATION|LOADER), (ColdStartConfig, EVERYWHERE|EVALUATION|HELD_OUT)], ids=["train", "sft"])
def test_each_inherited_setting_is_used_or_refused(cls, refused):
    used = {name for names in USED.values() for name in names}|({*LOADER, *HELD_OUT}-refused.keys())
    assert used|refused.keys()=={f.name for f in fields(TrainingArguments)} and not used&refused.keys()
    assert cls.refused==refused
    for name in refused:
        value = unusual(name) if name not in ("ignore_data_skip", "remove_unused_columns") else not {f.name:f.default for f in fields(cls)}[name]
        with pytest.raises(ValueError, match=f"^{name}={re.escape(repr(value))}: .*leave it out$"): cls(**{name:value})

def program(*words, **settings):
    "`ivgr` as a process of its own"
    return subprocess.run([sys.executable, "-m", "ivgr", *map(str, words)], capture_output=True, env=os.environ|settings.pop("env", {}), **settings)

def without_bars(stderr):
    "What a program complains about, less its progress bars"
    text = stderr if isinstance(stderr, str) else stderr.decode("ascii")
    return re.sub(r"[\r\n]*reading: .*", "", text).strip()

def test_nobody_reads(folder):
    "Output into a pipe that is closed, and no output at all, are no errors"
    words = f"{sys.executable} -m ivgr data show {folder/'data'} --picture {folder/'a.png'}"
    for shell,status in ((f"{words} | true; exit ${{PIPESTATUS[0]}}", {0, 141}), (f"{words} >&-", {0}), (f"{words} >&- 2>&-", {0})):
        r = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
        assert r.returncode in status and not without_bars(r.stderr), (shell, r)

def test_a_locale_without_unicode(folder):
    "Letters that a terminal does not know are written as numbers"
    env = dict(PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C", PYTHONIOENCODING="ascii")
    r = program("eval", "--policy", "wèg", "--benchmark", "needle-easy", env=env)
    assert r.returncode==2 and b"Traceback" not in r.stderr and b"no policy at" in r.stderr, r
    r = program("data", "show", folder/"data", "--picture", folder/"b.png", env=env)
    assert r.returncode==0 and not without_bars(r.stderr), r
