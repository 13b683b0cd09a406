"The recipes and the settings of accelerate in configs/ can be read (whether recipes fit their cards: notebook 22); and whatever else a config file holds is settings or a message"
from dataclasses import fields
from pathlib import Path

import pytest,yaml
from accelerate.commands.config.config_args import load_config_from_file
from hypothesis import example,given,settings,strategies as st

from ivgr.tools.cli import judge_flags, read_settings, read_yaml, settings_parser
from ivgr.core import InputError
from ivgr.prompts import Prompts
from ivgr.trainer import DualStreamConfig

CONFIGS = Path(__file__).parent.parent/"configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
ARMS = sorted((CONFIGS/"ablations").glob("*.yaml"))

def read(path, *flags): return read_settings(settings_parser(DualStreamConfig, "ivgr train", "", judge_flags), ["--config", *map(str, path if isinstance(path, tuple) else (path,)), *flags])[0]

@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe(path):
    a = read(path, "--n_rollouts", "7")
    assert a.n_rollouts==7 and a.data=="allencbzhang/iVGR-RL-51K" and a.dtype=="bfloat16" and a.gradient_checkpointing
    assert a.output_dir==f"runs/{path.stem}" and a.learning_rate==(1e-6 if path.stem=="paper" else 1e-5)

def test_the_papers_recipe_asks_as_its_checkpoint_expects():
    a = read(CONFIGS/"paper.yaml")
    assert all("<answer>" in text for text in vars(Prompts.load(CONFIGS.parent/a.prompts)).values() if text)
    assert a.answer_rules=={"treevgr": "judge"} and a.judge=="endpoint"

def test_recipes_are_there(): assert len(RECIPES)==6

@pytest.mark.parametrize("path", ARMS, ids=lambda p: p.stem)
def test_an_arm_overrides_the_recipe(path):
    base = CONFIGS/"qwen2.5-vl-3b-24gb.yaml"
    recipe,arm,changes = read(base),read((base, path), "--seed", "3"),yaml.safe_load(path.read_text())
    assert {f.name for f in fields(arm) if getattr(arm, f.name)!=getattr(recipe, f.name)}-{"logging_dir"}=={*changes, "seed"}
    assert str(read((path, base)).output_dir)==recipe.output_dir  # the other way round the recipe wins

def test_unknown_key(tmp_path):
    path = tmp_path/"x.yaml"
    path.write_text((CONFIGS/"paper.yaml").read_text()+"tokens_per_foward: 1\n")
    with pytest.raises(InputError, match="unknown key 'tokens_per_foward'; did you mean 'tokens_per_forward'"): read(path)

@pytest.mark.parametrize("name,kind,processes", [("single_gpu", "NO", 1), ("multi_gpu", "MULTI_GPU", 4), ("multi_node", "MULTI_GPU", 16), ("fsdp_qlora", "MULTI_GPU", 4)])
def test_accelerate(name, kind, processes):
    c = load_config_from_file(str(CONFIGS/"accelerate"/f"{name}.yaml"))
    assert (c.distributed_type.value, c.num_processes)==(kind, processes)
    assert "Not run by us" in (text := (CONFIGS/"accelerate"/f"{name}.yaml").read_text()) or "not run by us" in text

yaml_values = st.recursive(st.none()|st.booleans()|st.integers()|st.floats()|st.text()|st.dates(),
                           lambda v: st.lists(v, max_size=3)|st.dictionaries(st.text()|st.integers(), v, max_size=3), max_leaves=3)
KNOWN = ("n_rollouts", "learning_rate", "beta", "judge", "output_dir", "clip_low")

@given(st.dictionaries(st.sampled_from(KNOWN), yaml_values, max_size=4))
def test_known_keys_come_back_as_they_were_written(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp()/"known.yaml"
    path.write_text(yaml.safe_dump(values))
    assert repr(read_yaml(path, KNOWN))==repr(yaml.safe_load(path.read_text()))

@given(st.binary()|(st.text()|yaml_values.map(yaml.safe_dump)|st.from_regex(r"[[{}:,\-'\"&*!|>0-9aj \n]{,40}", fullmatch=True)).map(str.encode))
@example(b"beta: \xff")
@example(b"judge: 2024-99-99")
@example(b"n_rollouts: "+b"9"*5000)
@example(b"["*5000)
def test_any_file_is_settings_or_a_message(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp()/"any.yaml"
    path.write_bytes(content)
    try: values = read_yaml(path, KNOWN)
    except InputError as e: assert "any.yaml" in str(e)
    else: assert set(values)<=set(KNOWN)

@given(st.text().filter(lambda k: k not in KNOWN), yaml_values)
def test_a_foreign_key_is_named(tmp_path_factory, key, value):
    path = tmp_path_factory.getbasetemp()/"foreign.yaml"
    path.write_text(yaml.safe_dump({"judge":"rubric", key:value}))
    with pytest.raises(InputError, match="unknown key") as e: read_yaml(path, KNOWN)
    assert repr(key) in str(e.value)

@settings(max_examples=settings.default.max_examples//10)  # each builds a parser of 150 flags
@given(st.integers(2, 99), st.integers(1, 4), st.floats(0, 2), st.floats(1e-9, 1), st.sets(st.sampled_from(["n_rollouts", "beta", "learning_rate"])))
def test_flags_and_file_say_the_same(tmp_path_factory, n, updates, beta, rate, flagged):
    "A setting may stand in the file or on the command line; where it stands makes no difference, and a flag wins"
    top = tmp_path_factory.getbasetemp()
    path,values = top/"flags.yaml",dict(n_rollouts=n, beta=beta, learning_rate=rate)
    common = dict(output_dir=str(top), data="x", per_device_train_batch_size=12, updates_per_rollout=updates, save_strategy="no", report_to="none", use_cpu=True)
    path.write_text(yaml.safe_dump(common|{k:7.0 if k!="n_rollouts" else 7 for k in flagged}|{k:v for k,v in values.items() if k not in flagged}))
    a = read(path, *(w for k in flagged for w in (f"--{k}", repr(values[k]))))
    assert {k:getattr(a, k) for k in values}==values and a.updates_per_rollout==updates
