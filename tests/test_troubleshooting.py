"The page on troubleshooting names what there is: every key of the log, every flag, every command"
import json,re
from pathlib import Path

import pytest,torch

from ivgr.judge import Pair
from ivgr.needle import write_needle
from ivgr.serve.endpoint import EndpointConfig,EndpointJudge
from ivgr.tools.cli import COMMANDS
from ivgr.train.rl import train
from ivgr.trainer import DualStreamConfig

ROOT = Path(__file__).parent.parent
CELLS = json.loads((ROOT/"nbs/tutorials/troubleshooting.ipynb").read_text())["cells"]
PAGE = "\n".join("".join(c["source"]) for c in CELLS if c["cell_type"]=="markdown")
CODE = re.findall(r"`([^`\n]+)`", PAGE)
SINGLE = {"zero_variance_groups", "skipped_steps", "grad_norm", "learning_rate"}

def keys_named(codes):
    "Words in code style that look like a key of the log"
    return {code for code in codes if code in SINGLE or re.fullmatch(r"(textual|grounded|unpaired|judge|archive|time|tokens|rollout)/[\w./]+", code)}

@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    "Keys that a run logs, and those that a judge on a server adds"
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("trouble")
    write_needle(out, "train", 4, progress=False)
    train(DualStreamConfig(output_dir=str(out/"run"), data=str(out), max_steps=2, per_device_train_batch_size=2, n_rollouts=2, max_new_tokens=24,
                           beta=.01, use_cpu=True), progress=False)
    keys = {key for line in (out/"run/metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    judge = EndpointJudge(EndpointConfig(url="http://127.0.0.1:9/v1", model="none", retries=0, timeout=1.))
    with pytest.warns(UserWarning, match="NO SCORE"): judge([Pair("Which?", "The tile is red.", "The tile is blue.")])
    return keys | {f"judge/{name}" for name in judge.report()}

def only_in_source(key):
    "Keys of events that a short run has not: a skipped step, a server that samples"
    name = key.rpartition("/")[2]
    return key=="skipped_steps" and '"skipped_steps"' in (ROOT/"ivgr/trainer.py").read_text() or \
        key.startswith("rollout/") and re.search(rf"\b{name}=", (ROOT/"ivgr/serve/rollouts.py").read_text())

def test_every_key_of_the_log_exists(logged):
    named = keys_named(CODE)
    assert len(named)>25 and named>=SINGLE
    assert not [key for key in sorted(named-logged) if not only_in_source(key)]

def test_a_key_that_does_not_exist_is_seen(logged):
    assert not [key for key in ("textual/reward_std", "rollout/speed") if key in logged or only_in_source(key)]

def flags_of(parser):
    subs = [sub for action in parser._actions if isinstance(action.choices, dict) for sub in action.choices.values()]
    return {flag for action in parser._actions for flag in action.option_strings}.union(*map(flags_of, subs))

def test_every_flag_and_command_exists():
    known = set().union(*(flags_of(command.parser()) for command in COMMANDS.values()))
    named = {flag for code in CODE for flag in re.findall(r"--[\w-]+", code)}
    assert len(named)>15 and not named-known, named-known
    assert not {name for code in CODE for name in re.findall(r"\bivgr ([a-z-]+)", code)}-set(COMMANDS)

def test_there_are_twenty_each_with_something_to_look_at_and_to_change():
    entries = re.split(r"^\*\*(\d+)\. ", PAGE, flags=re.M)[1:]
    assert [int(n) for n in entries[::2]]==list(range(1, 21))
    for number,text in zip(entries[::2], entries[1::2]):
        assert re.search(r"`[^`]+`", text), number
        assert keys_named(re.findall(r"`([^`\n]+)`", text)) or number=="18", number
