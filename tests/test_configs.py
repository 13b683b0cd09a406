"The recipes and the settings of accelerate in configs/ can be read (whether recipes fit their cards: notebook 22)"
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from ivgr.cli import _judge_flags,read_settings
from ivgr.core import InputError
from ivgr.trainer import DualStreamConfig

CONFIGS = Path(__file__).parent.parent/"configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))

def read(path, *flags): return read_settings(DualStreamConfig, ["--config", str(path), *flags], "ivgr train", "", _judge_flags)[0]

@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe(path):
    a = read(path, "--n_rollouts", "7")
    assert a.n_rollouts==7 and a.data=="allencbzhang/iVGR-RL-51K" and a.dtype=="bfloat16" and a.gradient_checkpointing
    assert a.output_dir==f"runs/{path.stem}" and a.learning_rate==(1e-6 if path.stem=="paper" else 1e-5)

def test_recipes_are_there(): assert len(RECIPES)==6

def test_unknown_key(tmp_path):
    path = tmp_path/"x.yaml"
    path.write_text((CONFIGS/"paper.yaml").read_text()+"tokens_per_foward: 1\n")
    with pytest.raises(InputError, match="unknown key 'tokens_per_foward'; did you mean 'tokens_per_forward'"): read(path)

@pytest.mark.parametrize("name,kind,processes", [("single_gpu", "NO", 1), ("multi_gpu", "MULTI_GPU", 4), ("multi_node", "MULTI_GPU", 16)])
def test_accelerate(name, kind, processes):
    c = load_config_from_file(str(CONFIGS/"accelerate"/f"{name}.yaml"))
    assert (c.distributed_type.value, c.num_processes)==(kind, processes)
    assert "Not run by us" in (text := (CONFIGS/"accelerate"/f"{name}.yaml").read_text()) or "not run by us" in text
